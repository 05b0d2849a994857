"""The node's private directory: short enough for sockets, one node's alone, and empty at every start."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import NodeRuns, SocketPathTooLong
from deploy.node.layout import LONGEST_SOCKET, SOCKET_PATH_LIMIT_BYTES, Layout, make_layout
from tests.unit.deploy.node.conftest import let_go

HOLD = """
import sys
from pathlib import Path
from deploy.node.layout import make_layout
layout = make_layout(Path(sys.argv[1]))
(layout.store / "left.mar").write_bytes(b"")
print("held", flush=True)
sys.stdin.read()
"""


def test_directories_are_for_the_owner_alone(layout: Layout) -> None:
    for directory in (layout.root, layout.store, layout.torchserve, layout.counters, layout.envoy):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_every_socket_fits(layout: Layout, state_dir: Path) -> None:
    longest = len(str(state_dir / "run" / LONGEST_SOCKET))
    paths = [getattr(layout, name) for name in dir(Layout) if name.endswith("_socket")]
    assert paths
    assert all(len(str(path)) <= longest for path in paths)


def test_path_that_is_too_long_is_refused_before_anything_is_made(state_dir: Path) -> None:
    room = SOCKET_PATH_LIMIT_BYTES - len(str(state_dir)) - len(LONGEST_SOCKET) - 2
    # Bytes count, not letters.
    too_long = state_dir / ("é" + "x" * (room - 1))
    with pytest.raises(SocketPathTooLong) as refused:
        make_layout(too_long)
    assert refused.value.path == too_long / LONGEST_SOCKET
    assert f"has {SOCKET_PATH_LIMIT_BYTES + 1} bytes" in str(refused.value)
    assert list(state_dir.iterdir()) == []


def test_second_node_is_refused_and_disturbs_nothing_until_the_first_is_killed(state_dir: Path) -> None:
    run = state_dir / "run"
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(NodeRuns) as refused:
            make_layout(run)
        assert refused.value.lock == run / "node.lock"
        assert (run / "node" / "store" / "left.mar").exists()
        first.kill()
        first.wait()
    second = subprocess.run(command, input=b"", capture_output=True, check=True)
    assert second.stdout == b"held\n"


def test_refusal_keeps_no_file_open(layout: Layout) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NodeRuns):
        make_layout(layout.root.parent)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_start_leaves_nothing_of_the_last_one(layout: Layout, state_dir: Path) -> None:
    (layout.store / "old.mar").write_bytes(b"")
    let_go(state_dir / "run")
    assert list(make_layout(state_dir / "run").store.iterdir()) == []
