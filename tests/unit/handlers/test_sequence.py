"""Sequences: of any length that is allowed, with missing values, and each row's own in a mixed batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from handlers.base import BaseHandler
from handlers.kinds import SequenceSchema, TensorSpec
from handlers.sequence import SequenceHandler
from tests.unit.handlers import archives
from tests.unit.handlers.archives import (
    Array,
    AskedAgain,
    Start,
    counted,
    oip_binary,
    oip_grpc,
    oip_json,
    outputs,
    plain,
    tensor,
)
from tests.unit.handlers.tiny import Answer, Request, ask

SCHEMA = SequenceSchema(
    features=("temp", "wind"),
    min_steps=2,
    max_steps=12,
    buckets=(3, 6, 12),
    outputs=(TensorSpec(name="ends", datatype="FP32", shape=(2, 2)),),
)


class Ends(nn.Module):
    """First and last step of every row, missing values as -1. It raises on a first temperature of 1000 and more."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Embedding(1000, 1)
        nn.init.zeros_(self.known.weight)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        filled = torch.nan_to_num(values, nan=-1.0)
        last = filled.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, 2))
        extra = self.known(filled[:, 0, 0].abs().to(torch.int64))
        ends: torch.Tensor = torch.cat([filled[:, :1], last], dim=1) + extra[:, :, None]
        return ends


@pytest.fixture(scope="session")
def ends_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = (torch.zeros(2, 3, 2), torch.full((2,), 3))
    return archives.write(tmp_path_factory.mktemp("ends"), Ends(), example, SCHEMA.to_json(), free=(0, 1))


@pytest.fixture
def handler(ends_archive: Path, start: Start) -> BaseHandler:
    return start(SequenceHandler, ends_archive)


