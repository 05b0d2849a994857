"""The Open Inference Protocol over HTTP: JSON, and JSON followed by raw tensors (the binary tensor extension)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import orjson

from handlers.errors import InvalidRequest, Words, shown
from handlers.tensors import DATATYPES, InferRequest, Tensor, check_head, from_raw, from_values, to_raw

CONTENT_TYPES = ("application/json", "application/octet-stream")
HEADER_LENGTH = "inference-header-content-length"
"""With raw tensors behind the JSON, this HTTP header says how many bytes are JSON."""

_MAX_LENGTH_DIGITS = 19

_NONE: dict[str, Any] = {}

# What JSON may hold for a datatype: its Python types, and the words for them.
_INTEGERS: tuple[set[type], str] = ({int}, "an integer")
_FLOATS: tuple[set[type], str] = ({int, float, type(None)}, "a number or null")
_KINDS: dict[str, tuple[set[type], str]] = {
    **{datatype: _FLOATS if "FP" in datatype or datatype == "BF16" else _INTEGERS for datatype in DATATYPES},
    "BOOL": ({bool}, "true or false"),
    "BYTES": ({str}, "a string"),
}


def decode(body: memoryview, header_length: str | None) -> InferRequest:
    """The request in `body`. Raises InvalidRequest with the field, what was found and what is allowed."""
    split = _split(body, header_length)
    document = parse_object(body[:split])
    raw = _RawTail(body[split:])
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("inputs", "at least one input is needed", found=inputs, allowed="a list of tensors")
    tensors = tuple(_tensor(item, raw) for item in inputs)
    raw.check_used()
    parameters = _parameters(document, lambda: "parameters")
    requested, binary = _outputs(document.get("outputs", []), all_binary=parameters.get("binary_data_output") is True)
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidRequest("id", "wrong type", found=request_id, allowed="a string")
    return InferRequest(tensors, request_id, requested=requested, binary=binary, parameters=parameters)


def encode(model: str, version: str, request: InferRequest, outputs: Sequence[Tensor]) -> tuple[bytes, dict[str, str]]:
    """The answer's body and its headers beyond the content type."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor in outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if request.binary is None or tensor.name in request.binary:
            data = to_raw(tensor)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = tensor.values
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY, default=_text)
    if not tail:
        return head, {}
    return b"".join([head, *tail]), {HEADER_LENGTH: str(len(head))}


def encode_request(inputs: Sequence[Tensor]) -> tuple[bytes, int]:
    """A request of these inputs with all of them in binary: its body, and how many bytes of it are JSON."""
    raw = [to_raw(tensor) for tensor in inputs]
    described = [
        {"name": one.name, "datatype": one.datatype, "shape": one.shape, "parameters": {"binary_data_size": len(data)}}
        for one, data in zip(inputs, raw, strict=True)
    ]
    head = orjson.dumps({"inputs": described})
    return b"".join([head, *raw]), len(head)


def content_type(headers: Mapping[str, str]) -> str:
    """What an answer with these headers is: raw tensors make it more than JSON."""
    return "application/octet-stream" if HEADER_LENGTH in headers else "application/json"


def parse_object(text: memoryview) -> dict[str, Any]:
    document = parse(text)
    if not isinstance(document, dict):
        raise InvalidRequest("body", "wrong JSON", found=Words(f"a {type(document).__name__}"), allowed="an object")
    return document


def parse(text: memoryview) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("body", f"not JSON: {error}") from None


def _split(body: memoryview, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    digits = header_length.isascii() and header_length.isdigit() and len(header_length) <= _MAX_LENGTH_DIGITS
    if not digits or not 0 < int(header_length) <= len(body):
        raise InvalidRequest(HEADER_LENGTH, "wrong length", found=header_length, allowed=f"1 to {len(body)} bytes")
    return int(header_length)


def _parameters(holder: Mapping[str, Any], field: Callable[[], str]) -> dict[str, Any]:
    parameters = holder.get("parameters", _NONE)
    if not isinstance(parameters, dict):
        raise InvalidRequest(field(), "wrong type", found=parameters, allowed="an object")
    return parameters


def _outputs(outputs: object, *, all_binary: bool) -> tuple[tuple[str, ...], frozenset[str] | None]:
    """Names of the outputs asked for, and those of them wanted in binary: what an output says goes before `all_binary`.

    None of the names means every output, and so does None for the binary ones.
    """
    if not isinstance(outputs, list):
        raise InvalidRequest("outputs", "wrong type", found=outputs, allowed="a list of objects with a name")
    if not outputs:
        return (), None if all_binary else frozenset()
    names, binary = [], set()
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise InvalidRequest("outputs[]", "every output needs a name", found=output, allowed="{'name': '…'}")
        names.append(output["name"])
        if _parameters(output, lambda: "outputs[].parameters").get("binary_data", all_binary) is True:
            binary.add(output["name"])
    return tuple(names), frozenset(binary)


class _RawTail:
    """The bytes behind the JSON, handed out input by input."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._at = 0

    def take(self, name: str, size: object) -> memoryview:
        left = len(self._raw) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise InvalidRequest(
                f"input {shown(name)}, binary_data_size", "wrong size", found=size, allowed=f"0 to {left} bytes"
            )
        self._at += size
        return self._raw[self._at - size : self._at]

    def check_used(self) -> None:
        if left := len(self._raw) - self._at:
            raise InvalidRequest("body", "bytes are left over behind the last input", found=Words(f"{left} bytes"))


def _tensor(item: object, raw: _RawTail) -> Tensor:
    if not isinstance(item, dict):
        raise InvalidRequest("inputs[]", "wrong type", found=item, allowed="an object: name, datatype, shape, data")
    name, datatype, shape = check_head(item.get("name"), item.get("datatype"), item.get("shape"))
    parameters = _parameters(item, lambda: f"input {shown(name)}, parameters")
    if "binary_data_size" in parameters:
        return from_raw(name, datatype, shape, raw.take(name, parameters["binary_data_size"]))
    data = item.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"input {shown(name)}", "no data", found=data, allowed="a list of values")
    values = _flat(data)
    if not set(map(type, values)) <= _KINDS[datatype][0]:
        raise _wrong_value(name, datatype, values)
    return from_values(name, datatype, shape, values)


def _flat(data: list[Any]) -> list[Any]:
    """Nested rows are allowed by the protocol; row-major order is the order in which they are written."""
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            break
        data = list(chain.from_iterable(data))
    return data


def _wrong_value(name: str, datatype: str, values: list[Any]) -> InvalidRequest:
    allowed, words = _KINDS[datatype]
    row, value = next((r, v) for r, v in enumerate(values) if type(v) not in allowed)
    return InvalidRequest(f"input {shown(name)}, value {row}", f"wrong type for {datatype}", found=value, allowed=words)


def _text(value: object) -> str:
    """What JSON cannot hold by itself: bytes of a BYTES output."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    raise TypeError(type(value).__name__)
