"""One request as a worker receives it and its answer as the edge wants it, for every protocol.

The edge (Envoy) tells by a header how a request came in. An error is the item's own status, never an exception, which
would fail the whole batch; over gRPC it stands in headers that the edge turns into gRPC's trailers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from urllib.parse import quote

import orjson

from handlers.errors import (
    DeadlineExpired,
    HandlerError,
    InvalidRequest,
    RequestRefused,
    UnsupportedContentType,
    UnsupportedEncoding,
)
from monitoring import names

HTTP, GRPC, ROWS = "oip_http", "oip_grpc", "predictions"

EXPLAINER = names.EXPLAINER

# Set by the edge on requests; a client's own are removed there.
CALL_HEADER = "x-shipway-call"
"""What the edge says of a request, in one header, as each costs two processes time.

In this order: what begins with the id of the prediction, the protocol, the edge's own limit for one request in seconds,
and over gRPC the client's `grpc-timeout`.
"""
ID_CHARACTERS = 36
"""Of a prediction's id: when the request reached the edge, and 60 random bits.

`1795000000.250000-0b6c9d1e-8f2a-4c3d`: the time, in seconds since 1970, is where a label finds the prediction again.
"""
ARRIVAL_CHARACTERS = 17
REPLAY_HEADER = "x-shipway-replay"
# Set by the handler on answers; removed by the edge.
GRPC_STATUS_HEADER = "x-shipway-grpc-status"
GRPC_MESSAGE_HEADER = "x-shipway-grpc-message"

SHADOW = "shadow"
"""What it says of a copy of a client's request, whose answer nobody sees."""

NO_ID = "-"
BY_NODE = "1"
"""What it says of a request of the node itself."""
REPLAY = {CALL_HEADER: f"{NO_ID} {HTTP}", REPLAY_HEADER: BY_NODE}
"""Headers with which the node itself asks for a prediction that is not counted."""

MAX_GRPC_MESSAGE_BYTES = 1024
_GRPC_MESSAGE_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # with letters and digits, printable ASCII without %

_STATUS: dict[type[HandlerError], tuple[int, int]] = {
    # error -> HTTP status, gRPC status
    InvalidRequest: (400, 3),
    UnsupportedContentType: (415, 3),
    UnsupportedEncoding: (415, 12),
    DeadlineExpired: (504, 4),
}
_NOT_SAID = [NO_ID, ROWS]
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(slots=True)
class Answer:
    """What goes back: headers beside the content type only where there are any."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make, for every request
class Call:
    """One item of a batch, and its answer once it has one."""

    protocol: str
    arrived_at: float | None
    """When the request reached the edge, in seconds since 1970; None where the edge did not say."""
    content_type: str
    body: memoryview
    headers: Mapping[str, str]
    id: str = NO_ID
    """Of the prediction; the client has it from the answer's x-shipway-prediction-id."""
    seconds: float = inf
    """How long after its arrival somebody waits for the answer."""
    replay: str = ""
    """Why no client waits for the answer, which is then not counted; empty where one does."""
    answer: Answer | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes | bytearray | memoryview) -> "Call":
        """`headers` by lower-case names."""
        said = headers.get(CALL_HEADER)
        parts = said.split(" ") if said else _NOT_SAID
        said_id = parts[0][:ID_CHARACTERS]
        call = cls(parts[1], None, headers.get("content-type", ""), memoryview(body), headers, said_id)
        call.replay = headers.get(REPLAY_HEADER, "")
        if len(parts) > 2:
            call.arrived_at, call.seconds = float(said_id[:ARRIVAL_CHARACTERS]), float(parts[2])
            if len(parts) > 3:
                call.seconds = min(call.seconds, _grpc_timeout(parts[3]))
        return call

    def check_content_type(self, allowed: tuple[str, ...]) -> None:
        """Raises UnsupportedContentType, and UnsupportedEncoding for a body that is still compressed."""
        if self.content_type not in allowed:
            found = self.content_type.partition(";")[0].strip().lower()
            if found and found not in allowed:
                raise UnsupportedContentType(found, allowed)
        encoding = self.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedEncoding(encoding)

    def check_deadline(self, now: float) -> None:
        """Raises DeadlineExpired where nobody waits for an answer any more; `now` in seconds since 1970."""
        if self.arrived_at is not None and now - self.arrived_at > self.seconds:
            raise DeadlineExpired(now - self.arrived_at, self.seconds)


def fail(call: Call, error: HandlerError) -> Answer:
    """The answer of one item that got no prediction."""
    http_status, grpc_status = _STATUS.get(type(error), (400, 3) if isinstance(error, RequestRefused) else (500, 13))
    if call.protocol == GRPC:
        headers = {GRPC_STATUS_HEADER: str(grpc_status), GRPC_MESSAGE_HEADER: grpc_message(str(error))}
        return Answer(b"", "application/x-protobuf", headers=headers)
    return Answer(orjson.dumps({"error": str(error)}), status=http_status)


def _grpc_timeout(text: str) -> float:
    """Seconds of a `grpc-timeout`: at most eight digits and a unit. Anything else is no deadline."""
    digits, unit = text[:-1], text[-1:]
    valid = digits.isascii() and digits.isdigit() and len(digits) <= 8 and unit in _GRPC_UNITS
    return int(digits) * _GRPC_UNITS[unit] if valid else inf


def grpc_message(text: str) -> str:
    """`text` percent-encoded by gRPC's rule and at most 1 KiB, cut between characters."""
    text = text[:MAX_GRPC_MESSAGE_BYTES]
    while len(encoded := quote(text, safe=_GRPC_MESSAGE_SAFE)) > MAX_GRPC_MESSAGE_BYTES:
        # A character is at most twelve bytes of escapes, so this removes none too many and soon ends.
        text = text[: -max(1, (len(encoded) - MAX_GRPC_MESSAGE_BYTES) // 12)]
    return encoded
