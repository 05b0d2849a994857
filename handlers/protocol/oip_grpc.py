"""The Open Inference Protocol over gRPC: protobuf messages, already out of gRPC's frame (Envoy removes it)."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from handlers.errors import InvalidRequest, Words, shown
from handlers.protocol.messages import ModelInferRequest, ModelInferResponse
from handlers.tensors import InferRequest, Tensor, check_head, from_raw, from_values, to_raw

CONTENT_TYPE = "application/x-protobuf"

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_RAW_INPUT = 7 << 3 | 2  # tag byte of raw_input_contents
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_VARINT_BITS = 70  # ten bytes of seven
_MAX_FIELDS = 4096  # a message of more is walked by protobuf's parser, which is faster at that and needs less memory


def decode(body: memoryview) -> InferRequest:
    """The request in a ModelInferRequest; raw tensors stay views of `body`."""
    head, raw = _cut_raw(body)
    try:
        message = ModelInferRequest.FromString(head)
    except DecodeError:
        raise InvalidRequest("body", "not a ModelInferRequest") from None
    # Where the message was passed on whole, its raw contents are still in it.
    raw = raw or [memoryview(entry) for entry in message.raw_input_contents]
    if not message.inputs:
        raise InvalidRequest("inputs", "at least one input is needed", found=Words("none"), allowed="a list of tensors")
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            "raw_input_contents", "one entry for each input", found=len(raw), allowed=f"{len(message.inputs)} entries"
        )
    tensors = tuple(_tensor(item, raw[at] if raw else None) for at, item in enumerate(message.inputs))
    requested = tuple([output.name for output in message.outputs])
    request = InferRequest(tensors, message.id, message.model_name, message.model_version, requested)
    if message.parameters:
        request.parameters = {name: _parameter(value) for name, value in message.parameters.items()}
    return request


def encode(model: str, version: str, request: InferRequest, outputs: Sequence[Tensor]) -> bytes:
    """A ModelInferResponse with raw contents."""
    message = ModelInferResponse(model_name=model, model_version=version, id=request.id)
    for tensor in outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(to_raw(tensor))
    data: bytes = message.SerializeToString()
    return data


def _parameter(value: Any) -> Any:
    """The one value that is set; None where none is."""
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None


def _tensor(item: Any, raw: memoryview | None) -> Tensor:
    name, datatype, shape = check_head(item.name, item.datatype, tuple(item.shape))
    if raw is not None:
        if item.HasField("contents"):
            raise InvalidRequest(f"input {shown(name)}", "contents and raw_input_contents exclude each other")
        return from_raw(name, datatype, shape, raw)
    if datatype not in _CONTENTS:
        raise InvalidRequest(f"input {shown(name)}", f"{datatype} travels in raw_input_contents only")
    return from_values(name, datatype, shape, getattr(item.contents, _CONTENTS[datatype]))


def _cut_raw(body: memoryview) -> tuple[bytes, list[memoryview]]:
    """The message without its raw contents, and those as views.

    Protobuf's own parser copies every bytes field twice. Only the top level is walked here: a few fields, whatever
    the tensors weigh. A message that does not parse is passed on whole, for the parser to refuse.
    """
    raw: list[memoryview] = []
    head: list[memoryview] = []
    at, kept, size, fields = 0, 0, len(body), 0
    try:
        while at < size:
            start, fields = at, fields + 1
            tag, at = _read_varint(body, at)
            wire = tag & 7
            if wire == _BYTES:
                length, at = _read_varint(body, at)
                at += length
                if tag == _RAW_INPUT and at <= size:
                    raw.append(body[at - length : at])
                    head.append(body[kept:start])
                    kept = at
            elif wire == _VARINT:
                _, at = _read_varint(body, at)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                return bytes(body), []
            if fields > _MAX_FIELDS:
                return bytes(body), []
    except IndexError:
        return bytes(body), []
    head.append(body[kept:])
    return b"".join(head), raw


def _read_varint(body: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError  # endless, as far as protobuf is concerned
