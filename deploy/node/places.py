"""Listening sockets of workers, held by the launcher: a worker's death closes none, so that requests wait for the next.

Not so where another version can answer them: who comes to an empty place of such a version is turned away at once.

Each version has as many places as workers. A worker connects, names its model and version, and receives the listening
socket of a free place; the connection stays open as long as the worker lives, and its end frees the place.
"""

import asyncio
import hashlib
import logging
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.node.layout import Layout
from handlers.server import INHERITED, NEW

logger = logging.getLogger(__name__)

_BACKLOG = 4096
_LONGEST_QUESTION = 256


@dataclass
class Workers:
    """The places of one version, and who is in them."""

    sockets: list[socket.socket] = field(default_factory=list)
    free: asyncio.Queue[socket.socket] = field(default_factory=asyncio.Queue)
    alive: dict[socket.socket, int] = field(default_factory=dict)
    """By place, the process identifiers of the workers that have one, and so can answer."""
    restarts: int = 0
    """Workers that took the place of one that had ended."""

    @property
    def resident_bytes(self) -> int:
        """Memory of those that are alive."""
        return sum(map(_resident_bytes, self.alive.values()))


class Places:
    """All places of a node."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._workers: dict[str, Workers] = {}
        self._used: set[socket.socket] = set()
        self._turning_away: set[str] = set()
        """Versions whose requests do not wait."""
        self._leases: set[asyncio.Task[None]] = set()

    def open(self, model: str, version: int, workers: int) -> tuple[Path, ...]:
        """Listen for a version, before its workers start; returns where each of them will be asked."""
        key = _key(model, str(version))
        places = self._workers[key] = Workers()
        # Short names: a socket's path is limited to 107 bytes.
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        paths = tuple(self._layout.workers / f"{name}.{number}" for number in range(workers))
        for path in paths:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            listener.setblocking(False)  # noqa: FBT003 - the standard library's own parameter
            places.sockets.append(listener)
            places.free.put_nowait(listener)
        return paths

    def workers(self, model: str, version: int) -> Workers:
        """Who has the places of a version; nobody, and no places, of one that is not served."""
        return self._workers.get(_key(model, str(version))) or Workers()

    def close(self, model: str, version: int) -> None:
        """Stop listening for a version that has no route and no worker any more."""
        closed = self._workers.pop(_key(model, str(version)), None)
        for listener in closed.sockets if closed else ():
            self._used.discard(listener)
            Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()

    def turn_away(self, versions: set[tuple[str, int]]) -> None:
        """From now on whoever comes to an empty place is turned away if it is one of these, and waits otherwise."""
        self._turning_away = {_key(model, str(version)) for model, version in versions}
        for key, places in self._workers.items():
            for listener in places.sockets:
                if listener not in places.alive:
                    self._emptied(key, listener)

    def _emptied(self, key: str, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if key in self._turning_away:
            loop.add_reader(listener, _turn_away, listener)
        else:
            loop.remove_reader(listener)

    async def serve(self) -> None:
        """Hand places out until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as launcher:
            launcher.bind(str(self._layout.places_socket))
            launcher.listen(_BACKLOG)
            launcher.setblocking(False)  # noqa: FBT003 - the standard library's own parameter
            try:
                while True:
                    worker, _ = await loop.sock_accept(launcher)
                    task = asyncio.create_task(self._lease(worker))
                    self._leases.add(task)
                    task.add_done_callback(self._leases.discard)
            finally:
                for lease in self._leases:
                    lease.cancel()

    async def _lease(self, worker: socket.socket) -> None:
        """One worker's stay in a place."""
        loop = asyncio.get_running_loop()
        with worker:
            question = await loop.sock_recv(worker, _LONGEST_QUESTION)
            key = question.decode(errors="replace").strip()
            places = self._workers.get(key)
            if places is None:
                logger.error("a worker asks for a place of %r, which is not served here", key)
                return
            # Its predecessor may be dying at this moment.
            listener = await places.free.get()
            try:
                loop.remove_reader(listener)
                said = INHERITED if listener in self._used else NEW
                places.restarts += said == INHERITED
                places.alive[listener] = _process(worker)
                self._used.add(listener)
                socket.send_fds(worker, [said], [listener.fileno()])
                await loop.sock_recv(worker, 1)  # never sent: this returns when the worker ends
            except (OSError, ValueError):  # the worker has ended, or its version is out of service meanwhile
                pass
            finally:
                places.alive.pop(listener, None)
                places.free.put_nowait(listener)
                if self._workers.get(key) is places:
                    self._emptied(key, listener)


def _turn_away(listener: socket.socket) -> None:
    """Close what waits to be connected: the edge then asks whoever else can answer."""
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


def _resident_bytes(process: int) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except OSError:  # it has just ended
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _process(peer: socket.socket) -> int:
    """The identifier of the process at the other end of a unix socket."""
    credentials = struct.Struct("3i")  # process, user, group
    (process, _, _) = credentials.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return int(process)


def _key(model: str, version: str) -> str:
    return f"{model}/{version}"
