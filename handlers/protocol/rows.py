"""Plain JSON rows, as TorchServe's own `/predictions/NAME` takes them: one object, or a list of objects."""

from collections.abc import Sequence
from typing import Any

import orjson

from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.protocol.oip_json import parse
from handlers.tensors import Tensor

CONTENT_TYPES = ("application/json",)


def decode(body: memoryview, columns: Sequence[str]) -> tuple[dict[str, list[Any]], bool]:
    """The rows turned into columns, and whether a single object came. Every row has exactly the known columns."""
    document = parse(body)
    rows = document if isinstance(document, list) else [document]
    if not rows:
        raise InvalidRequest("body", "empty batch", found=Words("no rows"), allowed="at least one row")
    known = frozenset(columns)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidRequest(f"row {number}", "wrong type", found=row, allowed=f"an object of {listed(columns)}")
        if row.keys() != known:
            _refuse_names(number, row, columns)
    return {name: [row[name] for row in rows] for name in columns}, not isinstance(document, list)


def encode(outputs: Sequence[Tensor], *, single: bool) -> bytes:
    """A list of objects, one a row, or the one object."""
    names = [tensor.name for tensor in outputs]
    rows = [
        dict(zip(names, values, strict=True)) for values in zip(*(tensor.values for tensor in outputs), strict=True)
    ]
    # Numbers stay numpy's, so that a float32 is written with its own digits and not a float64's.
    return orjson.dumps(rows[0] if single else rows, option=orjson.OPT_SERIALIZE_NUMPY)


def _refuse_names(number: int, row: dict[str, Any], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in row]:
        raise InvalidRequest(f"row {number}", f"missing {listed(missing)}", allowed=listed(columns))
    unknown = [shown(name) for name in row if name not in columns]
    raise InvalidRequest(f"row {number}", f"unknown {listed(unknown)}", allowed=listed(columns))
