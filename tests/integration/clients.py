"""Clients that keep asking: HTTP/1.1 with keep-alive, HTTP/2, and a long-lived gRPC channel.

Each sends one request at a time, notes every answer, and reconnects when it is told to. A request that was sent and
got no answer is *dropped*, unless nobody took it: the listener was gone, or said which was the last one it takes. The
first request on a new connection counts as not taken when it is reset, for the kernel completes a connection that the
listener never accepted; a test holds that against the edge's own count.
"""

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import hpack
from hyperframe import frame as frames

from handlers.protocol.messages import SERVICE

PATH = "/predictions/flights"
TIMEOUT_SECONDS = 30.0


@dataclass
class Tally:
    """What one client saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    dropped: list[str] = field(default_factory=list)
    told_to_reconnect: int = 0
    refused: int = 0
    """Requests that nobody took: the listener was gone."""

    def lost(self, error: Exception, *, fresh: bool) -> None:
        """A request got no answer; `fresh`: it was the first on its connection."""
        if fresh:
            self.sent -= 1
            self.refused += 1
        else:
            self.dropped.append(repr(error))

    @classmethod
    def sum(cls, tallies: "list[Tally]") -> "Tally":
        total = cls()
        for tally in tallies:
            total.statuses += tally.statuses
            total.sent += tally.sent
            total.dropped += tally.dropped
            total.told_to_reconnect += tally.told_to_reconnect
            total.refused += tally.refused
        return total


@dataclass
class Load:
    """How much to ask: until `requests` are sent in all, or the deadline, or the listener is gone."""

    port: int
    body: bytes
    requests: int
    deadline: float
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether one more request may be sent."""
        with self._lock:
            self._taken += 1
            return self._taken <= self.requests and time.monotonic() < self.deadline

    @property
    def taken(self) -> int:
        return self._taken


Client = Callable[[Load, Tally], None]


def run(load: Load, clients: list[Client]) -> "Running":
    """Start one thread a client."""
    tallies = [Tally() for _ in clients]
    threads = [
        threading.Thread(target=client, args=(load, tally), daemon=True)
        for client, tally in zip(clients, tallies, strict=True)
    ]
    for thread in threads:
        thread.start()
    return Running(threads, tallies)


@dataclass
class Running:
    threads: list[threading.Thread]
    tallies: list[Tally]

    def wait(self, seconds: float) -> list[Tally]:
        """The tallies, once all clients have ended; AssertionError if one hangs."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), "a client still waits for an answer"
        return self.tallies


def http1(load: Load, tally: Tally) -> None:
    """Keep-alive HTTP/1.1."""
    connection: http.client.HTTPConnection | None = None
    while load.take():
        fresh = connection is None
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=TIMEOUT_SECONDS)
            try:
                connection.connect()
            except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited at a socket that was closed
                tally.refused += 1
                return
        tally.sent += 1
        try:
            connection.request("POST", PATH, load.body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            tally.lost(error, fresh=fresh)
            connection.close()
            connection = None
            continue
        tally.statuses[response.status] += 1
        if (response.getheader("connection") or "").lower() == "close":
            tally.told_to_reconnect += 1
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


def http2(load: Load, tally: Tally) -> None:
    """HTTP/2 with prior knowledge, one stream after another on one connection."""
    connection: Http2 | None = None
    while load.take():
        fresh = connection is None
        if connection is None:
            try:
                connection = Http2("127.0.0.1", load.port)
            except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited at a socket that was closed
                tally.refused += 1
                return
        tally.sent += 1
        try:
            status, _, _ = connection.post(PATH, load.body)
        except NotTaken:
            tally.sent -= 1
            tally.told_to_reconnect += 1
            connection.close()
            connection = None
            continue
        except OSError as error:
            tally.lost(error, fresh=fresh)
            connection.close()
            connection = None
            continue
        tally.statuses[status] += 1
        if connection.going_away:
            tally.told_to_reconnect += 1
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


def grpc_unary(request: bytes) -> Client:
    """One gRPC channel for all calls; the library reconnects by itself after a GOAWAY."""

    def client(load: Load, tally: Tally) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{load.port}") as channel:
            infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while load.take():
                tally.sent += 1
                try:
                    infer(request, timeout=TIMEOUT_SECONDS)
                except grpc.RpcError as error:
                    details = str(error.details())
                    if error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
                        tally.sent -= 1
                        tally.refused += 1
                        return
                    tally.statuses[int(error.code().value[0])] += 1
                    tally.dropped.append(f"{error.code().name}: {details}")
                else:
                    tally.statuses[0] += 1

    return client


class NotTaken(Exception):
    """The peer said which was the last stream it takes, and this one came after it."""


class Http2:
    """One HTTP/2 connection, frame by frame: a client library stops reading at a GOAWAY, when answers still come."""

    def __init__(self, host: str, port: int) -> None:
        self._authority = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout=TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._buffer = b""
        self._next_stream = 1
        self.going_away = False
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames.SettingsFrame(0).serialize())

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. Raises NotTaken for a stream that a GOAWAY excludes."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        told = {":method": "POST", ":scheme": "http", ":authority": self._authority, ":path": path}
        fields = [*told.items(), ("content-type", "application/json")]
        head = frames.HeadersFrame(stream, self._encoder.encode(fields), flags=["END_HEADERS"])
        data = frames.DataFrame(stream, body, flags=["END_STREAM"])
        self._socket.sendall(head.serialize() + data.serialize())
        headers: dict[str, str] = {}
        answer = b""
        while True:
            frame = self._read()
            if isinstance(frame, frames.GoAwayFrame):
                self.going_away = True
                if frame.last_stream_id < stream:
                    raise NotTaken
            elif isinstance(frame, frames.RstStreamFrame):
                raise ConnectionResetError(f"stream reset: {frame.error_code}")
            elif isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
                self._socket.sendall(frames.SettingsFrame(0, flags=["ACK"]).serialize())
            elif isinstance(frame, frames.HeadersFrame):
                headers |= {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
            elif isinstance(frame, frames.DataFrame) and frame.data:
                answer += frame.data
                size = len(frame.data)
                windows = [frames.WindowUpdateFrame(each, size) for each in (0, stream)]
                self._socket.sendall(b"".join(window.serialize() for window in windows))
            if frame.stream_id == stream and "END_STREAM" in frame.flags:
                return int(headers.pop(":status")), headers, answer

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> frames.Frame:
        frame, length = frames.Frame.parse_frame_header(memoryview(self._receive(9)))
        frame.parse_body(memoryview(self._receive(length)))
        return frame

    def _receive(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("closed before the answer")
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def post(
    port: int, path: str, body: object, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, dict[str, str], bytes]:
    """One request on its own connection: status, headers (names in lower case), body. JSON, unless given as bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


def call(port: int, method: str, body: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> bytes:
    """One gRPC call of the Open Inference service on a channel of its own. Raises grpc.RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        answer: bytes = unary(body, metadata=metadata, timeout=TIMEOUT_SECONDS)
        return answer
