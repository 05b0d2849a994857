"""OIP over HTTP: JSON and the binary tensor extension, against a public client's own writer and reader."""

from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import triton_to_np_dtype

from handlers.errors import InvalidRequest, RequestRefused
from handlers.protocol.oip_json import HEADER_LENGTH, content_type, decode, encode
from handlers.tensors import DATATYPES, NUMPY_DTYPES, InferRequest, Tensor

VALUES: dict[str, list[Any]] = {
    **{name: [0, 100] for name in NUMPY_DTYPES},
    "BOOL": [True, False],
    "FP16": [1.5, -2.0],
    "BF16": [1.5, -2.0],
    "FP32": [1.5, -2.0],
    "FP64": [0.1, 1e300],
    "UINT64": [0, 2**64 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "BYTES": ["JFK", "Å"],
}


def client_body(datatype: str, *, binary: bool) -> tuple[memoryview, str | None]:
    """What a public client sends: the body, and the header that says how much of it is JSON."""
    tensor = triton.InferInput("a", [2], datatype)
    array = np.array(VALUES[datatype], dtype=object if datatype == "BYTES" else triton_to_np_dtype(datatype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = triton.InferRequestedOutput("probability", binary_data=binary)
    body, length = triton.InferenceServerClient.generate_request_body([tensor], [wanted], request_id="id-1")
    return memoryview(body), None if length is None else str(length)


# The client sends these in binary only.
HALVES = ("FP16", "BF16")
FORMS = [(datatype, binary) for datatype in DATATYPES for binary in (False, True) if binary or datatype not in HALVES]


@pytest.mark.parametrize(("datatype", "binary"), FORMS)
def test_public_clients_tensors_are_read(datatype: str, binary: bool) -> None:
    request = decode(*client_body(datatype, binary=binary))
    assert request.id == "id-1"
    assert request.requested == ("probability",)
    assert request.binary == (frozenset({"probability"}) if binary else frozenset())
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("a", datatype, (2,))
    found = list(tensor.values)
    assert [value.decode() if isinstance(value, bytes) else value for value in found] == VALUES[datatype]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "INT64", "BOOL", "BYTES", "BF16"])
@pytest.mark.parametrize("binary", [False, True])
def test_answer_is_read_by_a_public_client(datatype: str, binary: bool) -> None:
    values: Any = VALUES[datatype]
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    else:
        values = np.array(values, dtype=NUMPY_DTYPES[datatype])
    request = InferRequest((), id="id-1", binary=None if binary else frozenset())
    body, headers = encode("tiny", "3", request, [Tensor("x", datatype, (2,), values)])
    length = int(headers[HEADER_LENGTH]) if binary else None
    result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("tiny", "3", "id-1")
    found = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("x").tolist()]
    assert found == VALUES[datatype]
    assert content_type(headers) == ("application/octet-stream" if binary else "application/json")


def test_only_the_outputs_that_were_asked_for_are_binary() -> None:
    outputs = [Tensor(name, "FP32", (1,), np.array([0.1], dtype=np.float32)) for name in ("x", "y")]
    body, headers = encode("tiny", "3", InferRequest((), binary=frozenset({"y"})), outputs)
    split = int(headers[HEADER_LENGTH])
    x, y = orjson.loads(body[:split])["outputs"]
    assert x == {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.1]}
    assert y == {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    assert body[split:] == np.float32(0.1).tobytes()


def test_no_id_and_no_number_are_answered_as_such() -> None:
    body, _ = encode("m", "1", InferRequest(()), [Tensor("x", "FP32", (1,), np.array([np.nan], dtype=np.float32))])
    assert orjson.loads(body) == {
        "model_name": "m",
        "model_version": "1",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [None]}],
    }


def request(*inputs: Any, **fields: Any) -> memoryview:
    return memoryview(orjson.dumps({"inputs": inputs, **fields}))


def item(data: Any = (1,), **fields: Any) -> dict[str, Any]:
    found = {"name": "a", "datatype": "FP32", "shape": [1], "data": data, **fields}
    return {name: value for name, value in found.items() if value is not ...}


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]], [[1, 2, 3], [4]]])
def test_nested_data_is_read_in_the_order_in_which_it_is_written(data: list[Any]) -> None:
    (tensor,) = decode(request(item(data, shape=[2, 2])), None).inputs
    assert list(tensor.values) == [1, 2, 3, 4]


