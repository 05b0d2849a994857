"""Rows that fit together share a call of the program: rows of one length bucket, or of one shape."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.inputs import Array, joined

Rows = npt.NDArray[np.int64]
"""Indices of rows."""
Execute = Callable[[list[Array]], list[Array]]


def by_length(lengths: npt.NDArray[np.int64], buckets: Sequence[int], max_rows: int) -> list[Rows]:
    """Groups of at most `max_rows` rows whose lengths fill the same bucket, shortest first.

    `buckets` are the longest lengths that each of them holds, rising; no length is beyond the last.
    """
    order = np.argsort(lengths, kind="stable")
    filled = np.searchsorted(buckets, lengths[order])
    ends = np.flatnonzero(np.diff(filled)) + 1
    return [
        group[start : start + max_rows]
        for group in np.split(order, ends)
        for start in range(0, len(group), max_rows)
    ]  # fmt: skip


def by_shape(inputs: Sequence[Array]) -> list[Rows]:
    """Groups of rows that have the same shape in every input. Arrays of objects hold one array for every row."""
    ragged = [array for array in inputs if array.dtype == object]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, arrays in enumerate(zip(*ragged, strict=True)):
        groups.setdefault(tuple(array.shape for array in arrays), []).append(row)
    return [np.array(rows) for rows in groups.values()]


def in_groups(groups: Sequence[Rows], outputs_of: Callable[[Rows], list[Array]]) -> list[Array]:
    """The outputs of all rows in their own order, from those of every group."""
    parts = [outputs_of(rows) for rows in groups]
    order = np.concatenate(groups)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return [joined(arrays)[back] for arrays in zip(*parts, strict=True)]


def in_calls(execute: Execute, inputs: list[Array], max_rows: int) -> list[Array]:
    """The outputs of all rows, in calls of at most `max_rows`."""
    rows = len(inputs[0])
    if rows <= max_rows:
        return execute(inputs)
    parts = [execute([array[at : at + max_rows] for array in inputs]) for at in range(0, rows, max_rows)]
    return [joined(arrays) for arrays in zip(*parts, strict=True)]
