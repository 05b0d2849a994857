"""Whatever a client can get wrong gets a 4xx, or gRPC's INVALID_ARGUMENT and NOT_FOUND, in words; never a 5xx."""

import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from handlers.protocol.messages import ModelInferRequest
from tests.integration.clients import call, post
from tests.integration.conftest import Lab

INFER, ROWS = "/v2/models/flights/infer", "/predictions/flights"

Row = dict[str, Any]


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


ROW_MISTAKES: dict[str, tuple[Callable[[Row], object], str]] = {
    "wrong JSON": (lambda _: b'{"dep_delay": 1', "body: not JSON"),
    "NaN in JSON": (lambda _: b'{"dep_delay": NaN}', "body: not JSON"),
    "neither object nor list": (lambda _: 3, "row 0: wrong type; found 3; allowed: an object of dep_delay"),
    "missing column": (lambda row: without(row, "carrier"), "row 0: missing carrier; allowed: dep_delay"),
    "unknown column": (lambda row: {**row, "arr_delay": 3}, "row 0: unknown 'arr_delay'; allowed: dep_delay"),
    "text for a number": (lambda row: {**row, "dep_delay": "4"}, "column 'dep_delay', row 0: wrong type; found '4'"),
    "true for a number": (lambda row: {**row, "dep_delay": True}, "column 'dep_delay', row 0: wrong type; found true"),
    "number for text": (lambda row: {**row, "carrier": 7}, "column 'carrier', row 0: wrong type; found 7"),
    "missing value": (
        lambda row: {**row, "dep_delay": None},
        "column 'dep_delay', row 0: wrong value; found a missing",
    ),
    "too large": (
        lambda row: {**row, "dep_delay": 1e39},
        "column 'dep_delay', row 0: wrong value; found a number that",
    ),
    "empty batch": (lambda _: [], "body: empty batch; found no rows; allowed: at least one row"),
    "second row": (lambda row: [row, {**row, "temp": "x"}], "column 'temp', row 1: wrong type; found 'x'"),
}


@pytest.mark.parametrize("mistake", ROW_MISTAKES)
def test_rows(lab: Lab, mistake: str) -> None:
    make, words = ROW_MISTAKES[mistake]
    status, headers, body = post(lab.port, ROWS, make(lab.row()))
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["error"].startswith(words)


TENSOR_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({"inputs": []}, "inputs: at least one input is needed"),
    "unknown datatype": ({"datatype": "FP128"}, "input 'dep_delay': unknown datatype; found 'FP128'; allowed: BOOL"),
    "wrong datatype": ({"datatype": "BYTES", "data": ["1"]}, "input 'dep_delay': wrong datatype for a number column"),
    "wrong shape": ({"shape": [1, 2], "data": [1, 2]}, "input 'dep_delay': wrong shape; found [1, 2]; allowed: [rows]"),
    "shape and data": ({"data": [1, 2]}, "input 'dep_delay': the data does not fill shape [1]; found 2 values"),
    "negative shape": ({"shape": [-1]}, "input 'dep_delay': wrong shape; found [-1]"),
    "not a number": ({"data": ["1"]}, "input 'dep_delay', value 0: wrong type for FP32; found '1'"),
    "empty batch": ({"shape": [0], "data": []}, "inputs: empty batch; found no rows"),
    "more rows": (
        {"shape": [2], "data": [1, 2]},
        "input 'sched_dep_minute': not as many rows as the inputs before",
    ),
    "unknown input": ({"name": "delay"}, "columns: missing dep_delay; allowed: dep_delay"),
    "unknown output": ({"outputs": [{"name": "odds"}]}, "outputs: unknown output 'odds'; allowed: probability"),
    "bytes missing": (
        {"parameters": {"binary_data_size": 4}},
        "input 'dep_delay', binary_data_size: wrong size; found 4",
    ),
}


@pytest.mark.parametrize("mistake", TENSOR_MISTAKES)
def test_tensors(lab: Lab, mistake: str) -> None:
    change, words = TENSOR_MISTAKES[mistake]
    request = single(lab)
    for key, value in change.items():
        if key in ("inputs", "outputs"):
            request[key] = value
        else:
            request["inputs"][0][key] = value
    if mistake == "empty batch":
        for tensor in request["inputs"]:
            tensor.update(change)
    status, _, body = post(lab.port, INFER, request)
    assert status == 400
    assert json.loads(body)["error"].startswith(words)


