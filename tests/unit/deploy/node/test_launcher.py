"""What a launcher leaves behind for whoever looks at its pod."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import termination
from deploy.node import launcher
from deploy.settings import Settings
from tests.unit.deploy.node.conftest import let_go


@pytest.fixture
def told(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which Kubernetes looks for the cause."""
    path = state_dir / "termination-log"
    path.touch()
    monkeypatch.setattr(termination, "TERMINATION_LOG", path)
    yield path
    let_go(state_dir / "run")


def test_node_that_cannot_go_on_leaves_the_cause(state_dir: Path, told: Path) -> None:
    keys = state_dir / "keys.json"
    settings = Settings.model_validate({"state_dir": state_dir, "api_keys": keys})
    assert launcher.run(settings) == 1
    assert told.read_text() == f"{keys} is not usable: it cannot be read: No such file or directory"


def test_node_that_is_stopped_before_it_was_ready_leaves_what_it_waited_for(state_dir: Path, told: Path) -> None:
    async def stopped() -> None:
        node = launcher.Node(Settings.model_validate({"state_dir": state_dir}))
        node._not_now = "flights version 7 is FAILED: it is signed with a key that is not trusted"
        node._told_to_stop()
        node._not_now = "the node is draining"
        node._told_to_stop()
        await node._management.close()
        await node._admin.close()
        await node._feedback.close()

    asyncio.run(stopped())
    assert told.read_text() == "flights version 7 is FAILED: it is signed with a key that is not trusted"


def test_node_that_was_ready_leaves_nothing(state_dir: Path, told: Path) -> None:
    async def stopped() -> None:
        node = launcher.Node(Settings.model_validate({"state_dir": state_dir}))
        node._not_now = ""
        node._told_to_stop()
        await node._management.close()
        await node._admin.close()
        await node._feedback.close()

    asyncio.run(stopped())
    assert told.read_text() == ""
