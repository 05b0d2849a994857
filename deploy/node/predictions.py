"""What workers say that they predicted, taken off their sockets. The worker's end is `handlers/predictions.py`."""

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from handlers.predictions import MAX_MESSAGE_BYTES, OF_COPIES, Predictions, Version

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.05
"""Between two looks at busy sockets: a look at each message as it comes would cost more than all else here."""
_BACKLOG = 1024


Keep = Callable[[Version, Predictions], None]


class Receiver:
    """All workers' connections. What they say goes to `announce` and `keep`, on the loop's thread.

    What they say of copies of requests goes to `compare` alone.
    """

    def __init__(self, path: Path, announce: Callable[[Version], None], keep: Keep, compare: Keep) -> None:
        self._path = path
        self._announce = announce
        self._keep = keep
        self._compare = compare
        self._workers: dict[socket.socket, tuple[Version, bool] | None] = {}
        """Who predicts, and whether for copies."""
        self._watching = False
        # The system doubles what a worker asks for.
        self._buffer = memoryview(bytearray(2 * MAX_MESSAGE_BYTES))

    async def serve(self) -> None:
        """Take in until cancelled."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as launcher:
            launcher.bind(str(self._path))
            launcher.listen(_BACKLOG)
            launcher.setblocking(False)  # noqa: FBT003 - the standard library's own parameter
            try:
                while True:
                    worker, _ = await loop.sock_accept(launcher)
                    worker.setblocking(False)  # noqa: FBT003
                    self._workers[worker] = None
                    self._gather()
            finally:
                self._unwatch()
                self.drain()
                for worker in self._workers:
                    worker.close()
                self._workers.clear()

    def drain(self) -> None:
        """Take in all that has been sent."""
        for worker in list(self._workers):
            while self._take(worker):
                pass

    def _gather(self) -> None:
        self.drain()
        self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.add_reader(worker, self._readable)

    def _unwatch(self) -> None:
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            loop.remove_reader(worker)

    def _readable(self) -> None:
        self._unwatch()
        asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gather)

    def _take(self, worker: socket.socket) -> bool:
        """Take one message; False where there is none now, or the worker has ended."""
        try:
            size = worker.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if size:
            try:
                self._heard(worker, bytes(self._buffer[:size]))
            except ValueError:
                logger.exception("a worker said what no worker says")
            else:
                return True
        asyncio.get_running_loop().remove_reader(worker)
        self._workers.pop(worker)
        worker.close()
        return False

    def _heard(self, worker: socket.socket, message: bytes) -> None:
        if said := self._workers[worker]:
            version, of_copies = said
            keep = self._compare if of_copies else self._keep
            keep(version, Predictions.from_bytes(message, of_copies=of_copies))
        elif message.startswith(OF_COPIES):
            self._workers[worker] = Version.from_json(message.removeprefix(OF_COPIES)), True
        else:
            version = Version.from_json(message)
            self._workers[worker] = version, False
            self._announce(version)
