"""Golden inputs and profile of a table: probed for a missing number and an unknown category, counted as a node does."""

import json
from typing import Any

import pytest
import torch

from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store import tables

SCHEMA = TableSchema(
    numbers=(NumberColumn("delay"), NumberColumn("gust", nullable=True)),
    categories=(CategoryColumn("carrier", ("AA", "UA")), CategoryColumn("closed", ("x",), other=False)),
    outputs=(OutputColumn("probability"),),
)
COLUMNS: dict[str, list[float | str | None]] = {
    "delay": [1.5, 2, 3],
    "gust": [4, None, 6],
    "carrier": ["AA", "UA", "AA"],
    "closed": ["x", "x", "x"],
}


def add_up(numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A program whose answers can be checked by hand."""
    return (torch.nan_to_num(numbers, nan=100.0).sum(1) + 1000 * codes[:, 0],)


@pytest.fixture
def inputs() -> dict[str, dict[str, Any]]:
    return {tensor["name"]: tensor for tensor in tables.golden_inputs(COLUMNS, SCHEMA)}


def test_golden_inputs_are_the_data_with_both_probes(inputs: dict[str, dict[str, Any]]) -> None:
    assert [tensor["datatype"] for tensor in inputs.values()] == ["FP32", "FP32", "BYTES", "BYTES"]
    assert all(tensor["shape"] == [3] for tensor in inputs.values())
    assert inputs["delay"]["data"] == [1.5, 2, 3]
    assert inputs["gust"]["data"] == [None, None, 6]
    assert inputs["carrier"]["data"] == ["AA", tables.UNKNOWN_CATEGORY, "AA"]
    assert inputs["closed"]["data"] == ["x", "x", "x"]  # it has no `other`, so a probe would be refused


def test_the_data_given_is_left_as_it_was() -> None:
    before = json.dumps(COLUMNS)
    tables.golden_inputs(COLUMNS, SCHEMA)
    assert json.dumps(COLUMNS) == before
