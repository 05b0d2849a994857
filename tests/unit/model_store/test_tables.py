"""Golden inputs and profile of a table: probed for a missing number and an unknown category, counted as a node does."""

import json
from typing import Any

import numpy as np
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


def test_the_profile_counts_every_column_and_what_the_program_says() -> None:
    numbers, codes = SCHEMA.encode(COLUMNS)
    profile = tables.profile(SCHEMA, numbers, codes, add_up)
    features = {feature.name: feature for feature in profile.features}
    assert list(features) == [*SCHEMA.names, "probability"]
    assert profile.rows == 3
    assert features["gust"].missing == 1
    assert features["carrier"].counts == (2, 1, 0)
    edges = np.array(features["probability"].edges)
    assert edges.min() > 5.5  # 1.5 + 4 is the lowest answer, and nothing lies below it
    assert edges.max() <= 1102
