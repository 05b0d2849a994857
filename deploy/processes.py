"""Our own processes among all others: found by a mark in their environment, ended without touching a stranger's."""

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from deploy.errors import PortTaken
from deploy.programs import Listener

# Every process of a stack carries this variable with its state directory: nothing but supervisord is ever started with
# it, and children inherit it, so they are recognised even after supervisord was killed. It must not begin with
# SHIPWAY_, which is for settings.
MARK = "STACK_OF_SHIPWAY"

_PR_SET_PDEATHSIG = 1

# SIGKILL works at once, except on a process that waits for a disk.
KILL_WITHIN_SECONDS = 5


def dies_with_us(number: signal.Signals) -> Callable[[], None]:
    """What a child does between fork and exec, so that it gets this signal when we die, even by SIGKILL."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def in_the_child() -> None:  # without allocating: other threads may have held locks
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before the request was in place

    return in_the_child


def marked(state_dir: Path) -> list[psutil.Process]:
    """The processes of the stack on `state_dir`: those that carry its mark, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid() and process.environ().get(MARK) == str(state_dir):
                # A child may have been given an environment of its own.
                found.update({one.pid: one for one in [process, *process.children(recursive=True)]})
    return [process for pid, process in sorted(found.items()) if pid != os.getpid() and _lives(process)]


def end(processes: Iterable[psutil.Process], within_seconds: float) -> None:
    """End processes, those that nobody else ends by SIGTERM, and after `within_seconds` whatever is left by SIGKILL.

    SIGTERM goes to processes whose parent is not among them: each program stops its own children in its own order.
    """
    ours = {process.pid: process for process in processes}
    for process in ours.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in ours:
                process.terminate()
    left = _left_after(within_seconds, ours.values())
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                one.kill()
    _left_after(KILL_WITHIN_SECONDS, left)


def _left_after(seconds: float, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Wait up to `seconds` for processes to end; those that have not. A zombie has ended: its parent may be slow."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_free(listeners: Iterable[Listener]) -> None:
    """Check that nobody listens where we are going to.

    Raises:
        PortTaken: names the process in the way and the setting that chooses another port.
    """
    for listener in listeners:
        if _taken(listener.host, listener.port):
            raise PortTaken(listener.host, listener.port, listener.setting, _holder(listener.port))


def _taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do it: a connection of an earlier server that lingers in TIME_WAIT is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _holder(port: int) -> str:
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({process.name()}: {' '.join(process.cmdline())[:120]})"
    return "a process of another user (root can see which one: ss -ltnp)"
