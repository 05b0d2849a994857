"""The golden set: a request and its answers, refused where a node could not give them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from handlers.runtime_plan import RUNTIME, RuntimePlan
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.describing import opened
from model_store.entry import ENTRY, entry_file
from model_store.errors import GoldenRefused
from model_store.golden import golden_set
from model_store.pt2 import read_program

SCHEMA = TableSchema(
    numbers=(NumberColumn("delay"), NumberColumn("gust", nullable=True)),
    categories=(CategoryColumn("carrier", ("AA", "UA")),),
    outputs=(OutputColumn("total"), OutputColumn("twice")),
)
INPUTS: list[dict[str, Any]] = [
    {"name": "delay", "datatype": "FP32", "shape": [3], "data": [1.5, 2, 3]},
    {"name": "gust", "datatype": "FP32", "shape": [3], "data": [None, 1, 6]},
    {"name": "carrier", "datatype": "BYTES", "shape": [3], "data": ["AA", "nobody", "UA"]},
]


class AddUp(nn.Module):
    """Answers can be checked by hand."""

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = torch.nan_to_num(numbers, nan=100.0).sum(1) + 1000 * codes[:, 0]
        return total, 2 * total


class LessTheMean(nn.Module):
    """What a network in training mode does: a row's answer depends on its batch."""

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = torch.nan_to_num(numbers).sum(1) + codes[:, 0]
        return total - total.mean(), total


def members(network: nn.Module, directory: Path) -> dict[str, bytes]:
    """What a handler of this network reads."""
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.int64))
    program = torch.export.export(network, example, dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, directory / "model.pt2")
    stored = read_program(directory / "model.pt2")
    return {
        **stored.members,
        "schema.json": SCHEMA.to_json(),
        ENTRY: entry_file("table"),
        RUNTIME: RuntimePlan().to_json(),
    }


def made(network: nn.Module, directory: Path, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    with opened(members(network, directory)) as handler:
        document: dict[str, Any] = json.loads(golden_set(handler, inputs))
    return document


def test_it_holds_the_request_and_every_output_of_the_stored_program(tmp_path: Path) -> None:
    golden = made(AddUp(), tmp_path, INPUTS)
    assert golden["request"]["inputs"] == INPUTS
    total, twice = golden["response"]["outputs"]
    assert total == {"name": "total", "datatype": "FP32", "shape": [3], "data": [101.5, 2003, 1009]}
    assert np.allclose(twice["data"], [203, 4006, 2018], rtol=golden["rtol"], atol=golden["atol"])


def test_a_network_whose_rows_depend_on_each_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GoldenRefused, match=r"output total of its first row depends .* evaluation mode"):
        made(LessTheMean(), tmp_path, INPUTS)


def test_inputs_that_the_handler_refuses_are_refused_with_its_words(tmp_path: Path) -> None:
    wrong = [{**INPUTS[0], "data": [None, 2, 3]}, *INPUTS[1:]]
    with pytest.raises(GoldenRefused, match=r"the handler refuses it: .*delay"):
        made(AddUp(), tmp_path, wrong)


def test_a_model_that_fails_on_them_is_refused_with_its_words(tmp_path: Path) -> None:
    class Failing(nn.Module):
        def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = torch.arange(2).index_select(0, codes[:, 0]) + numbers[:, 0]
            return found, found

    with pytest.raises(GoldenRefused, match="the model fails on it: IndexError"):
        made(Failing(), tmp_path, INPUTS)  # the code of a carrier that nobody knows is 2