def history(rows: int, steps: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    values = (100 * random.random((rows, steps, 2))).astype(np.float32)
    values[random.random(values.shape) < 0.2] = np.nan
    return values


def expected(values: Array) -> Array:
    return np.nan_to_num(values[:, [0, -1]], nan=-1.0)


def as_plain(values: Array) -> list[dict[str, Any]]:
    known = values.astype(object)
    known[np.isnan(values)] = None
    return [{"history": row} for row in known.tolist()]


def ends(answer: Answer) -> Array:
    if answer.request.protocol == "predictions":
        document = json.loads(answer.body)
        rows = document if isinstance(document, list) else [document]
        return np.array([row["ends"] for row in rows])
    return outputs(answer)["ends"]


GOOD: list[Any] = [
    lambda values: oip_json(tensor("history", values)),
    lambda values: oip_binary(tensor("history", values)),
    lambda values: oip_grpc(tensor("history", values)),
    lambda values: plain(as_plain(values)),
]


@pytest.mark.parametrize("steps", [2, 7, 12])
def test_every_protocol_gives_the_same(handler: BaseHandler, steps: int) -> None:
    values = history(5, steps)
    for answer in ask(handler, *(good(values) for good in GOOD)):
        np.testing.assert_allclose(ends(answer), expected(values), rtol=1e-6)


def test_one_object_is_answered_with_one(handler: BaseHandler) -> None:
    (answer,) = ask(handler, plain({"history": [[1, 2], [None, 0.5]]}))
    assert json.loads(answer.body) == {"ends": [[1.0, 2.0], [-1.0, 0.5]]}


def test_rows_of_one_plain_request_may_have_different_lengths(handler: BaseHandler) -> None:
    rows = [*as_plain(history(1, 9)), *as_plain(history(1, 3, seed=1))]
    (answer,) = ask(handler, plain(rows))
    np.testing.assert_allclose(ends(answer), [*expected(history(1, 9)), *expected(history(1, 3, seed=1))], rtol=1e-6)


def test_rows_of_a_bucket_share_a_call(handler: BaseHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.bucketing.CALL_LENGTHS", 0)  # as for histories of real length
    seen: list[tuple[tuple[int, ...], list[int]]] = []
    program = handler.program

    def watched(values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append((tuple(values.shape), lengths.tolist()))
        return program(values, lengths)

    monkeypatch.setattr(handler, "program", watched)
    ask(handler, *(GOOD[at % 4](history(1, steps)) for at, steps in enumerate((5, 2, 12, 4, 3, 2))))
    assert seen == [((3, 3, 2), [2, 2, 3]), ((2, 5, 2), [4, 5]), ((1, 12, 2), [12])]


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8])
def test_steps_may_come_in_another_number_type(handler: BaseHandler, dtype: Any) -> None:
    values = np.arange(8).reshape(1, 4, 2).astype(dtype)
    (answer,) = ask(handler, oip_binary(tensor("history", values)))
    np.testing.assert_array_equal(ends(answer), [[[0, 1], [6, 7]]])


INFINITE = history(2, 3)
INFINITE[1, 2, 0] = -np.inf
RAISING = np.full((1, 3, 2), 1000, np.float32)
BAD: list[tuple[Request, int, str]] = [
    (plain(b"["), 400, "body: not JSON"),
    (plain([]), 400, "body: empty batch"),
    (plain({"past": []}), 400, "row 0: missing history; allowed: history"),
    (plain({"history": None}), 400, "row 0, input 'history': wrong shape; found []; allowed: [steps, 2]"),
    (
        plain({"history": "x"}),
        400,
        "row 0, input 'history', value 0: wrong type for FP32; found 'x'; allowed: a number",
    ),
    (plain({"history": []}), 400, "row 0, input 'history': wrong shape; found [0]; allowed: [steps, 2]"),
    (plain({"history": [1, 2]}), 400, "row 0, input 'history': wrong shape; found [2]; allowed: [steps, 2]"),
    (plain({"history": [[1, 2]]}), 400, "row 0, input 'history': too few steps; found 1; allowed: 2 to 12"),
    (plain({"history": [[1, 2]] * 13}), 400, "row 0, input 'history': too many steps; found 13; allowed: 2 to 12"),
    (plain({"history": [[1]] * 3}), 400, "row 0, input 'history': wrong number of features; found 1; allowed: 2: temp"),
    (
        plain({"history": [[1, 2], [1]]}),
        400,
        "row 0, input 'history': lists of different lengths, or too deep; found [[",
    ),
    (plain({"history": [[1, 2], [1, True]]}), 400, "row 0, input 'history', value 3: wrong type for FP32; found true"),
    (
        plain([*as_plain(history(1, 2)), {"history": [[0, 0], [0, 1e39]]}]),
        400,
        "row 1, input 'history', step 1, wind: wrong value; found a number that float32 cannot hold; allowed: finite",
    ),
    (oip_grpc(tensor("history", INFINITE)), 400, "row 1, input 'history', step 2, temp: wrong value; found a number"),
    (oip_binary(tensor("history", history(1, 1))), 400, "input 'history': too few steps; found 1; allowed: 2 to 12"),
    (oip_json(tensor("history", history(1, 13))), 400, "input 'history': too many steps; found 13; allowed: 2 to 12"),
    (
        oip_grpc(tensor("history", np.zeros((1, 3, 3), np.float32))),
        400,
        "input 'history': wrong number of features; found 3; allowed: 2: temp, wind",
    ),
    (
        oip_grpc(tensor("history", np.zeros((3, 2), np.float32))),
        400,
        "input 'history': wrong shape; found [rows, 2]; allowed: [rows, steps, 2]",
    ),
    (
        oip_grpc(tensor("history", [b"1"], (1, 1, 1))),
        400,
        "input 'history': wrong datatype; found 'BYTES'; allowed: FP32",
    ),
    (oip_grpc(tensor("history", np.ones((1, 2, 2), np.bool_))), 400, "input 'history': wrong datatype; found 'BOOL'"),
    (oip_grpc(tensor("past", history(1, 2))), 400, "inputs: missing history; allowed: history"),
    (oip_grpc(tensor("history", history(0, 2))), 400, "inputs: empty batch"),
    (plain(b"", "application/octet-stream"), 415, "content-type: 'application/octet-stream' is not read here"),
    (oip_grpc(tensor("history", RAISING)), 500, "the model failed on this input: IndexError"),
    (plain(as_plain(RAISING)), 500, "the model failed on this input: IndexError"),
]


def test_every_refusal_is_the_one_that_is_meant(handler: BaseHandler) -> None:
    for request, status, words in BAD:
        (answer,) = ask(handler, request)
        assert (answer.status, answer.error[: len(words)]) == (status, words)


BATCH = 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    chosen=st.dictionaries(st.integers(0, BATCH - 1), st.sampled_from(BAD), max_size=BATCH),
    steps=st.lists(st.integers(2, 12), min_size=BATCH, max_size=BATCH),
)
def test_each_item_gets_its_own_answer_whatever_its_neighbours_are(
    handler: BaseHandler, metrics_directory: Path, chosen: dict[int, tuple[Request, int, str]], steps: list[int]
) -> None:
    before = counted(metrics_directory)
    good = [history(1 + at % 2, steps[at], seed=at) for at in range(BATCH)]
    answers = ask(handler, *(chosen[at][0] if at in chosen else GOOD[at % 4](good[at]) for at in range(BATCH)))
    for at, answer in enumerate(answers):
        if at in chosen:
            assert answer.status == chosen[at][1]
            assert answer.error.startswith(chosen[at][2])
        else:
            np.testing.assert_allclose(ends(answer), expected(good[at]), rtol=1e-6)
    assert counted(metrics_directory) - before == sum(1 + at % 2 for at in range(BATCH) if at not in chosen)


def test_of_plain_rows_those_as_long_as_the_first_are_captured(asked_again: AskedAgain, ends_archive: Path) -> None:
    long, short = history(2, 4), history(1, 3)
    found = asked_again(SequenceHandler, ends_archive, plain([*as_plain(long), *as_plain(short)]))
    np.testing.assert_array_equal(found["ends"], expected(long))
