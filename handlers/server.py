"""A worker's own server: the edge sends requests to it directly, and whatever waits when it is free is its next batch.

TorchServe loads the worker, watches it and starts it again. Its queue is not on the way of a request, because it
makes a lone request wait for company, at least a millisecond, and costs each request three hand-overs between threads.
The stock worker waits for TorchServe's next command in `retrieve_msg`; here it serves clients while it waits.

The listening socket is the launcher's: it outlives this worker, so that requests wait for the next one.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from handlers.answer import Answer, Call, fail
from handlers.errors import PredictionFailed

logger = logging.getLogger(__name__)

SOCKETS = "SHIPWAY_SOCKETS"
"""Where the launcher hands out listening sockets; the node sets it in TorchServe's environment."""

NEW, INHERITED = b"\0", b"\1"
"""What the launcher says about a place."""

MAX_HEAD_BYTES = 1 << 16
CAREFUL_REQUESTS = 256
"""The first requests of a worker whose predecessor has ended are taken one by one: if one of them ends this worker too,
the others are still in the listening socket, where the next worker finds them."""
COMPANY_SHARE = 0.03
"""Of a batch's time, that the next one waits for company."""
LOOKING_SECONDS = 50e-6
"""After a batch of several a worker goes on looking for so long before it sleeps: to be woken takes as long."""
_POLL_SECONDS = 0.001
"""The least that can be waited for."""
_PLACE_WITHIN_SECONDS = 60.0
_HEAD_END = b"\r\n\r\n"


class Answering(Protocol):
    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        """One answer for each call."""

    def account(self) -> None:
        """Called when the answers are on their way."""


def install(answering: Answering, model: str, version: str, batch_size: int, timeout_seconds: float) -> None:
    """Serve while TorchServe has nothing to say. Does nothing in a process that is no worker of a node's TorchServe.

    A batch that takes longer than `timeout_seconds` ends the worker, as TorchServe would end it.
    """
    # The worker's routine lines are parsed by the JVM at a cost.
    logging.getLogger().setLevel(logging.WARNING)
    worker: Any = sys.modules["__main__"]
    launcher = os.environ.get(SOCKETS)
    if launcher is None or not hasattr(worker, "retrieve_msg"):
        return
    server = Server(take_place(launcher, model, version), answering, batch_size, timeout_seconds)
    stock: Callable[[Any], Any] = worker.retrieve_msg

    def retrieve(connection: socket.socket) -> Any:
        server.serve_until_readable(connection)
        return stock(connection)

    worker.retrieve_msg = retrieve


@dataclass(frozen=True)
class Place:
    """One of the places that a version has for workers."""

    listener: socket.socket
    lease: socket.socket
    """Open as long as the worker lives, whatever ends it: then the launcher gives its place to the next."""
    inherited: bool = False
    """Whether a worker had it before, which has ended: the request that ended it may come again."""


def take_place(launcher: str, model: str, version: str) -> Place:
    """The next free place. OSError if none becomes free, or the launcher knows no such version."""
    lease = socket.socket(socket.AF_UNIX)
    lease.settimeout(_PLACE_WITHIN_SECONDS)
    lease.connect(launcher)
    lease.sendall(f"{model}/{version}\n".encode())
    said, descriptors, _, _ = socket.recv_fds(lease, 1, 1)
    if not descriptors:
        lease.close()
        raise OSError(f"the launcher has no place for a worker of {model} version {version}")
    listener = socket.socket(fileno=descriptors[0])
    listener.settimeout(0)
    return Place(listener, lease, inherited=said == INHERITED)


