"""Plain JSON rows, as TorchServe's own `/predictions/NAME` takes them: one object, or a list of objects."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import numpy.typing as npt
import orjson

from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.protocol.oip_json import parse

CONTENT_TYPES = ("application/json",)


def reader(columns: Sequence[str]) -> Callable[[memoryview], tuple[list[tuple[Any, ...]], bool]]:
    """A function that reads a body: its rows as tuples in the order of `columns`, and whether a single object came.

    Every row must have exactly these columns.
    """
    # One call in C for a whole row; with one column `itemgetter` would give no tuple.
    pick = itemgetter(*columns) if len(columns) > 1 else lambda row: (row[columns[0]],)

    def decode(body: memoryview) -> tuple[list[tuple[Any, ...]], bool]:
        document = parse(body)
        rows = document if isinstance(document, list) else [document]
        if not rows:
            raise InvalidRequest("body", "empty batch", found=Words("no rows"), allowed="at least one row")
        if set(map(type, rows)) == {dict} and set(map(len, rows)) == {len(columns)}:
            with suppress(KeyError):
                return list(map(pick, rows)), document is not rows
        raise _refusal(rows, columns)

    return decode


def encode(names: Sequence[str], outputs: Sequence[npt.NDArray[Any]], *, single: bool) -> bytes:
    """A list of objects, one a row, or the one object. Outputs [rows] in the order of their names."""
    rows = [dict(zip(names, values, strict=True)) for values in zip(*outputs, strict=True)]
    # Numbers stay numpy's, so that a float32 is written with its own digits and not a float64's.
    return orjson.dumps(rows[0] if single else rows, option=orjson.OPT_SERIALIZE_NUMPY)


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
