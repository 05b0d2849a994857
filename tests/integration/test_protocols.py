"""Asking a served version over every protocol, with public clients and by hand."""

import contextlib
import gzip
import json
import queue
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from handlers.protocol.messages import SERVICE, ModelInferRequest
from tests.integration.clients import call, post
from tests.integration.conftest import Lab, samples
from tests.waiting import wait_for

PROVENANCE = ("x-shipway-model", "x-shipway-version", "x-shipway-digest", "x-shipway-prediction-id", "x-request-id")
INFER = "/v2/models/flights/infer"


def arrays(lab: Lab) -> dict[str, npt.NDArray[Any]]:
    """The golden inputs as numpy arrays."""
    found = {}
    for tensor in lab.golden["request"]["inputs"]:
        if tensor["datatype"] == "BYTES":
            found[tensor["name"]] = np.array([value.encode() for value in tensor["data"]], dtype=object)
        else:
            values = [np.nan if value is None else value for value in tensor["data"]]
            found[tensor["name"]] = np.array(values, dtype=np.float32)
    return found


def complete_rows(lab: Lab) -> npt.NDArray[np.intp]:
    """Rows without a missing number: the public client writes NaN into its JSON, which JSON does not have."""
    numbers = np.stack([values for values in arrays(lab).values() if values.dtype != object])
    return np.flatnonzero(~np.isnan(numbers).any(axis=0))


def inputs(lab: Lab, module: Any, chosen: Any = slice(None), **options: bool) -> list[Any]:
    found = []
    for name, every in arrays(lab).items():
        values = every[chosen]
        datatype = "BYTES" if values.dtype == object else "FP32"
        tensor = module.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values, **options)
        found.append(tensor)
    return found


def close(lab: Lab, found: Any, chosen: Any = slice(None)) -> bool:
    return bool(np.allclose(found, np.array(lab.expected())[chosen], rtol=1e-5, atol=1e-6))


def test_every_protocol_gives_the_same_numbers(lab: Lab) -> None:
    rows = [lab.row(index) for index in range(len(lab.expected()))]
    _, _, plain = post(lab.port, "/predictions/flights", rows)
    _, _, oip = post(lab.port, INFER, lab.golden["request"])
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{lab.port}").infer("flights", inputs(lab, triton_http))
    over_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{lab.port}").infer("flights", inputs(lab, triton_grpc))
    from_rows = np.array([row["probability"] for row in json.loads(plain)], dtype=np.float32)
    from_json = np.array(json.loads(oip)["outputs"][0]["data"], dtype=np.float32)
    from_http, from_grpc = over_http.as_numpy("probability"), over_grpc.as_numpy("probability")
    assert close(lab, from_rows)
    for other in (from_json, from_http, from_grpc):
        np.testing.assert_array_equal(other, from_rows)