class Server:
    """HTTP/1.1 on one thread for one peer, the edge, which has checked and re-serialised every request."""

    def __init__(self, place: Place, answering: Answering, batch_size: int, timeout_seconds: float) -> None:
        self._place = place
        self._listener = place.listener
        self._alone = CAREFUL_REQUESTS if place.inherited else 0
        self._answering = answering
        self._batch_size = batch_size
        self._timeout_seconds = timeout_seconds
        self._poll = select.epoll()
        self._poll.register(place.listener, select.EPOLLIN)
        self._connections: dict[int, _Connection] = {}
        self._waiting: deque[tuple[_Connection, Call]] = deque()
        self._batch_seconds, self._batch_answered = 0.0, 0
        """Of the last batch."""

    def serve_until_readable(self, other: socket.socket) -> None:
        """Answer requests until `other` has something to read, or has been closed, and nothing waits."""
        self._poll.register(other, select.EPOLLIN)
        try:
            while True:
                told = self._take(other, 0 if self._waiting else None)
                if self._waiting:
                    self._gather(other)
                    self._answer_batch()
                elif told:
                    return
        finally:
            self._poll.unregister(other)

    def _take(self, other: socket.socket, timeout_seconds: float | None) -> bool:
        """Take in what has arrived, or arrives within the timeout. Whether `other` has something to read."""
        told = False
        most = 1 if self._alone else -1
        looks = timeout_seconds is None and self._batch_answered > 1
        for descriptor, events in (looks and self._look(most)) or self._poll.poll(timeout_seconds, most):
            if descriptor == other.fileno():
                told = True
            elif descriptor == self._listener.fileno():
                self._accept()
            else:
                self._progress(self._connections[descriptor], events)
        return told

    def _look(self, most: int) -> list[tuple[int, int]]:
        """What has arrived, or arrives while looking; nothing if that takes too long."""
        until = time.monotonic() + LOOKING_SECONDS
        while not (ready := self._poll.poll(0, most)) and time.monotonic() < until:
            pass
        return ready

    def _gather(self, other: socket.socket) -> None:
        """Let those catch up who were answered last: their next requests are on the way, and a full batch costs less.

        It takes a small part of the time that a batch takes, and nothing where one takes a few milliseconds.
        """
        deadline = time.monotonic() + COMPANY_SHARE * self._batch_seconds
        while len(self._waiting) < self._batch_answered and (left := deadline - time.monotonic()) >= _POLL_SECONDS:
            self._take(other, left)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._poll.close()
        self._listener.close()

    def _accept(self) -> None:
        """All who wait to be connected: what they have already sent belongs to the next batch."""
        while not (self._alone and self._waiting):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.settimeout(0)
            connection = self._connections[sock.fileno()] = _Connection(sock)
            self._poll.register(sock, select.EPOLLIN)
            self._progress(connection, select.EPOLLIN)

    def _progress(self, connection: "_Connection", events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                if connection.flush():
                    self._poll.modify(connection.sock, select.EPOLLIN)
            elif call := connection.receive():
                self._waiting.append((connection, call))
        except BlockingIOError:
            pass
        except OSError:  # the edge gave up: nobody waits for an answer any more
            self._drop(connection)

    def _drop(self, connection: "_Connection") -> None:
        if self._connections.pop(connection.sock.fileno(), None) is not None:
            self._poll.unregister(connection.sock)
            connection.sock.close()

    def _answer_batch(self) -> None:
        waiting = self._waiting
        batch = [waiting.popleft() for _ in range(min(self._batch_size, len(waiting)))]
        batch = [(connection, call) for connection, call in batch if connection.sock.fileno() >= 0]  # some have left
        if not batch:
            return
        started = time.monotonic()
        answers = self._answers([call for _, call in batch])
        self._batch_seconds, self._batch_answered = time.monotonic() - started, len(batch)
        for (connection, _), answer in zip(batch, answers, strict=True):
            try:
                if not connection.send(answer):
                    self._poll.modify(connection.sock, select.EPOLLOUT)
            except OSError:
                self._drop(connection)
        self._answering.account()
        self._alone = max(0, self._alone - 1)

    def _answers(self, calls: list[Call]) -> list[Answer]:
        signal.setitimer(signal.ITIMER_REAL, self._timeout_seconds)  # its signal ends a worker that is stuck
        try:
            return self._answering.answer(calls)
        except Exception as error:
            logger.exception("a batch of %s was not answered", len(calls))
            return [fail(call, PredictionFailed(error)) for call in calls]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class _Connection:
    """One connection of the edge: a request, its answer, the next request."""

    __slots__ = ("_at", "_body", "_head", "_headers", "_unsent", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._head = b""
        self._headers: dict[str, str] = {}
        self._body: bytearray | None = None
        self._at = 0
        self._unsent = memoryview(b"")

    def receive(self) -> Call | None:
        """Read once; the request if it is whole now. OSError when the connection is closed or breaks the protocol."""
        if self._body is not None:
            return self._receive_body(self._body)
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        if self._head:
            data = self._head + data
        end = data.find(_HEAD_END)
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise ConnectionAbortedError(f"a head of more than {MAX_HEAD_BYTES} bytes")
            self._head = data
            return None
        self._head = b""
        lines = data[:end].decode("latin-1").split("\r\n")
        self._headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        start, length = end + len(_HEAD_END), int(self._headers.get("content-length", "0"))
        if len(data) - start >= length:
            return Call.read(self._headers, memoryview(data)[start:])
        self._body = bytearray(length)
        self._at = len(data) - start
        self._body[: self._at] = memoryview(data)[start:]
        return None

    def _receive_body(self, body: bytearray) -> Call | None:
        read = self.sock.recv_into(memoryview(body)[self._at :])
        if not read:
            raise ConnectionResetError
        self._at += read
        if self._at < len(body):
            return None
        self._body = None
        return Call.read(self._headers, body)

    def send(self, answer: Answer) -> bool:
        """Send as much as fits; False where `flush` must send the rest."""
        further = ""
        if answer.headers:
            further = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        start, body = _start(answer.status, answer.content_type), answer.body
        data = b"%b%d\r\n%b\r\n%b" % (start, len(body), further.encode("latin-1"), body)
        sent = self._send(data)
        if sent == len(data):
            return True
        self._unsent = memoryview(data)[sent:]
        return False

    def flush(self) -> bool:
        self._unsent = self._unsent[self._send(self._unsent) :]
        return not self._unsent

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0


@lru_cache(maxsize=64)
def _start(status: int, content_type: str) -> bytes:
    """An answer up to its length."""
    phrase = "OK" if status == 200 else "-"  # no other is read by anyone
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\ncontent-length: ".encode()
