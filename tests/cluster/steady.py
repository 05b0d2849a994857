"""Steady load on one address over keep-alive HTTP/1.1, HTTP/2 and long-lived gRPC channels, every answer checked.

An answer is right if it is what the version it names answers, and that version was meant to serve while the request
was under way. Everything else is a failure: nothing is asked twice, but for what HTTP/2 says was never taken.
"""

import contextlib
import http.client
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import grpc
import numpy as np
import numpy.typing as npt

from handlers.protocol.messages import SERVICE, ModelInferResponse
from handlers.tensors import from_raw
from tests.integration.clients import TIMEOUT_SECONDS, Http2, NotTaken

USERS = {"HTTP/1.1": 4, "HTTP/2": 3, "gRPC": 3}
"""Each has a connection of its own."""
RATE = 100.0
"""Requests a second of all of them together."""
TOLERANCE = 1e-3
MEANT = "meant to serve"
"""Stands in the fault of a request that another version answered."""
KNOWN_WITHIN_SECONDS = 2.0
"""Until everybody knows of a pod's end: helm returns when the last pod of the version before begins to end, which then
tells its clients to reconnect; kube-proxy writes its rules once a second."""


@dataclass(frozen=True)
class Question:
    """One request and what each version answers it with."""

    http: bytes
    """Open Inference JSON."""
    grpc: bytes
    """A ModelInferRequest."""
    expected: Mapping[int, Sequence[float]]
    """The first output, by version."""


@dataclass(frozen=True)
class Asked:
    """One request and what became of it."""

    protocol: str
    start: float
    """On the monotonic clock, seconds."""
    seconds: float
    """Until the answer was there and read."""
    version: int | None
    """That answered; None for no answer, or one that does not say."""
    fault: str
    """What was wrong with it; empty for a right answer."""


@dataclass(frozen=True)
class Window:
    """What was asked in a span of time."""

    asked: tuple[Asked, ...]

    @property
    def faults(self) -> list[str]:
        return [f"{one.protocol}: {one.fault}" for one in self.asked if one.fault]

    @property
    def p99_ms(self) -> float:
        """Of all that were asked, of which there must be some."""
        return float(np.percentile([one.seconds for one in self.asked], 99)) * 1000


Reply = tuple[Mapping[str, str], Sequence[float]]
"""Headers, names in lower case, and the first output."""


class Client(Protocol):
    def ask(self, question: Question) -> Reply:
        """Raises OSError, http.client.HTTPException, grpc.RpcError, or ValueError for an answer that is an error."""

    def close(self) -> None: ...


