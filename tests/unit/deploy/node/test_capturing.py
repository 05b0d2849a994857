import asyncio
import os
import time
from pathlib import Path

import pytest

from deploy.node.capturing import capture_plan, expire
from deploy.settings import Settings
from handlers.captured import Segments


def test_nothing_is_captured_by_default(state_dir: Path) -> None:
    assert capture_plan(Settings.model_validate({"state_dir": state_dir})).share == 0


def test_settings_become_the_workers_plan(state_dir: Path) -> None:
    given = {"capture_share": 0.5, "capture_mask": "dep_delay, carrier,", "capture_mib": 2, "capture_keep_hours": 0.5}
    plan = capture_plan(Settings.model_validate({"state_dir": state_dir, **given}))
    assert plan.mask == ("dep_delay", "carrier")
    assert plan.segments == Segments(state_dir / "capture", 2 * 2**20, 1800.0)


def test_node_without_traffic_forgets(tmp_path: Path) -> None:
    segments = Segments(tmp_path, 2**20, keep_seconds=0.2)
    os.close(segments.create("flights", time.time()))

    def kept() -> list[Path]:
        return list(tmp_path.glob("flights/*"))

    async def until_forgotten() -> None:
        task = asyncio.create_task(expire(segments))
        while kept():
            await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(until_forgotten(), timeout=30))


def test_directory_that_cannot_be_read_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lock").mkdir()

    async def until_said() -> None:
        task = asyncio.create_task(expire(Segments(tmp_path, 2**20, keep_seconds=1.0)))
        while not caplog.records:
            await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    asyncio.run(asyncio.wait_for(until_said(), timeout=30))
    assert "too old were not removed" in caplog.text
