"""What the kinds of model do alike with the tensors of a request."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.tensors import MAX_DIMENSIONS, NUMPY_DTYPES, InferRequest, Tensor, from_values

Array = npt.NDArray[Any]

# What JSON may hold for a kind of numpy's dtypes, and the words for it.
_INTEGERS: tuple[set[type], str] = ({int}, "an integer")
_ALLOWED: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "i": _INTEGERS,
    "u": _INTEGERS,
    "f": ({int, float, type(None)}, "a number or null"),
}


def by_name(request: InferRequest, names: Sequence[str]) -> tuple[list[Tensor], int]:
    """The tensors of a request in the order of `names`, and the rows that each of them has, one at least.

    Raises InvalidRequest unless exactly these names stand there.
    """
    tensors = list(request.inputs)
    if [tensor.name for tensor in tensors] != list(names):
        tensors = _ordered(tensors, names)
    rows = tensors[0].shape[0]
    for tensor in tensors[1:]:
        if tensor.shape[0] != rows:
            field, words = f"input {shown(tensor.name)}", "not as many rows as the input before it"
            raise InvalidRequest(field, words, found=tensor.shape[0], allowed=str(rows))
    if not rows:
        raise InvalidRequest("inputs", "empty batch", found=Words("no rows"), allowed="at least one row")
    return tensors, rows


def _ordered(tensors: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    given = {tensor.name: tensor for tensor in tensors}
    if missing := [name for name in names if name not in given]:
        raise InvalidRequest("inputs", f"missing {listed(missing)}", allowed=listed(names))
    if unknown := [shown(name) for name in given if name not in names]:
        raise InvalidRequest("inputs", f"unknown {listed(unknown)}", allowed=listed(names))
    if len(tensors) > len(given):
        raise InvalidRequest("inputs", "the same input twice", found=len(tensors), allowed=listed(names))
    return [given[name] for name in names]


def joined(parts: Sequence[Array]) -> Array:
    """The rows of several arrays in one that torch can use; a single array stays itself where it can be used.

    Rows of different shapes become an array of objects, one array each.
    """
    if len(parts) == 1:
        # Raw tensors lie wherever a body has them, and small bodies cannot be written to, which torch warns of.
        return parts[0] if parts[0].dtype == object else np.require(parts[0], requirements=("C", "A", "W"))
    try:
        return np.concatenate(parts)
    except ValueError:
        return ragged([row for part in parts for row in part])


def stacked(rows: Sequence[Array]) -> Array:
    """Rows as one array: of objects, one array each, where their shapes differ."""
    try:
        return np.stack(rows)
    except ValueError:
        return ragged(rows)


def like_first(columns: Sequence[Sequence[Array]]) -> list[Array]:
    """Of each input the rows that have the first row's shapes, as one array: a tensor holds rows of one shape."""
    shapes = [column[0].shape for column in columns]
    rows = list(zip(*columns, strict=True))
    alike = [row for row in rows if [array.shape for array in row] == shapes]
    return [np.stack(arrays) for arrays in zip(*alike, strict=True)]


def ragged(rows: Sequence[Array]) -> Array:
    array = np.empty(len(rows), dtype=object)
    for at, row in enumerate(rows):
        array[at] = np.ascontiguousarray(row)
    return array


def from_nested(name: str, datatype: str, nested: object) -> Array:
    """The array that plain JSON writes as lists in lists. Raises InvalidRequest."""
    field = f"input {shown(name)}"
    shape: list[int] = []
    level: list[Any] = [nested]
    while level and type(level[0]) is list:
        lengths = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(lengths) != 1 or len(shape) == MAX_DIMENSIONS:
            allowed = f"lists of one length, at most {MAX_DIMENSIONS} in each other"
            raise InvalidRequest(field, "lists of different lengths, or too deep", found=nested, allowed=allowed)
        shape += lengths
        level = list(chain.from_iterable(level))
    types, words = _ALLOWED[NUMPY_DTYPES[datatype].kind]
    if not set(map(type, level)) <= types:
        at, value = next((at, value) for at, value in enumerate(level) if type(value) not in types)
        raise InvalidRequest(f"{field}, value {at}", f"wrong type for {datatype}", found=value, allowed=words)
    return np.asarray(from_values(name, datatype, tuple(shape), level).values).reshape(shape)
