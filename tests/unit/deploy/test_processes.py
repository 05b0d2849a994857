import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from deploy.errors import PortTaken
from deploy.processes import MARK, check_free, end, marked
from deploy.programs import Listener

SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a command with variables added to its environment, and waits until it says ready."""
    with ExitStack() as ended:

        def run(command: list[str], **environment: str) -> subprocess.Popen[str]:
            environment = {**os.environ, **environment}
            process = ended.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            ended.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield run


def test_only_our_own_are_found_and_ended(state_dir: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    ours = start(SLEEP, **{MARK: str(state_dir)})
    other_stack = start(SLEEP, **{MARK: f"{state_dir}-2"})
    stranger = start(SLEEP)
    found = marked(state_dir)
    assert [process.pid for process in found] == [ours.pid]
    end(found, within_seconds=10)
    assert ours.wait(timeout=5) == -signal.SIGTERM
    assert marked(state_dir) == []
    assert stranger.poll() is None
    assert other_stack.poll() is None


def test_child_without_the_mark_is_found_through_its_parent(
    state_dir: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = start(
        [sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r}, env={{}})"], **{MARK: str(state_dir)}
    )
    found = marked(state_dir)
    assert len(found) == 2
    end(found, within_seconds=0.5)
    assert parent.wait(timeout=5) == -signal.SIGTERM
    assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in found)


def test_deaf_process_is_killed_after_its_time(state_dir: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    deaf = start([sys.executable, "-c", DEAF], **{MARK: str(state_dir)})
    before = time.monotonic()
    end(marked(state_dir), within_seconds=0.3)
    assert deaf.wait(timeout=5) == -signal.SIGKILL
    assert time.monotonic() - before >= 0.3


def test_free_port_passes(free_ports: Callable[[int], list[int]]) -> None:
    check_free(Listener("127.0.0.1", port, "SHIPWAY_HTTP_PORT") for port in free_ports(2))


def test_taken_port_names_the_process_and_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            check_free([Listener("127.0.0.1", port, "SHIPWAY_HTTP_PORT")])
    message = str(caught.value)
    assert f"127.0.0.1:{port} is taken by process {os.getpid()} (" in message
    assert psutil.Process().cmdline()[0] in message
    assert "SHIPWAY_HTTP_PORT=<port>" in message
