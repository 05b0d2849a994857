"""What is counted of a batch, and of the training rows beforehand: the same for both, so that they can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.kinds import FREE, TensorSpec

Array = npt.NDArray[Any]

MAX_NAMED = 16
"""Values of an output that are counted one by one; of more their mean is counted."""


@dataclass(frozen=True)
class Features:
    """Names of what a handler measures, in the order of the columns of `Measured`."""

    numbers: tuple[str, ...] = ()
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name and vocabulary."""
    outputs: tuple[str, ...] = ()


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make, for every batch
class Measured:
    """Numbers of n rows that stand for their distribution."""

    numbers: Array
    """Of the inputs, float32 [n, F]; missing is NaN."""
    codes: Array
    """Of the categories, int64 [n, C]."""
    outputs: Array
    """Of the program's outputs, float32 [n, O]."""
    probabilities: Array | None = None
    """[n, classes], where the model has classes."""
    vectors: Array | None = None
    """[n, d], of a handler whose inputs or outputs have too many values to be counted one by one."""


def no_codes(rows: int) -> Array:
    """Of a handler without categories."""
    return np.empty((rows, 0), dtype=np.int64)


class Values:
    """Tensors as columns of numbers: every value of those that are named, the mean of all values of the others."""

    def __init__(self, specs: Sequence[TensorSpec], named: Sequence[bool]) -> None:
        self._named = named
        self.names = tuple(chain.from_iterable(map(_names, specs, named)))

    def __call__(self, arrays: Sequence[Array], rows: int) -> Array:
        """float32 [rows, names]; the arrays are [rows, …], or of objects where the shapes of their rows differ."""
        if not arrays:
            return np.empty((rows, 0), dtype=np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and lies in the last bin
            columns = [a.reshape(rows, -1) if named else _mean(a) for a, named in zip(arrays, self._named, strict=True)]
            return np.concatenate(columns, axis=1, dtype=np.float32, casting="unsafe")


def values_of(*specs: TensorSpec) -> float:
    """How many values a row of these tensors has; inf where that is not fixed."""
    return sum(inf if FREE in spec.shape else prod(spec.shape) for spec in specs)


def few(spec: TensorSpec) -> bool:
    """Whether the values of an output are counted one by one."""
    return values_of(spec) <= MAX_NAMED


def _names(spec: TensorSpec, named: bool) -> list[str]:  # noqa: FBT001 - for `map`
    if not named:
        return [f"{spec.name} mean"]
    if not spec.shape:
        return [spec.name]
    return [f"{spec.name}[{','.join(map(str, index))}]" for index in product(*map(range, spec.shape))]


def _mean(array: Array) -> Array:
    """A column, [n, 1]."""
    if array.dtype == object:
        return np.array([[row.mean()] for row in array], dtype=np.float32)
    means: Array = array.reshape(len(array), -1).mean(axis=1, dtype=np.float32, keepdims=True)
    return means
