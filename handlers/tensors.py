"""Tensors as the Open Inference Protocol names them: a name, a datatype, a shape, and values in row-major order."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.errors import InvalidRequest, Words, shown

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = (*NUMPY_DTYPES, "BYTES")
"""Datatypes of the protocol that this node reads. BYTES elements are byte strings of any length."""

MAX_DIMENSIONS = 16
"""No model has so many; multiplying the sizes of a shape as long as a body would keep a worker busy for minutes."""

BYTES_LENGTH = struct.Struct("<I")
"""In raw form each BYTES element stands behind its length, four bytes, little-endian."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor.

    `values` is flat: a numpy array of the datatype's dtype, or for BYTES a list of `bytes` or `str`.
    A missing number (`null` in JSON) is NaN, and only floating datatypes can hold one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any] | list[Any]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A prediction request, whatever the protocol it came by."""

    inputs: tuple[Tensor, ...]
    id: str = ""
    model: str = ""
    """The model that the message itself names, where the protocol has such a field."""
    version: str = ""
    """The version that the message itself pins; empty for none."""
    requested: tuple[str, ...] = ()
    """Names of the outputs that the client wants; empty for all."""
    binary: frozenset[str] | None = frozenset()
    """Outputs wanted as raw bytes behind the JSON; None for all of them."""


def check_head(name: object, datatype: object, shape: object) -> tuple[str, str, tuple[int, ...]]:
    """The three fields that every tensor needs, of the right type, or InvalidRequest."""
    if not isinstance(name, str) or not name:
        raise InvalidRequest("inputs[].name", "every input needs a name", found=name, allowed="a non-empty string")
    field = f"input {shown(name)}"
    if datatype not in DATATYPES:
        raise InvalidRequest(field, "unknown datatype", found=datatype, allowed=", ".join(DATATYPES))
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise InvalidRequest(field, "a shape is needed", found=shape, allowed="a list of non-negative integers")
    if len(shape) > MAX_DIMENSIONS:
        found = Words(f"{len(shape)} dimensions")
        raise InvalidRequest(field, "wrong shape", found=found, allowed=f"at most {MAX_DIMENSIONS} dimensions")
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidRequest(field, "wrong shape", found=shape, allowed="a list of non-negative integers")
    return name, str(datatype), tuple(shape)


def from_values(name: str, datatype: str, shape: tuple[int, ...], values: Sequence[Any]) -> Tensor:
    """A tensor of Python values: of the datatype's own kind (bool, int, float or None, str or bytes), not yet its size.

    A float that overflows becomes infinite, for whoever checks the values to refuse.
    """
    if len(values) != prod(shape):
        raise InvalidRequest(
            f"input {shown(name)}",
            f"the data does not fill shape {list(shape)}",
            found=Words(f"{len(values)} values"),
            allowed=f"{prod(shape)} values",
        )
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, list(values))
    dtype = NUMPY_DTYPES[datatype]
    try:
        with np.errstate(over="ignore"):
            return Tensor(name, datatype, shape, np.array(values, dtype=dtype))
    except OverflowError:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        row, value = next((r, v) for r, v in enumerate(values) if not low <= v <= high)
        raise InvalidRequest(
            f"input {shown(name)}, value {row}", f"does not fit {datatype}", found=value, allowed=f"{low} to {high}"
        ) from None


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    """A tensor over `raw` without copying it; BYTES elements are cut out one by one."""
    elements = prod(shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _split_bytes(name, elements, raw))
    dtype = NUMPY_DTYPES[datatype]
    expected = elements * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"input {shown(name)}",
            f"raw bytes do not fit datatype {datatype} and shape {list(shape)}",
            found=Words(f"{len(raw)} bytes"),
            allowed=f"{expected} bytes",
        )
    return Tensor(name, datatype, shape, np.frombuffer(raw, dtype=dtype))


def to_raw(tensor: Tensor) -> bytes:
    """The tensor's values as the protocol sends them, little-endian and row-major."""
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(tensor.values, dtype=NUMPY_DTYPES[tensor.datatype]).tobytes()
    parts = []
    for value in tensor.values:
        data = value.encode() if isinstance(value, str) else value
        parts += [BYTES_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def _split_bytes(name: str, elements: int, raw: memoryview) -> list[bytes]:
    values: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + BYTES_LENGTH.size
        end = start + BYTES_LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else len(raw) + 1
        if end > len(raw):
            raise InvalidRequest(
                f"input {shown(name)}",
                f"element {len(values)} of the raw BYTES is cut off",
                found=Words(f"{len(raw)} bytes"),
                allowed="a four-byte length before each element, then that many bytes",
            )
        values.append(bytes(raw[start:end]))
        at = end
    if len(values) != elements:
        raise InvalidRequest(
            f"input {shown(name)}",
            "the number of raw BYTES elements does not fit the shape",
            found=Words(f"{len(values)} elements"),
            allowed=f"{elements} elements",
        )
    return values
