"""The golden set: an OIP request with a missing number and an unknown category, and the program's own answers."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.golden import UNKNOWN_CATEGORY, golden_set

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
def golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(golden_set(COLUMNS, SCHEMA, add_up))
    return document


def test_the_request_is_the_data_with_both_probes(golden: dict[str, Any]) -> None:
    tensors = {tensor["name"]: tensor for tensor in golden["request"]["inputs"]}
    assert [tensor["datatype"] for tensor in tensors.values()] == ["FP32", "FP32", "BYTES", "BYTES"]
    assert all(tensor["shape"] == [3] for tensor in tensors.values())
    assert tensors["delay"]["data"] == [1.5, 2, 3]
    assert tensors["gust"]["data"] == [None, None, 6]
    assert tensors["carrier"]["data"] == ["AA", UNKNOWN_CATEGORY, "AA"]
    assert tensors["closed"]["data"] == ["x", "x", "x"]  # it has no `other`, so a probe would be refused


def test_the_response_is_what_the_program_says_to_that_request(golden: dict[str, Any]) -> None:
    (output,) = golden["response"]["outputs"]
    assert output == {"name": "probability", "datatype": "FP32", "shape": [3], "data": [101.5, 2102, 9]}
    columns = {tensor["name"]: tensor["data"] for tensor in golden["request"]["inputs"]}
    numbers, codes = SCHEMA.encode(columns)
    (again,) = add_up(torch.from_numpy(numbers), torch.from_numpy(codes))
    assert np.allclose(again.numpy(), output["data"], rtol=golden["rtol"], atol=golden["atol"])


def test_the_data_given_is_left_as_it_was() -> None:
    before = json.dumps(COLUMNS)
    golden_set(COLUMNS, SCHEMA, add_up)
    assert json.dumps(COLUMNS) == before