def single(lab: Lab) -> dict[str, Any]:
    """An Open Inference request of one row."""
    tensors = [{**t, "shape": [1], "data": t["data"][:1]} for t in lab.golden["request"]["inputs"]]
    return {"inputs": tensors}


def test_an_unknown_category_counts_as_other_where_that_was_trained(lab: Lab) -> None:
    status, _, _ = post(lab.port, ROWS, {**lab.row(), "carrier": "never seen"})
    assert status == 200


@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        (
            "/v2/models/flights/versions/9/infer",
            "POST",
            404,
            "version '9' of model 'flights' is not served here; served",
        ),
        ("/predictions/flights/9", "POST", 404, "version '9' of model 'flights' is not served here; served: 1, 2"),
        ("/v2/models/boats/infer", "POST", 404, "model 'boats' is not served here; served: flights"),
        ("/v2/models/boats", "GET", 404, "model 'boats' is not served here"),
        (INFER, "GET", 405, "GET is not allowed here; allowed: POST"),
        ("/models", "GET", 404, "no such path; this node serves /v2"),
        ("/predictions/flights/../../models", "POST", 404, "no such path"),
        ("/workflows?url=http://example.invalid/w.war", "POST", 404, "no such path"),
    ],
)
def test_what_is_not_there(lab: Lab, path: str, method: str, status: int, words: str) -> None:
    found, _, body = post(lab.port, path, None if method == "GET" else lab.row(), method=method)
    assert found == status
    assert json.loads(body)["error"].startswith(words)


@pytest.mark.parametrize("path", [INFER, ROWS])
@pytest.mark.parametrize("content_type", ["text/csv", "multipart/form-data; boundary=x", "application/x-protobuf"])
def test_content_type(lab: Lab, path: str, content_type: str) -> None:
    status, _, body = post(lab.port, path, b"1,2", {"content-type": content_type})
    assert status == 415
    assert json.loads(body)["error"].startswith(f"content-type: '{content_type.partition(';')[0]}' is not read here")


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd"])
def test_compression_that_is_not_unpacked_is_refused_in_words(lab: Lab, encoding: str) -> None:
    status, _, body = post(lab.port, ROWS, b"\x1f\x8b", {"content-encoding": encoding})
    assert status == 415
    words = f"content-encoding: '{encoding}' is not unpacked here; allowed: identity, gzip"
    assert json.loads(body)["error"] == words


def test_body_that_is_no_gzip_is_refused(lab: Lab) -> None:
    status, _, body = post(lab.port, ROWS, b"\x1f\x8bno", {"content-encoding": "gzip"})
    assert status == 400
    assert json.loads(body)["error"].startswith("body: not JSON")


@pytest.mark.parametrize("path", [INFER, ROWS])
def test_body_that_unpacks_to_more_than_the_limit(lab: Lab, path: str) -> None:
    limit = lab.settings.max_body_bytes
    bomb = gzip.compress(b"[" + b" " * limit + b"]")
    assert len(bomb) < limit / 100
    status, _, body = post(lab.port, path, bomb, {"content-encoding": "gzip"})
    assert status == 413
    assert json.loads(body)["error"].startswith(f"the request body is larger than {limit} bytes")
    # Just below the limit it is read, and found wanting.
    status, _, body = post(lab.port, path, gzip.compress(b" " * (limit - 2) + b"{}"), {"content-encoding": "gzip"})
    assert status == 400
    assert not json.loads(body)["error"].startswith("body: not JSON")


@pytest.mark.parametrize("path", [INFER, ROWS])
def test_body_over_the_limit(lab: Lab, path: str) -> None:
    limit = lab.settings.max_body_bytes
    status, _, body = post(lab.port, path, b"[" + b" " * limit + b"]")
    assert status == 413
    assert json.loads(body)["error"].startswith(f"the request body is larger than {limit} bytes")
    status, _, _ = post(lab.port, path, b" " * (limit - 2) + b"{}")
    assert status == 400  # just below the limit it is read, and found wanting


