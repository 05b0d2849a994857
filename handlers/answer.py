"""One request as TorchServe hands it over and its answer as TorchServe wants it, for every protocol.

The edge (Envoy) tells by headers how a request came in; it turns what an answer says in headers into the client's
status. TorchServe itself always sees a success: it closes the connection after any other, and fails the whole batch.
"""

import time
from dataclasses import dataclass
from typing import Any
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
PROTOCOLS = (HTTP, GRPC, ROWS)

# Set by the edge on requests; a client's own are removed there.
PROTOCOL_HEADER = "x-shipway-protocol"
CONTENT_TYPE_HEADER = "x-shipway-content-type"
START_HEADER = "x-shipway-start"
REPLAY_HEADER = "x-shipway-replay"
# Set by the handler on answers; removed by the edge.
STATUS_HEADER = "x-shipway-status"
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


@dataclass(frozen=True, slots=True)
class Call:
    """One item of a batch."""

    index: int
    protocol: str
    body: memoryview
    headers: dict[str, Any]

    @classmethod
    def read(cls, index: int, data: dict[str, Any], context: Any) -> "Call":
        headers = context.get_all_request_header(index)
        return cls(index, headers.get(PROTOCOL_HEADER, ROWS), memoryview(data.get("body", b"")), headers)

    def check_content_type(self, allowed: tuple[str, ...]) -> None:
        """Raises UnsupportedContentType, and UnsupportedEncoding for a compressed body."""
        found = str(self.headers.get(CONTENT_TYPE_HEADER, "")).partition(";")[0].strip().lower()
        if found and found not in allowed:
            raise UnsupportedContentType(found, allowed)
        for field in ("content-encoding", "grpc-encoding"):
            encoding = str(self.headers.get(field, "identity"))
            if encoding != "identity":
                raise UnsupportedEncoding(field, encoding)

    @property
    def replay(self) -> bool:
        """Whether the node itself asks: answered as always, but not counted."""
        return REPLAY_HEADER in self.headers

    def seconds_since_arrival(self) -> float | None:
        """Time since the request reached the edge; both read the same machine's clock."""
        try:
            return time.time() - float(self.headers[START_HEADER])
        except (KeyError, ValueError):
            return None


def succeed(context: Any, index: int, body: bytes, content_type: str, headers: dict[str, str]) -> bytes:
    context.set_response_header(index, "content-type", content_type)
    for name, value in headers.items():
        context.set_response_header(index, name, value)
    return body


def fail(context: Any, call: Call, error: HandlerError) -> bytes:
    """The answer of one item that got no prediction."""
    http_status, grpc_status = _STATUS.get(type(error), (400, 3) if isinstance(error, RequestRefused) else (500, 13))
    context.set_response_header(call.index, STATUS_HEADER, str(http_status))
    if call.protocol == GRPC:
        context.set_response_header(call.index, "content-type", "application/x-protobuf")
        context.set_response_header(call.index, GRPC_STATUS_HEADER, str(grpc_status))
        context.set_response_header(call.index, GRPC_MESSAGE_HEADER, grpc_message(str(error)))
        return b""
    context.set_response_header(call.index, "content-type", "application/json")
    return orjson.dumps({"error": str(error)})


def grpc_message(text: str) -> str:
    """`text` percent-encoded by gRPC's rule and at most 1 KiB, cut between characters."""
    text = text[:MAX_GRPC_MESSAGE_BYTES]
    while len(encoded := quote(text, safe=_GRPC_MESSAGE_SAFE)) > MAX_GRPC_MESSAGE_BYTES:
        # A character is at most twelve bytes of escapes, so this removes none too many and soon ends.
        text = text[: -max(1, (len(encoded) - MAX_GRPC_MESSAGE_BYTES) // 12)]
    return encoded
