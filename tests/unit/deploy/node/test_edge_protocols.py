"""What the real Envoy does with gzip, gRPC calls and trace headers, before anybody behind it sees a request."""

import gzip
import json
import random
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.node.routes import FEEDBACK
from handlers.answer import CALL_HEADER
from handlers.protocol.messages import HEALTH_SERVICE, SERVICE, ModelInferRequest
from tests.unit.deploy.node.real_edge import Answer, RealEdge, wait_for_line

MIB = 1 << 20
INFER = f"/{SERVICE}/ModelInfer"
PATHS = ("/predictions/flights/1", "/v2/models/flights/versions/1/infer")


@pytest.fixture(scope="module")
def channel(real: RealEdge) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"{real.edge.host}:{real.edge.port}") as opened:
        yield opened


def call(channel: grpc.Channel, path: str, message: bytes, **options: Any) -> tuple[Any, dict[str, str]]:
    """What the server behind the edge saw, and the initial metadata. Raises grpc.RpcError."""
    unary: Any = channel.unary_unary(path)
    answer, done = unary.with_call(message, timeout=10, **options)
    return json.loads(answer), dict(done.initial_metadata())


def infer(version: str = "1", size: int = 1000) -> bytes:
    message = ModelInferRequest(model_name="flights", model_version=version, raw_input_contents=[b"x" * size])
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("path", PATHS)
def test_gzip_is_unpacked_before_a_worker_sees_it(real: RealEdge, path: str) -> None:
    body = b"[1, 2, 3]" * 100
    answer = real.ask("POST", path, gzip.compress(body), content_encoding="gzip", content_type="application/json")
    assert answer.status == 200
    assert (answer.seen["size"], answer.seen["body"]) == (len(body), body.decode())
    assert answer.seen["headers"]["content-length"] == str(len(body))
    assert "content-encoding" not in answer.seen["headers"]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd"])
def test_other_encodings_are_for_the_worker_to_refuse(real: RealEdge, encoding: str) -> None:
    answer = real.ask("POST", PATHS[0], b"\x78\x9c", content_encoding=encoding)
    assert answer.seen["headers"]["content-encoding"] == encoding


def bomb(size: int) -> bytes:
    """At most `size` bytes of gzip that unpack to a thousand times as many; their end is missing."""
    packer = zlib.compressobj(wbits=31)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * ((size - len(head)) // len(block))


def largest_bytes(real: RealEdge) -> int:
    """The most memory that Envoy ever had."""
    status = Path(f"/proc/{real.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("path", PATHS)
def test_bomb_is_refused_without_being_unpacked_whole(real: RealEdge, path: str) -> None:
    before = largest_bytes(real)
    answer = real.ask("POST", path, bomb(real.edge.max_body_bytes), content_encoding="gzip")
    assert answer.status == 413
    assert str(real.edge.max_body_bytes) in json.loads(answer.body)["error"]
    assert largest_bytes(real) - before < 200 * MIB  # of 1000


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"{}" * 1000)[:-20], b"\x1f\x8b\x08" + b"\xff" * 50])
def test_body_that_is_no_gzip_harms_nobody(real: RealEdge, body: bytes) -> None:
    answer = real.ask("POST", PATHS[0], body, content_encoding="gzip")
    assert answer.status == 200
    assert answer.seen["size"] < 2000


@pytest.mark.parametrize("path", PATHS)
def test_answer_is_packed_for_who_accepts_it(real: RealEdge, path: str) -> None:
    accepted = real.ask("POST", path, b"{}", accept_encoding="gzip, deflate", x_test_bytes="10000")
    assert accepted.headers["content-encoding"] == "gzip"
    assert len(accepted.body) < 1000
    assert len(gzip.decompress(accepted.body)) == 10000
    assert accepted.headers["x-shipway-version"] == "1"
    for encoding in ("identity", "br", "gzip;q=0"):
        plain = real.ask("POST", path, b"{}", accept_encoding=encoding, x_test_bytes="10000")
        assert "content-encoding" not in plain.headers
        assert len(plain.body) == 10000


