"""One request as a worker receives it and its answer as the edge wants it, for every protocol.

The edge (Envoy) tells by a header how a request came in. An error is the item's own status, never an exception, which
would fail the whole batch; over gRPC it stands in headers that the edge turns into gRPC's trailers.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import orjson

from handlers.errors import (
    HandlerError,
    InvalidRequest,
    RequestRefused,
    UnsupportedContentType,
    UnsupportedEncoding,
)

HTTP, GRPC, ROWS = "oip_http", "oip_grpc", "predictions"

EXPLAINER = "-explainer"
"""What the name of a model ends with where its archive is registered once more, to explain and not to predict."""

# Set by the edge on requests; a client's own are removed there.
CALL_HEADER = "x-shipway-call"
"""Protocol and time of arrival, in seconds since 1970: in one header, as each costs two processes time."""
REPLAY_HEADER = "x-shipway-replay"
# Set by the handler on answers; removed by the edge.
GRPC_STATUS_HEADER = "x-shipway-grpc-status"
GRPC_MESSAGE_HEADER = "x-shipway-grpc-message"

MAX_GRPC_MESSAGE_BYTES = 1024
_GRPC_MESSAGE_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # with letters and digits, printable ASCII without %

_STATUS: dict[type[HandlerError], tuple[int, int]] = {
    # error -> HTTP status, gRPC status
    InvalidRequest: (400, 3),
    UnsupportedContentType: (415, 3),
    UnsupportedEncoding: (415, 12),
}


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
    answer: Answer | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes | bytearray | memoryview) -> "Call":
        """`headers` by lower-case names."""
        protocol, _, arrived = headers.get(CALL_HEADER, ROWS).partition(" ")
        content_type = headers.get("content-type", "")
        return cls(protocol, float(arrived) if arrived else None, content_type, memoryview(body), headers)

    def check_content_type(self, allowed: tuple[str, ...]) -> None:
        """Raises UnsupportedContentType, and UnsupportedEncoding for a compressed body."""
        found = self.content_type.partition(";")[0].strip().lower()
        if found and found not in allowed:
            raise UnsupportedContentType(found, allowed)
        for name in ("content-encoding", "grpc-encoding"):
            encoding = self.headers.get(name, "identity")
            if encoding != "identity":
                raise UnsupportedEncoding(name, encoding)

    @property
    def replay(self) -> bool:
        """Whether the node itself asks: answered as always, but not counted."""
        return REPLAY_HEADER in self.headers

    def seconds_since_arrival(self) -> float | None:
        """Time since the request reached the edge; both read the same machine's clock."""
        return None if self.arrived_at is None else time.time() - self.arrived_at


def fail(call: Call, error: HandlerError) -> Answer:
    """The answer of one item that got no prediction."""
    http_status, grpc_status = _STATUS.get(type(error), (400, 3) if isinstance(error, RequestRefused) else (500, 13))
    if call.protocol == GRPC:
        headers = {GRPC_STATUS_HEADER: str(grpc_status), GRPC_MESSAGE_HEADER: grpc_message(str(error))}
        return Answer(b"", "application/x-protobuf", headers=headers)
    return Answer(orjson.dumps({"error": str(error)}), status=http_status)


def grpc_message(text: str) -> str:
    """`text` percent-encoded by gRPC's rule and at most 1 KiB, cut between characters."""
    text = text[:MAX_GRPC_MESSAGE_BYTES]
    while len(encoded := quote(text, safe=_GRPC_MESSAGE_SAFE)) > MAX_GRPC_MESSAGE_BYTES:
        # A character is at most twelve bytes of escapes, so this removes none too many and soon ends.
        text = text[: -max(1, (len(encoded) - MAX_GRPC_MESSAGE_BYTES) // 12)]
    return encoded
