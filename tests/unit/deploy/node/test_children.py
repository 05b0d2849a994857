"""Programs that are started again when they die, until they die for good."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from deploy.node import children


def run(directory: Path, soon_seconds: float, deaths: int) -> tuple[list[str], int]:
    """What the work of a sleeping program saw, killed so many times, and how many programs there were."""
    seen: list[str] = []
    pids: list[int] = []

    async def start() -> children.Child:
        log = directory / "log"
        child = await children.start("sleeper", ["sleep", "600"], log=log, directory=directory, environment=os.environ)
        pids.append(child.process.pid)
        return child

    async def life() -> None:
        async def work() -> None:
            seen.append("started")
            try:
                if len(pids) <= deaths:
                    os.kill(pids[-1], signal.SIGKILL)
                    await asyncio.sleep(600)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            raise ArithmeticError

        kept = children.Kept(await start(), start, soon_seconds)
        try:
            await kept.keep(work)
        finally:
            await kept.stop(0)

    try:
        asyncio.run(life())
    except ArithmeticError:
        seen.append("raised")
    return seen, len(pids)


def test_program_is_started_again_and_its_work_begins_anew(tmp_path: Path) -> None:
    assert run(tmp_path, 0.0, deaths=2) == (["started", "cancelled"] * 2 + ["started", "raised"], 3)


def test_program_that_dies_soon_after_its_start_died_for_good(tmp_path: Path) -> None:
    assert run(tmp_path, 600.0, deaths=1) == (["started", "cancelled"], 1)


def test_death_is_told_with_the_last_words(tmp_path: Path) -> None:
    async def life() -> tuple[str, str]:
        child = await children.start(
            "speaker", ["sh", "-c", "read line; echo no room; exit 3"],
            log=tmp_path / "log", directory=tmp_path, environment=os.environ,
        )  # fmt: skip
        alive = child.death()  # asyncio has not yet heard of its end
        await child.process.wait()
        return alive, child.death()

    alive, dead = asyncio.run(life())
    assert dead == "speaker ended with 3: no room"
    assert alive == ""


ORPHANS = """
import ctypes, os, subprocess, sys, time
import psutil
from deploy.node.children import reap

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to this process, as they do to PID 1
for _ in range(3):
    # Popen looks after a child that has ended when it is let go itself, and the orphan would be none.
    parent = "import os, subprocess; kept = subprocess.Popen(['true']); os._exit(0)"
    subprocess.run([sys.executable, "-c", parent], check=True)
deadline = time.monotonic() + 20
while [child.status() for child in psutil.Process().children()] != ["zombie"] * 3:
    assert time.monotonic() < deadline
    time.sleep(0.05)
alive = subprocess.Popen(["sleep", "60"])
seen = reap(set())
assert len(seen) == 3, seen
assert len(psutil.Process().children()) == 4
assert reap(seen) == set()
assert [child.pid for child in psutil.Process().children()] == [alive.pid]
assert reap(set()) == set()
alive.kill()
alive.wait()
"""


def test_orphans_that_have_died_are_let_go_and_nobody_else() -> None:
    ended = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
