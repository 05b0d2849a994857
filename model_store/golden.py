"""The golden set: stored inputs with the outputs that this version's stored program gave, replayed by every node."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from handlers.program import Program
from handlers.schema import TableSchema

ROWS = 128
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
"""Wide enough for another processor's rounding, far too narrow for another model."""

UNKNOWN_CATEGORY = "no such category"

Column = Sequence[float | str | None]


def golden_set(columns: Mapping[str, Column], schema: TableSchema, program: Program) -> bytes:
    """`golden.json` for rows of real data: an OIP JSON request and the response to it.

    The first row loses every number that may be missing; the second has a category that nobody knows in every column
    with an `other` code. So each golden set has both, whatever the data.
    """
    probed = {name: list(values) for name, values in columns.items()}
    for number in schema.numbers:
        if number.nullable:
            probed[number.name][0] = None
    for category in schema.categories:
        if category.other:
            probed[category.name][1] = UNKNOWN_CATEGORY
    numbers, codes = schema.encode(probed)
    outputs = program(torch.from_numpy(numbers), torch.from_numpy(codes))
    inputs = [
        *(_tensor(number.name, "FP32", probed[number.name]) for number in schema.numbers),
        *(_tensor(category.name, "BYTES", probed[category.name]) for category in schema.categories),
    ]
    answers = [
        _tensor(column.name, "FP32", output.numpy().astype(np.float64).tolist())
        for column, output in zip(schema.outputs, outputs, strict=True)
    ]
    document = {
        "rtol": RELATIVE_TOLERANCE,
        "atol": ABSOLUTE_TOLERANCE,
        "request": {"inputs": inputs},
        "response": {"outputs": answers},
    }
    return json.dumps(document, allow_nan=False).encode()


def _tensor(name: str, datatype: str, values: Column) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}
