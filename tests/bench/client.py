"""A closed-loop HTTP/1.1 client on keep-alive connections that costs little, because it shares the cores it measures.

One request costs it about 0.02 ms of processor time.
"""

import itertools
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SILENCE_SECONDS = 30.0
"""A server that answers nobody for so long has stopped."""
MAX_REQUESTS = 1_000_000

_STATUS = slice(9, 12)  # of "HTTP/1.1 200 OK"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: *([0-9]+)", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What one closed loop saw. Requests still open at its end are answered, but not in here."""

    seconds: float
    latencies_ms: npt.NDArray[np.float64]
    statuses: Mapping[int, int]
    client_cpu_seconds: float

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    json_bytes: int | None
    """How much of the body is JSON, where the Open Inference Protocol's binary extension says so."""


def post(path: str, body: bytes, content_type: str = "application/octet-stream", **headers: int) -> bytes:
    """A whole request; `headers` are further ones, with hyphens for underscores."""
    fields = {"host": "bench", "content-type": content_type, "content-length": len(body), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def ask(address: tuple[str, int], request: bytes) -> Answer:
    """The answer to one request on a connection of its own."""
    with socket.create_connection(address, timeout=SILENCE_SECONDS) as sock:
        connection = _Connection(sock)
        connection.send(request)
        while (status := connection.receive()) is None:
            pass
        head, _, body = connection.data.partition(_HEAD_END)
        json_bytes = _JSON_LENGTH.search(head)
        return Answer(status, body, int(json_bytes[1]) if json_bytes else None)


def closed_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    max_requests: int = MAX_REQUESTS,
) -> Load:
    """Send `requests` in turn over and over, each connection its next one as soon as it has its last answer.

    Ends after `seconds` or `max_requests` answers. Raises ConnectionError when the server hangs up, TimeoutError when
    it falls silent.
    """
    following = itertools.cycle(requests)
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    with ExitStack() as stack:
        poll = stack.enter_context(select.epoll())
        open_connections: dict[int, _Connection] = {}
        for _ in range(connections):
            connection = _Connection(stack.enter_context(socket.create_connection(address)))
            open_connections[connection.sock.fileno()] = connection
            poll.register(connection.sock, select.EPOLLIN)
        cpu = time.process_time()
        now = start = time.perf_counter()
        deadline = start + seconds
        for connection in open_connections.values():
            connection.send(next(following))
        while (now := time.perf_counter()) < deadline and len(latencies) < max_requests:
            for ready, _ in _answers(poll):
                connection = open_connections[ready]
                status = connection.receive()
                if status is not None:
                    latencies.append(time.perf_counter() - connection.sent_at)
                    statuses[status] += 1
                    connection.send(next(following))
        load = Load(now - start, np.array(latencies) * 1e3, statuses, time.process_time() - cpu)
        _finish(poll, open_connections)  # the next server is measured on quiet cores
    return load


class _Connection:
    __slots__ = ("data", "sent_at", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.data = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.data = b""
        self.sent_at = time.perf_counter()
        self.sock.sendall(request)

    def receive(self) -> int | None:
        """Read once, which does not block when there is something to read; the status if the answer is whole now."""
        part = self.sock.recv(65536)
        if not part:
            raise ConnectionError(f"the server hung up in the middle of an answer; so far it said {self.data[:200]!r}")
        self.data += part
        head_end = self.data.find(_HEAD_END)
        if head_end < 0:
            return None
        length = _LENGTH.search(self.data, 0, head_end + 2)
        if length is None:
            raise ConnectionError(f"an answer needs a content-length; found {self.data[:head_end]!r}")
        whole = len(self.data) >= head_end + len(_HEAD_END) + int(length[1])
        return int(self.data[_STATUS]) if whole else None


def _answers(poll: select.epoll) -> list[tuple[int, int]]:
    ready = poll.poll(SILENCE_SECONDS)
    if not ready:
        raise TimeoutError(f"the server has answered nobody for {SILENCE_SECONDS:g} s")
    return ready


def _finish(poll: select.epoll, waiting: dict[int, _Connection]) -> None:
    while waiting:
        for ready, _ in _answers(poll):
            if waiting[ready].receive() is not None:
                poll.unregister(ready)
                del waiting[ready]