def test_null_is_a_missing_number() -> None:
    (tensor,) = decode(request(item([None])), None).inputs
    assert np.isnan(tensor.values[0])


def test_all_outputs_may_be_asked_for_in_binary() -> None:
    every = {"binary_data_output": True}
    assert decode(request(item(), parameters=every), None).binary is None
    outputs = [{"name": "x"}, {"name": "y", "parameters": {"binary_data": False}}]
    assert decode(request(item(), parameters=every, outputs=outputs), None).binary == frozenset("x")


@pytest.mark.parametrize("datatype", HALVES)
def test_halves_may_be_written_as_numbers(datatype: str) -> None:
    (tensor,) = decode(request(item([1.5, None], datatype=datatype, shape=[2])), None).inputs
    np.testing.assert_array_equal(tensor.values, [1.5, np.nan])
    body, _ = encode("m", "1", InferRequest(()), [Tensor("x", datatype, (2,), tensor.values)])
    assert orjson.loads(body)["outputs"][0]["data"] == [1.5, None]


def test_several_inputs_and_parameters_reach_the_handler() -> None:
    parameters = {"steps": 50, "target": "late", "scale": 0.5, "deep": {"a": [1]}}
    found = decode(request(item(), item([True], name="b", datatype="BOOL"), parameters=parameters), None)
    assert [tensor.name for tensor in found.inputs] == ["a", "b"]
    assert found.parameters == parameters
    assert decode(request(item()), None).parameters == {}


NEEDED = "allowed: a list of tensors"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: not JSON: "),
        (b"{", "body: not JSON: "),
        (b"\xff", "body: not JSON: "),
        (b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "body: not JSON: "),
        (b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [Infinity]}]}', "body: not JSON: "),
        (b"[]", "body: wrong JSON; found a list; allowed: an object"),
        (b"{}", f"inputs: at least one input is needed; found null; {NEEDED}"),
        (b'{"inputs": []}', f"inputs: at least one input is needed; found []; {NEEDED}"),
        (b'{"inputs": {}}', "inputs: at least one input is needed; found {}; " + NEEDED),
        (request(3), "inputs[]: wrong type; found 3; allowed: an object: name, datatype, shape, data"),
        (
            b'{"inputs":[' + b"[" * 1000 + b"]" * 1000 + b"]}",
            "inputs[]: wrong type; found [[[[…]]]]; allowed: an object",
        ),
        (request(item(...)), "input 'a': no data; found null; allowed: a list of values"),
        (request(item("1")), "input 'a': no data; found '1'; allowed: a list of values"),
        (request(item([True])), "input 'a', value 0: wrong type for FP32; found true; allowed: a number or null"),
        (request(item(["1.5"])), "input 'a', value 0: wrong type for FP32; found '1.5'; allowed: a number or null"),
        (request(item([[1], 2])), "input 'a', value 0: wrong type for FP32; found [1]; allowed: a number or null"),
        (
            request(item([1.0], datatype="INT8")),
            "input 'a', value 0: wrong type for INT8; found 1.0; allowed: an integer",
        ),
        (
            request(item([None], datatype="INT64")),
            "input 'a', value 0: wrong type for INT64; found null; allowed: an int",
        ),
        (
            request(item([300], datatype="UINT8")),
            "input 'a', value 0: does not fit UINT8; found 300; allowed: 0 to 255",
        ),
        (
            request(item([2**64 - 1], datatype="INT64")),
            "input 'a', value 0: does not fit INT64; found 18446744073709551615",
        ),
        (
            request(item([0], datatype="BOOL")),
            "input 'a', value 0: wrong type for BOOL; found 0; allowed: true or false",
        ),
        (request(item([7], datatype="BYTES")), "input 'a', value 0: wrong type for BYTES; found 7; allowed: a string"),
        (request(item([1, 2])), "input 'a': the data does not fill shape [1]; found 2 values; allowed: 1 values"),
        (request(item(shape=[2**63 - 1] * 300)), "input 'a': wrong shape; found 300 dimensions"),
        (request(item(parameters=[])), "input 'a', parameters: wrong type; found []; allowed: an object"),
        (request(item(), parameters=3), "parameters: wrong type; found 3; allowed: an object"),
        (request(item(), id=3), "id: wrong type; found 3; allowed: a string"),
        (request(item(), outputs={}), "outputs: wrong type; found {}; allowed: a list of objects with a name"),
        (request(item(), outputs=["x"]), "outputs[]: every output needs a name; found 'x'; allowed: "),
        (request(item(), outputs=[{"name": 1}]), "outputs[]: every output needs a name; found {'name': 1}; allowed: "),
        (
            request(item(), outputs=[{"name": "x", "parameters": 1}]),
            "outputs[].parameters: wrong type; found 1; allowed: an object",
        ),
    ],
)
def test_wrong_json_is_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(memoryview(body), None)
    assert str(refused.value).startswith(words)


