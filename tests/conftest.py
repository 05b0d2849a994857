"""Fixtures that every suite may use: free ports and short directories, and no settings from outside."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the folder of tests/ that it lies in (unit, integration)."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SHIPWAY_* variable of the person who runs the tests must not change what they test."""
    for name in [name for name in os.environ if name.startswith("SHIPWAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Callable[[], Path]]:
    """A function that makes an empty directory with a path short enough for unix sockets below it (at most 107 bytes).

    All of them are removed at the end. pytest's tmp_path carries the test's name and is too long.
    """
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp")))  # not TMPDIR, which may be long
        return made[-1]

    yield make
    for directory in made:
        shutil.rmtree(directory)


@pytest.fixture
def state_dir(short_directory: Callable[[], Path]) -> Path:
    """An empty directory with a short path."""
    return short_directory()


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """A function that finds `count` different TCP ports that nobody listens on."""

    def find(count: int) -> list[int]:
        # All are held open together, so that the system cannot hand out one of them twice.
        with ExitStack() as sockets:
            held = [sockets.enter_context(socket.socket()) for _ in range(count)]
            for one in held:
                one.bind(("127.0.0.1", 0))
            return [int(one.getsockname()[1]) for one in held]

    return find