@pytest.mark.parametrize("path", PATHS)
def test_filters_are_only_for_who_needs_them(real: RealEdge, path: str) -> None:
    """The filter that packs says `vary` of every answer that it might have packed."""
    refusing = real.ask("POST", path, b"{}", accept_encoding="gzip;q=0", x_test_bytes="10000")
    assert refusing.headers["vary"] == "Accept-Encoding"
    bare = (
        f"POST {path} HTTP/1.1\r\nx-test-bytes: 10000\r\nconnection: close\r\ncontent-length: 2\r\nhost: a\r\n\r\n{{}}"
    )
    for headers in ("", "accept-encoding: identity\r\n"):
        with socket.create_connection((real.edge.host, real.edge.port)) as client:
            client.sendall(bare.replace("host", f"{headers}host").encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nvary:" not in answer


def test_small_answer_is_not_packed(real: RealEdge) -> None:
    assert "content-encoding" not in real.ask("POST", PATHS[0], b"{}", accept_encoding="gzip").headers


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("version", ["1", "3"])
def test_grpc_call_is_routed_by_its_message(channel: grpc.Channel, version: str, compression: grpc.Compression) -> None:
    message = infer(version)
    seen, metadata = call(channel, INFER, message, compression=compression, metadata=(("x-request-id", "mine"),))
    assert seen["server"] == f"flights/{version}"
    assert (seen["size"], seen["body"]) == (len(message), message[:1000].decode("latin-1"))
    assert metadata["x-shipway-version"] == version
    assert metadata["x-request-id"] == "mine"
    prediction, protocol, *_ = seen["headers"][CALL_HEADER].split(" ")
    assert protocol == "oip_grpc"
    assert metadata["x-shipway-prediction-id"] == prediction[:36]
    assert "content-encoding" not in seen["headers"]


def test_grpc_message_that_does_not_become_smaller_is_sent_as_it_is(channel: grpc.Channel) -> None:
    """The library then says so in the message's frame, and only there."""
    message = infer("3", size=0)
    seen, _ = call(channel, INFER, message, compression=grpc.Compression.Gzip)
    assert (seen["server"], seen["body"]) == ("flights/3", message.decode("latin-1"))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("path", [f"/{SERVICE}/ModelReady", f"/{HEALTH_SERVICE}/Check", INFER])
def test_other_calls_go_to_the_launcher(channel: grpc.Channel, path: str, compression: grpc.Compression) -> None:
    message = b"\x0a\x80\x04" + b"a" * 512
    seen, metadata = call(channel, path, message, compression=compression)
    assert (seen["server"], seen["path"], seen["body"]) == ("control", path, message.decode("latin-1"))
    assert "x-shipway-version" not in metadata


def refused(channel: grpc.Channel, path: str, message: bytes, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, path, message, **options)
    return caught.value


def test_message_over_the_limit_is_refused_in_words(channel: grpc.Channel) -> None:
    error: Any = refused(channel, INFER, infer(size=MIB))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details().startswith(f"the request body is larger than {MIB} bytes")
    seen, _ = call(channel, INFER, infer(size=MIB - 100))
    assert seen["server"] == "flights/1"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (infer(size=2 * MIB), f"the request body is larger than {MIB} bytes, the most that this node takes; unpacked"),
        (infer(size=MIB // 2), "a packed message may become 100 times as large at most"),
        (
            random.Random(1).randbytes(MIB // 4).hex().encode(),
            f"a packed message may have {MIB // 8} bytes at most, and this one has",
        ),
    ],
)
def test_packed_message_that_becomes_too_large_is_refused_in_words(
    channel: grpc.Channel, message: bytes, words: str
) -> None:
    error: Any = refused(channel, INFER, message, compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details().startswith(words)


def test_grpc_bomb_that_lies_about_its_size_is_not_unpacked_whole(real: RealEdge) -> None:
    before = largest_bytes(real)
    lying = bomb(MIB // 8 - 4) + b"\1\0\0\0"
    answer = framed(real, lying, grpc_encoding="gzip")
    assert "x-shipway-version" not in answer.headers
    assert largest_bytes(real) - before < 50 * MIB  # of 130


def framed(real: RealEdge, message: bytes, **headers: str) -> Answer:
    """A gRPC call over HTTP/1.1, where a client's library hides nothing; its message is said to be packed."""
    frame = b"\1" + len(message).to_bytes(4, "big")
    return real.ask("POST", INFER, frame + message, content_type="application/grpc", te="trailers", **headers)


def test_encoding_that_is_not_unpacked_is_unimplemented_and_says_what_is(real: RealEdge, channel: grpc.Channel) -> None:
    error: Any = refused(channel, INFER, infer(), compression=grpc.Compression.Deflate)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == "grpc-encoding: this node unpacks identity and gzip alone"
    assert framed(real, infer(), grpc_encoding="deflate").headers["grpc-accept-encoding"] == "identity,gzip"


def test_deadline_of_the_client_is_said_to_the_worker(channel: grpc.Channel) -> None:
    seen, _ = call(channel, INFER, infer())
    *_, limit, timeout = seen["headers"][CALL_HEADER].split(" ")
    assert limit == "5"
    assert timeout[-1] in "mSun"
    unary: Any = channel.unary_unary(INFER)
    *_, timeout = json.loads(unary(infer()))["headers"][CALL_HEADER].split(" ")
    assert timeout == ""


@pytest.mark.parametrize("path", [f"/{SERVICE}/ModelStreamInfer", f"/{HEALTH_SERVICE}/Watch"])
def test_stream_is_refused_at_once_in_words(channel: grpc.Channel, path: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b""
        waiting.result()

    waiting: Any = grpc.channel_ready_future(grpc.insecure_channel("127.0.0.1:1"))
    stream: Any = channel.stream_stream(path)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            next(stream(endless(), timeout=10))
    finally:
        waiting.cancel()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details().startswith(f"{path[1:]} is a streaming call, and this node answers none; use ")


TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=opaque",
    "x-request-id": "my-request",
}


def test_trace_of_the_client_comes_back_and_is_logged(real: RealEdge) -> None:
    answer = real.ask("POST", PATHS[1], b"{}", **{name.replace("-", "_"): value for name, value in TRACE.items()})
    assert TRACE.items() <= answer.headers.items()
    line = wait_for_line(real.edge.access_log, answer.headers["x-shipway-prediction-id"])
    assert (line["traceparent"], line["tracestate"]) == (TRACE["traceparent"], TRACE["tracestate"])
    assert line["request_id"] == "my-request"


def test_trace_comes_back_over_grpc(channel: grpc.Channel) -> None:
    _, metadata = call(channel, INFER, infer(), metadata=tuple(TRACE.items()))
    assert TRACE.items() <= metadata.items()


def test_without_a_trace_only_a_request_id_is_made(real: RealEdge) -> None:
    answer = real.ask("POST", PATHS[0], b"{}")
    assert not {"traceparent", "tracestate"} & answer.headers.keys()
    assert len(answer.headers["x-request-id"]) == 36
    assert answer.headers["x-request-id"] != answer.headers["x-shipway-prediction-id"]


def test_feedback_goes_to_the_launcher(real: RealEdge) -> None:
    body = b'{"prediction_id": "x", "label": "late"}'
    plain = real.ask("POST", FEEDBACK, body, content_type="application/json")
    packed = real.ask("POST", FEEDBACK, gzip.compress(body), content_type="application/json", content_encoding="gzip")
    for answer in (plain, packed):
        assert (answer.seen["server"], answer.seen["body"]) == ("control", body.decode())
        assert "content-encoding" not in answer.seen["headers"]
    assert real.ask("GET", FEEDBACK).seen["server"] == "control"
    assert real.ask("POST", FEEDBACK, b"x" * ((1 << 20) + 1)).status == 413
    answer = real.ask("POST", f"{FEEDBACK}/flights", body)
    assert (answer.status, FEEDBACK in json.loads(answer.body)["error"]) == (404, True)