@dataclass
class Steady:
    """The load, from `with` until its end."""

    host: str
    port: int
    model: str
    questions: Sequence[Question]
    _asked: list[Asked] = field(default_factory=list)
    _meant: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        kinds: dict[str, Callable[[], Client]] = {
            "HTTP/1.1": lambda: OverHttp1(self.host, self.port, self.model),
            "HTTP/2": lambda: OverHttp2(self.host, self.port, self.model),
            "gRPC": lambda: OverGrpc(self.host, self.port),
        }
        users = [protocol for protocol, count in USERS.items() for _ in range(count)]
        pause = len(users) / RATE
        for number, protocol in enumerate(users):
            work = (protocol, kinds[protocol](), pause, number * pause / len(users))
            self._threads.append(threading.Thread(target=self._user, args=work, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a client still waits for an answer"
        self._ended = True

    def meant(self, *versions: int, after_seconds: float = 0.0) -> None:
        """From then on these versions are meant to answer, and no others."""
        self._meant.append((time.monotonic() + after_seconds, frozenset(versions)))

    @contextlib.contextmanager
    def during(self, versions: Sequence[int], then: Sequence[int]) -> Iterator[None]:
        """While this goes on all of `versions` are meant to answer, and soon after its end only those of `then`."""
        self.meant(*versions)
        yield
        self.meant(*then, after_seconds=KNOWN_WITHIN_SECONDS)

    def window(self, start: float, end: float = math.inf) -> Window:
        """What was asked from `start` on and before `end`, times on the monotonic clock; only after the load's end.

        Before that, a request that hangs would not be seen.
        """
        assert self._ended, "the load goes on"
        return Window(tuple(one for one in self._asked if start <= one.start < end))

    @property
    def requests(self) -> int:
        """That were answered, rightly or not, up to now."""
        return len(self._asked)

    def wait_for(self, requests: int, since: float, within_seconds: float) -> None:
        """Until so many were asked since then; AssertionError if they are not in time."""
        deadline = time.monotonic() + within_seconds
        while (found := sum(one.start >= since for one in list(self._asked))) < requests:
            assert time.monotonic() < deadline, f"{found} of {requests} requests within {within_seconds} s"
            time.sleep(0.1)

    def _user(self, protocol: str, client: Client, pause: float, first: float) -> None:
        due = time.monotonic() + first
        for question in itertools.cycle(self.questions):
            if self._stop.wait(max(0.0, due - time.monotonic())):
                break
            self._asked.append(self._ask(protocol, client, question))
            due = max(due + pause, time.monotonic())  # who was late does not catch up
        client.close()

    def _ask(self, protocol: str, client: Client, question: Question) -> Asked:
        start = time.monotonic()
        version: int | None = None
        try:
            headers, output = client.ask(question)
            version = int(headers.get("x-shipway-version", 0)) or None
            fault = self._fault(question, version, output, start)
        except grpc.RpcError as error:
            fault = f"{error.code().name}: {error.details()}"
        except Exception as error:  # noqa: BLE001 - an answer that cannot be read is a fault, and no end of the load
            fault = repr(error)
        return Asked(protocol, start, time.monotonic() - start, version, fault)

    def _fault(self, question: Question, version: int | None, output: Sequence[float], start: float) -> str:
        if version not in question.expected:
            return f"answered by version {version}, which is none of {sorted(question.expected)}"
        meant = self._meant_since(start)
        if version not in meant:
            return f"answered by version {version}; {MEANT}: {sorted(meant)}"
        expected = question.expected[version]
        if len(output) != len(expected) or not np.allclose(output, expected, rtol=TOLERANCE, atol=TOLERANCE):
            return f"version {version} answers {list(expected)}; found {list(output)}"
        return ""

    def _meant_since(self, start: float) -> frozenset[int]:
        """All that were meant to serve at some time since then."""
        changes = list(self._meant)
        before = [versions for at, versions in changes if at <= start][-1:]
        return frozenset().union(*before, *(versions for at, versions in changes if at > start))


class OverHttp1:
    def __init__(self, host: str, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        self._path = f"/v2/models/{model}/infer"

    def ask(self, question: Question) -> Reply:
        try:
            self._connection.request("POST", self._path, question.http, {"content-type": "application/json"})
            response = self._connection.getresponse()  # which closes itself where it says so
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        headers = {name.lower(): value for name, value in response.getheaders()}
        return headers, _output(response.status, answer)

    def close(self) -> None:
        self._connection.close()


class OverHttp2:
    def __init__(self, host: str, port: int, model: str) -> None:
        self._address = host, port
        self._path = f"/v2/models/{model}/infer"
        self._connection: Http2 | None = None

    def ask(self, question: Question) -> Reply:
        while True:
            self._connection = connection = self._connection or Http2(*self._address)
            try:
                status, headers, answer = connection.post(self._path, question.http)
            except NotTaken:  # no request was lost: the server said so
                self.close()
                continue
            except OSError:
                self.close()
                raise
            if connection.going_away:
                self.close()
            return headers, _output(status, answer)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class OverGrpc:
    def __init__(self, host: str, port: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(f"{host}:{port}", options=own)
        self._infer: Any = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")

    def ask(self, question: Question) -> Reply:
        answer, call = self._infer.with_call(question.grpc, timeout=TIMEOUT_SECONDS)
        headers = {key: str(value) for key, value in call.initial_metadata()}
        message = ModelInferResponse.FromString(answer)
        one, raw = message.outputs[0], message.raw_output_contents[0]
        return headers, _flat(from_raw(one.name, one.datatype, tuple(one.shape), memoryview(raw)).values)

    def close(self) -> None:
        self._channel.close()


def _output(status: int, answer: bytes) -> list[float]:
    if status != 200:
        raise ValueError(f"status {status}: {answer[:300].decode(errors='replace')}")
    return _flat(json.loads(answer)["outputs"][0]["data"])


def _flat(values: npt.ArrayLike) -> list[float]:
    found: list[float] = np.ravel(values).tolist()
    return found