def request_of(lab: Lab) -> Any:
    message = ModelInferRequest(model_name="flights")
    for tensor in single(lab)["inputs"]:
        message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=[1])
        value = tensor["data"][0]
        text = len(value).to_bytes(4, "little") + value.encode() if tensor["datatype"] == "BYTES" else None
        raw = text or np.array([np.nan if value is None else value], dtype=np.float32).tobytes()
        message.raw_input_contents.append(raw)
    return message


def grpc_error(lab: Lab, body: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(lab.port, "ModelInfer", body)
    error: Any = caught.value
    return error.code(), error.details()


def _change(field: str, value: object) -> Callable[[Any], None]:
    return lambda message: setattr(message, field, value)


def _set_raw(message: Any, raw: bytes) -> None:
    message.raw_input_contents[0] = raw


GRPC_MISTAKES: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "unknown model": (_change("model_name", "boats"), "NOT_FOUND", "model 'boats' is not served here"),
    "unknown version": (
        _change("model_version", "9"),
        "NOT_FOUND",
        "version '9' of model 'flights' is not served here",
    ),
    "impossible version": (_change("model_version", "1/../2"), "NOT_FOUND", "version '1/../2' of model 'flights'"),
    "no model": (_change("model_name", ""), "INVALID_ARGUMENT", "model_name: the name of a model is needed"),
    "raw too short": (lambda m: _set_raw(m, b"\0"), "INVALID_ARGUMENT", "input 'dep_delay': raw bytes do not fit"),
    "NaN": (lambda m: _set_raw(m, np.float32("nan").tobytes()), "INVALID_ARGUMENT", "column 'dep_delay', row 0"),
    "infinity": (lambda m: _set_raw(m, np.float32("inf").tobytes()), "INVALID_ARGUMENT", "column 'dep_delay', row 0"),
    "raw missing": (lambda m: m.raw_input_contents.pop(), "INVALID_ARGUMENT", "raw_input_contents: one entry for each"),
}


@pytest.mark.parametrize("mistake", GRPC_MISTAKES)
def test_grpc(lab: Lab, mistake: str) -> None:
    change, code, words = GRPC_MISTAKES[mistake]
    message = request_of(lab)
    change(message)
    found, details = grpc_error(lab, message.SerializeToString())
    assert found.name == code
    assert details.startswith(words)


def test_grpc_routes_by_the_head_alone_and_says_so(lab: Lab) -> None:
    message = request_of(lab)
    version = ModelInferRequest(model_version="2").SerializeToString()
    found, details = grpc_error(lab, message.SerializeToString() + version)
    assert found is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "model_version: must stand at the head of the message; found '2'; allowed: 1"
    message.model_name = ""
    found, details = grpc_error(lab, message.SerializeToString() + b"\x0a\x07flights")
    assert found is grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("model_name and model_version must be the first fields")


def test_grpc_body_over_the_limit(lab: Lab) -> None:
    found, details = grpc_error(lab, b"\x0a\x07flights\x3a" + b"\0" * lab.settings.max_body_bytes)
    assert found is grpc.StatusCode.RESOURCE_EXHAUSTED  # gRPC's own word for it
    assert details.startswith("the request body is larger than")


def test_neighbours_of_a_bad_request_get_their_answers(lab: Lab) -> None:
    """16 at once, every other one wrong, again and again, so that batches mix them."""
    answers: dict[int, list[tuple[int, bytes]]] = {index: [] for index in range(16)}

    def ask(index: int) -> None:
        body = lab.row(index) if index % 2 else without(lab.row(index), "dest")
        for _ in range(20):
            status, _, answer = post(lab.port, ROWS, body)
            answers[index].append((status, answer))

    threads = [threading.Thread(target=ask, args=(index,)) for index in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, found in answers.items():
        if index % 2:
            assert {status for status, _ in found} == {200}
            probabilities = [json.loads(body)["probability"] for _, body in found]
            assert probabilities == pytest.approx([lab.expected()[index]] * 20, rel=1e-4, abs=1e-6)
        else:
            assert {status for status, _ in found} == {400}
            assert {json.loads(body)["error"][:19] for _, body in found} == {"row 0: missing dest"}
