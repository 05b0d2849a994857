"""Plain JSON rows, as TorchServe's own `/predictions/NAME` takes them: one object, or a list of objects."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from handlers.errors import InvalidRequest, Words, listed, shown

CONTENT_TYPES = ("application/json",)

Read = TypeVar("Read")
Picked = tuple[list[tuple[Any, ...]], bool]


def picker(columns: Sequence[str]) -> Callable[[object], Picked]:
    """A function that takes a document apart: its rows as tuples in the order of `columns`, and whether it is one row.

    Every row must have exactly these columns.
    """
    # One call in C for a whole row; with one column `itemgetter` would give no tuple.
    pick = itemgetter(*columns) if len(columns) > 1 else lambda row: (row[columns[0]],)

    def pick_rows(document: object) -> Picked:
        rows = document if isinstance(document, list) else [document]
        if not rows:
            raise InvalidRequest("body", "empty batch", found=Words("no rows"), allowed="at least one row")
        if set(map(type, rows)) == {dict} and set(map(len, rows)) == {len(columns)}:
            with suppress(KeyError):
                return list(map(pick, rows)), document is not rows
        raise _refusal(rows, columns)

    return pick_rows


def each(rows: Sequence[tuple[Any, ...]], read: Callable[[tuple[Any, ...]], Read]) -> list[Read]:
    """What `read` makes of every row; what it refuses is refused with the row's number."""
    found: list[Read] = []
    try:
        for row in rows:
            found.append(read(row))  # noqa: PERF401 - its length is the number of the row that is refused
    except InvalidRequest as error:
        field = f"row {len(found)}, {error.field}"
        raise InvalidRequest(field, error.problem, found=error.found, allowed=error.allowed) from None
    return found


def objects(names: Sequence[str], outputs: Sequence[npt.NDArray[Any]]) -> list[dict[str, Any]]:
    """What every row is answered with. Outputs [rows, …] in the order of their names."""
    return [dict(zip(names, values, strict=True)) for values in _by_row(outputs)]


def class_objects(
    classes: Sequence[str], names: Sequence[str], outputs: Sequence[npt.NDArray[Any]]
) -> list[dict[str, Any]]:
    """The same for an output [rows, classes] of probabilities, and whatever outputs stand behind it."""
    return [
        {
            "class": classes[values[0].argmax()],
            "probabilities": dict(zip(classes, values[0], strict=True)),
            **dict(zip(names[1:], values[1:], strict=True)),
        }
        for values in _by_row(outputs)
    ]


def encode(rows: Sequence[dict[str, Any]], *, single: bool) -> bytes:
    """A list of objects, one a row, or the one object."""
    # Numbers stay numpy's, so that a float32 is written with its own digits and not a float64's.
    return orjson.dumps(rows[0] if single else rows, option=orjson.OPT_SERIALIZE_NUMPY)


def _by_row(outputs: Sequence[npt.NDArray[Any]]) -> Iterator[tuple[Any, ...]]:
    # Only rows that lie in one piece can be written.
    return zip(*map(np.ascontiguousarray, outputs), strict=True)


def _refusal(rows: Sequence[object], columns: Sequence[str]) -> InvalidRequest:
    """What is wrong with the first row that is not an object of exactly the columns."""
    known = frozenset(columns)
    number, row = next((n, r) for n, r in enumerate(rows) if not isinstance(r, dict) or r.keys() != known)
    field = f"row {number}"
    if not isinstance(row, dict):
        return InvalidRequest(field, "wrong type", found=row, allowed=f"an object of {listed(columns)}")
    if missing := [name for name in columns if name not in row]:
        return InvalidRequest(field, f"missing {listed(missing)}", allowed=listed(columns))
    unknown = [shown(name) for name in row if name not in known]
    return InvalidRequest(field, f"unknown {listed(unknown)}", allowed=listed(columns))
