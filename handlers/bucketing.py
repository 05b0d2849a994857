"""Rows that fit together share a call of the program: rows of one length bucket, or of one shape."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.inputs import Array, joined

Rows = npt.NDArray[np.int64]
"""Indices of rows."""
Execute = Callable[[list[Array]], list[Array]]


CALL_LENGTHS = 24
"""What a call of the program costs by itself, as so much more length of one row."""


def by_length(lengths: npt.NDArray[np.int64], buckets: Sequence[int], max_rows: int) -> list[Rows]:
    """Groups of at most `max_rows` rows whose lengths fill the same bucket, shortest first.

    Rows that would cost less padded join those of the next bucket, instead of a call of their own. `buckets` are the
    longest lengths that each of them holds, rising; no length is beyond the last.
    """
    order = np.argsort(lengths, kind="stable")
    ends = np.flatnonzero(np.diff(np.searchsorted(buckets, lengths[order]))) + 1
    groups: list[Rows] = []
    for group in np.split(order, ends):
        if groups and len(groups[-1]) * (lengths[group[-1]] - lengths[groups[-1][-1]]) < CALL_LENGTHS:
            group = np.concatenate((groups.pop(), group))  # noqa: PLW2901 - the joined one is what goes on
        groups.append(group)
    return [group[start : start + max_rows] for group in groups for start in range(0, len(group), max_rows)]


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
