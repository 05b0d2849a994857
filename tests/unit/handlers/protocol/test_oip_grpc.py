"""ModelInfer's messages, against those of a public client; any bytes are a request or are refused."""

import contextlib
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from handlers.errors import InvalidRequest, RequestRefused
from handlers.protocol.messages import ModelInferRequest
from handlers.protocol.oip_grpc import _cut_raw, decode, encode
from handlers.tensors import DATATYPES, NUMPY_DTYPES, InferRequest, Tensor

CONTENTS = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.0]),
    "FP64": ("fp64_contents", [0.1, 1e300]),
    "BYTES": ("bytes_contents", [b"JFK", b"\xff"]),
}


def client_input(datatype: str, values: Any) -> triton.InferInput:
    found = triton.InferInput("a", [len(values)], datatype)
    array = np.array(values, dtype=object if datatype == "BYTES" else triton_to_np_dtype(datatype))
    return found.set_data_from_numpy(array)


def client_request(*inputs: triton.InferInput, parameters: dict[str, Any] | None = None) -> Any:
    """The message that the public client sends."""
    return triton._utils._get_inference_request(
        model_name="tiny",
        inputs=inputs,
        model_version="3",
        request_id="id-1",
        outputs=[triton.InferRequestedOutput("probability")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=parameters,
    )


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_tensors_of_a_public_client_are_read(datatype: str) -> None:
    values = CONTENTS[datatype][1] if datatype in CONTENTS else [1.5, 2.5]
    body = client_request(client_input(datatype, values)).SerializeToString()
    request = decode(memoryview(body))
    assert (request.model, request.version, request.id) == ("tiny", "3", "id-1")
    assert request.requested == ("probability",)
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("a", datatype, (2,))
    assert list(tensor.values) == values


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_are_read(datatype: str) -> None:
    field, values = CONTENTS[datatype]
    message = service_pb2.ModelInferRequest()
    item = message.inputs.add(name="a", datatype=datatype, shape=[2, 1])
    getattr(item.contents, field).extend(values)
    (tensor,) = decode(memoryview(message.SerializeToString())).inputs
    assert list(tensor.values) == values
    if isinstance(tensor.values, np.ndarray):
        assert tensor.values.dtype == NUMPY_DTYPES[datatype]


def test_parameters_reach_the_handler() -> None:
    body = client_request(client_input("FP32", [1.0]), parameters={"steps": 50, "target": "late", "exact": True})
    assert decode(memoryview(body.SerializeToString())).parameters == {"steps": 50, "target": "late", "exact": True}
    message = service_pb2.ModelInferRequest(inputs=[item(contents={"fp32_contents": [1]})])
    message.parameters["scale"].double_param = 0.5
    message.parameters["seed"].uint64_param = 2**64 - 1
    message.parameters["nothing"].SetInParent()
    found = decode(memoryview(message.SerializeToString())).parameters
    assert found == {"scale": 0.5, "seed": 2**64 - 1, "nothing": None}


def test_raw_tensor_is_a_view_of_the_body() -> None:
    body = bytearray(client_request(client_input("FP32", [1.0, 2.0])).SerializeToString())
    (tensor,) = decode(memoryview(body)).inputs
    at = bytes(body).index(np.array([1, 2], np.float32).tobytes())
    body[at : at + 4] = np.float32(7).tobytes()
    assert list(tensor.values) == [7.0, 2.0]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "INT64", "BYTES"])
def test_answer_is_read_by_a_public_client(datatype: str) -> None:
    values = CONTENTS.get(datatype, ("", [1.5, -2.0]))[1]
    array: Any = values if datatype == "BYTES" else np.array(values, dtype=NUMPY_DTYPES[datatype])
    body = encode("tiny", "3", InferRequest((), id="id-1"), [Tensor("x", datatype, (2, 1), array)])
    response = service_pb2.ModelInferResponse.FromString(body)
    assert (response.model_name, response.model_version, response.id) == ("tiny", "3", "id-1")
    assert triton.InferResult(response).as_numpy("x").ravel().tolist() == values


def test_several_outputs_are_read_by_a_public_client() -> None:
    outputs = [
        Tensor("x", "BF16", (2,), np.array([1.5, -2.0], np.float32)),
        Tensor("label", "BYTES", (1,), ["late"]),
        Tensor("y", "INT64", (2, 1), np.array([[7], [8]])),
    ]
    body = encode("tiny", "3", InferRequest(()), outputs)
    result = triton.InferResult(service_pb2.ModelInferResponse.FromString(body))
    assert result.as_numpy("x").tolist() == [1.5, -2.0]
    assert result.as_numpy("label").tolist() == [b"late"]
    assert result.as_numpy("y").tolist() == [[7], [8]]


def message(**fields: Any) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(**fields)


def item(**fields: Any) -> dict[str, Any]:
    return {"name": "a", "datatype": "FP32", "shape": [1], **fields}


