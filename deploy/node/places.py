"""Listening sockets of workers, held by the launcher: a worker's death closes none, so that requests wait for the next.

Each version has as many places as workers. A worker connects, names its model and version, and receives the listening
socket of a free place; the connection stays open as long as the worker lives, and its end frees the place.
"""

import asyncio
import hashlib
import logging
import socket
from pathlib import Path

from deploy.node.layout import Layout
from handlers.server import INHERITED, NEW

logger = logging.getLogger(__name__)

_BACKLOG = 4096
_LONGEST_QUESTION = 256


class Places:
    """All places of a node."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._free: dict[str, asyncio.Queue[socket.socket]] = {}
        self._sockets: dict[str, list[socket.socket]] = {}
        self._used: set[socket.socket] = set()
        self._leases: set[asyncio.Task[None]] = set()

    def open(self, model: str, version: int, workers: int) -> tuple[Path, ...]:
        """Listen for a version, before its workers start; returns where each of them will be asked."""
        key = _key(model, str(version))
        self._sockets[key] = []
        self._free[key] = asyncio.Queue()
        # Short names: a socket's path is limited to 107 bytes.
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        paths = tuple(self._layout.workers / f"{name}.{number}" for number in range(workers))
        for path in paths:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(_BACKLOG)
            self._sockets[key].append(listener)
            self._free[key].put_nowait(listener)
        return paths

    def close(self, model: str, version: int) -> None:
        """Stop listening for a version that has no route and no worker any more."""
        key = _key(model, str(version))
        self._free.pop(key, None)
        for listener in self._sockets.pop(key, []):
            self._used.discard(listener)
            Path(listener.getsockname()).unlink(missing_ok=True)
            listener.close()

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
            free = self._free.get(key)
            if free is None:
                logger.error("a worker asks for a place of %r, which is not served here", key)
                return
            # Its predecessor may be dying at this moment.
            listener = await free.get()
            try:
                said = INHERITED if listener in self._used else NEW
                self._used.add(listener)
                socket.send_fds(worker, [said], [listener.fileno()])
                await loop.sock_recv(worker, 1)  # never sent: this returns when the worker ends
            except OSError:
                pass
            finally:
                free.put_nowait(listener)


def _key(model: str, version: str) -> str:
    return f"{model}/{version}"
