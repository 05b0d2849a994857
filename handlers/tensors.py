"""Tensors as the Open Inference Protocol names them: a name, a datatype, a shape, and values in row-major order."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "BF16": np.dtype("<f4"),
}
"""In what the values of a datatype are held. numpy has no BF16; every value of it is one of FP32 as well."""

DATATYPES = (*NUMPY_DTYPES, "BYTES")
"""Datatypes of the protocol that this node reads. BYTES elements are byte strings of any length."""

_KNOWN = frozenset(DATATYPES)
_BF16_BYTES = 2

MAX_DIMENSIONS = 16
"""No model has so many; multiplying the sizes of a shape as long as a body would keep a worker busy for minutes."""

BYTES_LENGTH = struct.Struct("<I")
"""In raw form each BYTES element stands behind its length, four bytes, little-endian."""


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make, for every tensor of every request
class Tensor:
    """One named tensor.

    `values` is flat: a numpy array of the datatype's dtype in NUMPY_DTYPES, or for BYTES a list of `bytes` or `str`.
    A missing number (`null` in JSON) is NaN, and only floating datatypes can hold one.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any] | list[Any]


@dataclass(slots=True)
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
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the client gave beside the tensors, for handlers that know what to do with it: JSON's values."""


def check_head(name: object, datatype: object, shape: object) -> tuple[str, str, tuple[int, ...]]:
    """The three fields that every tensor needs, of the right type, or InvalidRequest."""
    if (
        (type(name) is str and name)
        and (type(datatype) is str and datatype in _KNOWN)
        and (isinstance(shape, list | tuple) and 0 < len(shape) <= MAX_DIMENSIONS)
        and set(map(type, shape)) == _INTEGERS
        and min(shape) >= 0
    ):
        return name, datatype, tuple(shape)
    raise _wrong_head(name, datatype, shape)


_INTEGERS = {int}


def _wrong_head(name: object, datatype: object, shape: object) -> InvalidRequest:
    """What is wrong with it, in words."""
    if not isinstance(name, str) or not name:
        return InvalidRequest("inputs[].name", "every input needs a name", found=name, allowed="a non-empty string")
    field = f"input {shown(name)}"
    if datatype not in DATATYPES:
        return InvalidRequest(field, "unknown datatype", found=datatype, allowed=", ".join(DATATYPES))
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        return InvalidRequest(field, "a shape is needed", found=shape, allowed="a list of non-negative integers")
    if len(shape) > MAX_DIMENSIONS:
        found = Words(f"{len(shape)} dimensions")
        return InvalidRequest(field, "wrong shape", found=found, allowed=f"at most {MAX_DIMENSIONS} dimensions")
    return InvalidRequest(field, "wrong shape", found=shape, allowed="a list of non-negative integers")


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
            array = np.array(values, dtype=dtype)
        return Tensor(name, datatype, shape, _widened(_rounded(array)) if datatype == "BF16" else array)
    except OverflowError:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        row, value = next((r, v) for r, v in enumerate(values) if not low <= v <= high)
        raise InvalidRequest(
            f"input {shown(name)}, value {row}", f"does not fit {datatype}", found=value, allowed=f"{low} to {high}"
        ) from None


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    """A tensor over `raw` without copying it; BYTES elements are cut out one by one, and BF16 becomes FP32."""
    elements = prod(shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _split_bytes(name, elements, raw))
    dtype = NUMPY_DTYPES[datatype]
    expected = elements * (_BF16_BYTES if datatype == "BF16" else dtype.itemsize)
    if len(raw) != expected:
        raise InvalidRequest(
            f"input {shown(name)}",
            f"raw bytes do not fit datatype {datatype} and shape {list(shape)}",
            found=Words(f"{len(raw)} bytes"),
            allowed=f"{expected} bytes",
        )
    if datatype == "BF16":
        return Tensor(name, datatype, shape, _widened(np.frombuffer(raw, dtype="<u2")))
    return Tensor(name, datatype, shape, np.frombuffer(raw, dtype=dtype))


def to_raw(tensor: Tensor) -> bytes:
    """The tensor's values as the protocol sends them, little-endian and row-major."""
    if tensor.datatype == "BF16":
        return _rounded(np.ascontiguousarray(tensor.values, dtype=np.float32)).tobytes()
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(tensor.values, dtype=NUMPY_DTYPES[tensor.datatype]).tobytes()
    parts = []
    for value in tensor.values:
        data = value.encode() if isinstance(value, str) else value
        parts += [BYTES_LENGTH.pack(len(data)), data]
    return b"".join(parts)


def _widened(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """BF16 as FP32, of which it is the upper half."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """FP32 as BF16: the nearest, of two equally near the even one; NaN stays NaN."""
    bits = values.view(np.uint32)
    nearest = bits + (0x7FFF + ((bits >> 16) & 1))
    quiet = bits | 0x400000  # a NaN that is told by its lower half alone must not become infinite
    return (np.where(np.isnan(values), quiet, nearest) >> 16).astype("<u2")


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