FOUR = b"\0\0\0\0"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (message(), "inputs: at least one input is needed; found none; allowed: a list of tensors"),
        (message(raw_input_contents=[FOUR]), "inputs: at least one input is needed"),
        (
            message(inputs=[item()], raw_input_contents=[FOUR, FOUR]),
            "raw_input_contents: one entry for each input; found 2; allowed: 1 entries",
        ),
        (
            message(inputs=[item(contents={"fp32_contents": [1]})], raw_input_contents=[FOUR]),
            "input 'a': contents and raw_input_contents exclude each other",
        ),
        (
            message(inputs=[item()], raw_input_contents=[b"\0\0\0"]),
            "input 'a': raw bytes do not fit datatype FP32 and shape [1]; found 3 bytes; allowed: 4 bytes",
        ),
        (
            message(inputs=[item()]),
            "input 'a': the data does not fill shape [1]; found 0 values; allowed: 1 values",
        ),
        (
            message(inputs=[item(datatype="INT8", contents={"int_contents": [128]})]),
            "input 'a', value 0: does not fit INT8; found 128; allowed: -128 to 127",
        ),
        (
            message(inputs=[item(contents={"fp64_contents": [1]})]),
            "input 'a': the data does not fill shape [1]; found 0 values; allowed: 1 values",
        ),
        (message(inputs=[item(datatype="FP16")]), "input 'a': FP16 travels in raw_input_contents only"),
        (message(inputs=[item(name="")]), "inputs[].name: every input needs a name; found ''"),
        (message(inputs=[item(shape=[])], raw_input_contents=[FOUR]), "input 'a': a shape is needed; found []"),
        (message(inputs=[item(shape=[-1])]), "input 'a': wrong shape; found [-1]"),
        (message(inputs=[item(shape=[2**63 - 1] * 300)]), "input 'a': wrong shape; found 300 dimensions"),
        (message(inputs=[item(datatype="fp32")]), "input 'a': unknown datatype; found 'fp32'"),
    ],
)
def test_wrong_message_is_refused_in_words(sent: service_pb2.ModelInferRequest, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(memoryview(sent.SerializeToString()))
    assert str(refused.value).startswith(words)


GOOD = client_request(client_input("FP32", [1.0, 2.0])).SerializeToString()


@pytest.mark.parametrize("length", range(1, len(GOOD)))
def test_truncated_message_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest):
        decode(memoryview(GOOD[:length]))


@given(st.binary())
@example(b"\xff" * 1_000_000)  # a varint without an end
@example(b"\x3a\x00" * 100_000)  # very many empty raw contents
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    decoded_or_refused(body)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_refused_or_read(changes: list[tuple[int, int]]) -> None:
    body = bytearray(GOOD)
    for at, byte in changes:
        body[at] = byte
    decoded_or_refused(bytes(body))


def decoded_or_refused(body: bytes) -> None:
    with contextlib.suppress(RequestRefused):
        assert decode(memoryview(body)).inputs


def varint(value: int, *, padding: int = 0) -> bytes:
    """`value` as protobuf writes it, with needless bytes at its end."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value | (0x80 if padding else 0))
    return bytes(found) + b"\x80" * (padding - 1) + (b"\0" if padding else b"")


def delimited(number: int, data: bytes, *, padding: int = 0) -> bytes:
    return varint(number << 3 | 2, padding=padding) + varint(len(data), padding=padding) + data


UNKNOWN = st.integers(8, 2**29 - 1)
FIELDS = st.one_of(
    st.builds(delimited, st.just(7), st.binary(max_size=200), padding=st.integers(0, 2)),
    st.builds(delimited, st.sampled_from([1, 2, 3]), st.sampled_from([b"tiny", b"", b"3", b"\xff"])),
    st.builds(delimited, st.just(5), st.sampled_from([b"\x0a\x01a", b"\x1a\x01\x02", b"\x3a\x01a"])),
    st.builds(delimited, UNKNOWN, st.binary(max_size=9)),
    st.builds(lambda number, value: varint(number << 3) + varint(value), UNKNOWN, st.integers(0, 2**64 - 1)),
    st.builds(lambda number: varint(number << 3 | 1) + bytes(8), UNKNOWN),
    st.builds(lambda number: varint(number << 3 | 5) + bytes(4), UNKNOWN),
    st.builds(lambda number: varint(number << 3 | 3) + varint(number << 3 | 4), UNKNOWN),  # a group
    st.sampled_from([b"\x38\x07", b"\x3d\0\0\0\0", b"\x0b", b"\x00", b"\x07", b"\x3a\x05a"]),  # broken ones
)


@given(st.lists(FIELDS, max_size=6).map(b"".join))
@example(b"\x3a\x01x" * 5000)
@example(b"\x3a\x05a")  # raw contents that are cut off
@example(b"\xa1\x06" + b"\0\0\0\0\x3a\x02ab")  # a number whose bytes look like raw contents
@example(b"\xa5\x06" + b"\x3a\x02ab")
def test_cut_message_is_the_whole_one_to_protobuf(body: bytes) -> None:
    head, raw = _cut_raw(memoryview(body))
    try:
        whole = ModelInferRequest.FromString(body)
    except DecodeError:
        with pytest.raises(DecodeError):
            ModelInferRequest.FromString(head)
        return
    cut = ModelInferRequest.FromString(head)
    cut.raw_input_contents.extend(map(bytes, raw))
    assert cut.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


@pytest.mark.parametrize("odd", [b"\x9b\x06\x9c\x06", b"\xa0\x06\x01" * 5000], ids=["a group", "many fields"])
def test_raw_contents_are_found_in_a_message_that_is_not_cut(odd: bytes) -> None:
    (tensor,) = decode(memoryview(GOOD + odd)).inputs
    assert list(tensor.values) == [1.0, 2.0]