def with_tail(tail: bytes, *sizes: Any) -> tuple[memoryview, str]:
    """A request whose inputs say that so many raw bytes are theirs."""
    inputs = [item(..., name=f"a{at}", parameters={"binary_data_size": size}) for at, size in enumerate(sizes)]
    head = bytes(request(*inputs))
    return memoryview(head + tail), str(len(head))


def test_raw_tensors_are_cut_one_behind_the_other() -> None:
    first, second = decode(*with_tail(np.array([1, 2], np.float32).tobytes(), 4, 4)).inputs
    assert [*first.values, *second.values] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("tail", "sizes", "words"),
    [
        (
            b"\0" * 4,
            [3],
            "input 'a0': raw bytes do not fit datatype FP32 and shape [1]; found 3 bytes; allowed: 4 bytes",
        ),
        (b"\0" * 4, [5], "input 'a0', binary_data_size: wrong size; found 5; allowed: 0 to 4 bytes"),
        (b"\0" * 4, [-1], "input 'a0', binary_data_size: wrong size; found -1; allowed: 0 to 4 bytes"),
        (b"\0" * 4, ["4"], "input 'a0', binary_data_size: wrong size; found '4'; allowed: 0 to 4 bytes"),
        (b"\0" * 4, [True], "input 'a0', binary_data_size: wrong size; found true; allowed: 0 to 4 bytes"),
        (b"\0" * 4, [None], "input 'a0', binary_data_size: wrong size; found null; allowed: 0 to 4 bytes"),
        (b"\0" * 4, [4, 4], "input 'a1', binary_data_size: wrong size; found 4; allowed: 0 to 0 bytes"),
        (b"\0" * 5, [4], "body: bytes are left over behind the last input; found 1 bytes"),
    ],
)
def test_wrong_raw_tail_is_refused_in_words(tail: bytes, sizes: list[Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(*with_tail(tail, *sizes))
    assert str(refused.value) == words


@pytest.mark.parametrize("length", ["", "0", "-1", "+1", "1.0", "1e1", "99", "x", "²", "9" * 5000])
def test_wrong_header_length_is_refused_in_words(length: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{HEADER_LENGTH}: wrong length; found .*; allowed: 1 to 2 bytes$"):
        decode(memoryview(b"{}"), length)


def test_header_length_that_cuts_the_json_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not JSON"):
        decode(request(item()), "5")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("a") | JSON,
        "datatype": st.sampled_from(DATATYPES) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data": st.lists(st.integers() | st.floats(allow_nan=False) | st.text(max_size=3), max_size=4) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9) | JSON}) | JSON,
    },
)


@given(
    st.fixed_dictionaries({"inputs": st.lists(ITEMS, max_size=2) | JSON}, optional={"outputs": JSON, "id": JSON}),
    st.binary(max_size=8),
)
def test_any_json_is_refused_or_read(document: dict[str, Any], tail: bytes) -> None:
    try:
        head = orjson.dumps(document)
    except TypeError:
        return  # an integer of more than 64 bits, which orjson does not write
    try:
        found = decode(memoryview(head + tail), str(len(head)))
    except RequestRefused:
        return
    assert all(len(tensor.values) == np.prod(tensor.shape) for tensor in found.inputs)