@pytest.mark.parametrize("binary", [True, False])
def test_public_http_client(lab: Lab, binary: bool) -> None:
    client = triton_http.InferenceServerClient(f"127.0.0.1:{lab.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("flights")
    assert client.is_model_ready("flights", "2")
    assert not client.is_model_ready("flights", "3")
    assert client.get_server_metadata()["name"] == "shipway"
    metadata = client.get_model_metadata("flights")
    assert metadata["versions"] == ["1", "2"]
    assert {tensor["name"] for tensor in metadata["inputs"]} == arrays(lab).keys()
    wanted = [triton_http.InferRequestedOutput("probability", binary_data=binary)]
    chosen = slice(None) if binary else complete_rows(lab)
    tensors = inputs(lab, triton_http, chosen, binary_data=binary)
    answer = client.infer("flights", tensors, outputs=wanted, request_id="mine")
    assert close(lab, answer.as_numpy("probability"), chosen)
    assert answer.get_response()["id"] == "mine"
    assert answer.get_response()["model_version"] == "1"


def test_public_grpc_client(lab: Lab) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{lab.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("flights")
    assert client.is_model_ready("flights", "2")
    assert client.get_server_metadata().name == "shipway"
    metadata = client.get_model_metadata("flights")
    assert list(metadata.versions) == ["1", "2"]
    assert {tensor.name for tensor in metadata.inputs} == arrays(lab).keys()
    answer = client.infer("flights", inputs(lab, triton_grpc), request_id="mine")
    assert close(lab, answer.as_numpy("probability"))
    assert answer.get_response().id == "mine"
    with pytest.raises(triton_grpc.InferenceServerException, match="version '3' of model 'flights'") as caught:
        client.get_model_metadata("flights", "3")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_a_pinned_version_answers_and_the_others_differ(lab: Lab) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{lab.port}")
    answers = {}
    for version in ("", "1", "2"):
        answer = client.infer("flights", inputs(lab, triton_grpc), model_version=version)
        answers[version] = answer.as_numpy("probability")
        assert answer.get_response().model_version == (version or "1")
    np.testing.assert_array_equal(answers[""], answers["1"])
    assert not np.allclose(answers["1"], answers["2"])
    for path in ("/v2/models/flights/versions/2/infer", "/predictions/flights/2"):
        body = lab.golden["request"] if "infer" in path else lab.row()
        _, headers, _ = post(lab.port, path, body)
        assert headers["x-shipway-version"] == "2"


def test_every_answer_says_where_it_came_from(lab: Lab) -> None:
    seen = set()
    for body in (lab.row(), {}):  # an error says so too
        status, headers, _ = post(lab.port, "/predictions/flights", body, {"x-request-id": "mine"})
        assert status == (200 if body else 400)
        assert headers["x-shipway-model"] == "flights"
        assert headers["x-shipway-version"] == "1"
        assert headers["x-shipway-digest"] == lab.first.digest
        assert headers["x-request-id"] == "mine"
        seen.add(headers["x-shipway-prediction-id"])
        assert not [name for name in headers if name.startswith("x-shipway") and name not in PROVENANCE]
        assert not [name for name in headers if name.startswith("x-envoy")]
    assert len(seen) == 2


def test_grpc_says_where_it_came_from_errors_too(lab: Lab) -> None:
    body = ModelInferRequest(model_name="flights").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(lab.port, "ModelInfer", body, (("x-request-id", "mine"),))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "inputs: at least one input is needed; found none; allowed: a list of tensors"
    metadata = dict(error.initial_metadata())
    assert metadata["x-shipway-version"] == "1"
    assert metadata["x-shipway-digest"] == lab.first.digest
    assert metadata["x-request-id"] == "mine"
    assert set(PROVENANCE) <= metadata.keys()


def test_what_a_client_says_in_our_headers_is_ignored(lab: Lab) -> None:
    ours = {
        "x-shipway-version": "2",
        "x-shipway-model": "other",
        "x-shipway-protocol": "oip_grpc",
        "x-shipway-prediction-id": "forged",
        "explain": "True",
        "describe": "True",
        "authorization": "Bearer forged",
    }
    status, headers, body = post(lab.port, "/predictions/flights", lab.row(), ours)
    assert status == 200
    assert headers["x-shipway-version"] == "1"
    assert headers["x-shipway-prediction-id"] != "forged"
    assert json.loads(body)["probability"] == pytest.approx(lab.expected()[0], rel=1e-5)
    assert call(lab.port, "ServerReady", b"", (("x-shipway-model", "other"),)) == b"\x08\x01"


def test_typed_grpc_contents_are_read_as_raw_ones_are(lab: Lab) -> None:
    request = ModelInferRequest(model_name="flights")
    for name, values in arrays(lab).items():
        tensor = request.inputs.add(name=name, datatype="BYTES" if values.dtype == object else "FP32", shape=[128])
        contents = tensor.contents.bytes_contents if values.dtype == object else tensor.contents.fp32_contents
        contents.extend(values.tolist())
    answer = call(lab.port, "ModelInfer", request.SerializeToString())
    assert np.frombuffer(answer[-4 * 128 :], dtype=np.float32) == pytest.approx(lab.expected(), rel=1e-5)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64", "INT32"])
def test_any_datatype_of_numbers_is_read(lab: Lab, datatype: str) -> None:
    """Small whole numbers are the same in all of them, over HTTP and gRPC."""
    names = [name for name, values in arrays(lab).items() if values.dtype != object]
    rows = [{**lab.row(index), **dict.fromkeys(names, 2)} for index in range(4)]
    _, _, plain = post(lab.port, "/predictions/flights", rows)
    expected = [row["probability"] for row in json.loads(plain)]
    for module in (triton_http, triton_grpc):
        tensors = []
        for tensor in inputs(lab, module, slice(4)):
            if tensor.name() in names:
                twos = np.full(4, 2, dtype=triton_to_np_dtype(datatype))
                tensors.append(module.InferInput(tensor.name(), [4], datatype).set_data_from_numpy(twos))
            else:
                tensors.append(tensor)
        answer = module.InferenceServerClient(f"127.0.0.1:{lab.port}").infer("flights", tensors)
        assert answer.as_numpy("probability").tolist() == pytest.approx(expected, rel=1e-6)


def test_gzip_both_ways_with_public_clients(lab: Lab) -> None:
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{lab.port}")
    compressed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    assert close(lab, over_http.infer("flights", inputs(lab, triton_http), **compressed).as_numpy("probability"))
    over_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{lab.port}")
    for version in ("1", "2"):
        tensors = inputs(lab, triton_grpc)
        answer = over_grpc.infer("flights", tensors, model_version=version, compression_algorithm="gzip")
        assert answer.get_response().model_version == version
        plain = over_grpc.infer("flights", tensors, model_version=version)
        np.testing.assert_array_equal(answer.as_numpy("probability"), plain.as_numpy("probability"))


def test_large_answer_is_compressed_for_who_accepts_it(lab: Lab) -> None:
    rows = [lab.row(index % 128) for index in range(1000)]
    _, headers, body = post(lab.port, "/predictions/flights", rows, {"accept-encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    _, plain_headers, plain = post(lab.port, "/predictions/flights", rows)
    assert "content-encoding" not in plain_headers
    assert json.loads(gzip.decompress(body)) == json.loads(plain)
    assert len(body) < len(plain)


def test_health_with_grpcs_own_client(lab: Lab) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{lab.port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "flights"):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
            assert health.Check(asked, timeout=10, compression=grpc.Compression.Gzip).status == 1
        unknown = health_pb2.HealthCheckRequest(service="boats")
        with pytest.raises(grpc.RpcError, match="model 'boats' is not served here") as caught:
            health.Check(unknown, timeout=10)
        assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError, match="Health/Watch is a streaming call") as caught:
            next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))
        assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED


def code_of(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def test_streaming_client_is_told_at_once(lab: Lab) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{lab.port}")
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    with contextlib.suppress(InferenceServerException):  # it may have been refused before that
        client.async_stream_infer("flights", inputs(lab, triton_grpc))
    _, error = answers.get(timeout=20)
    client.stop_stream(cancel_requests=True)
    assert "ModelStreamInfer is a streaming call" in str(error)


def test_trace_and_request_id_come_back_from_every_protocol(lab: Lab) -> None:
    trace = {
        "x-request-id": "mine",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "vendor=opaque",
    }
    for path, body in (("/predictions/flights", lab.row()), (INFER, lab.golden["request"]), (INFER, {})):
        _, headers, _ = post(lab.port, path, body, trace)
        assert trace.items() <= headers.items()
    with pytest.raises(grpc.RpcError) as caught:
        call(lab.port, "ModelInfer", ModelInferRequest(model_name="flights").SerializeToString(), tuple(trace.items()))
    error: Any = caught.value
    assert trace.items() <= dict(error.initial_metadata()).items()


def test_work_whose_deadline_has_passed_is_not_computed(lab: Lab) -> None:
    """Asked over HTTP/1.1, as a client's library sends nothing when it has no time."""
    expired = 'shipway_requests_total{model="flights",outcome="expired",protocol="oip_grpc",version="1"}'
    before = samples(lab.settings).get(expired, 0)
    message = ModelInferRequest(model_name="flights").SerializeToString()
    headers = {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": "1n"}
    status, _, _ = post(lab.port, f"/{SERVICE}/ModelInfer", b"\0" + len(message).to_bytes(4, "big") + message, headers)
    assert status == 200  # gRPC's own status is in the trailers
    wait_for(lambda: samples(lab.settings).get(expired, 0) == before + 1, 10)
