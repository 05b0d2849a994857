"""What a version of a table has beside its program: golden inputs, by its schema."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.schema import TableSchema

UNKNOWN_CATEGORY = "no such category"

Column = Sequence[float | str | None]
Numbers = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


def golden_inputs(columns: Mapping[str, Column], schema: TableSchema) -> list[dict[str, Any]]:
    """Golden inputs for rows of real data, as Open Inference JSON.

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
    return [
        *(_tensor(number.name, "FP32", probed[number.name]) for number in schema.numbers),
        *(_tensor(category.name, "BYTES", probed[category.name]) for category in schema.categories),
    ]


def _tensor(name: str, datatype: str, values: Column) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": list(values)}
