"""Any program of tensors: the same numbers over every protocol, whatever shapes the rows beside it have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from handlers import generic
from handlers.answer import Call
from handlers.base import BaseHandler
from handlers.generic import GenericHandler
from handlers.kinds import TensorSpec, TensorsSchema
from handlers.program import load_program
from handlers.tensors import Tensor
from tests.unit.handlers import archives
from tests.unit.handlers.archives import (
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
from tests.unit.handlers.tiny import Request, ask

WIDTH = 5
SCHEMA = TensorsSchema(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(WIDTH,)), TensorSpec(name="at", datatype="INT64", shape=())),
    outputs=(
        TensorSpec(name="picked", datatype="FP32", shape=()),
        TensorSpec(name="doubled", datatype="FP32", shape=(WIDTH,)),
    ),
)
STEPS = TensorsSchema(
    inputs=(TensorSpec(name="steps", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="sums", datatype="FP32", shape=(-1,)),),
)


class Picking(nn.Module):
    """Raises on a row whose `at` is none of the five."""

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.gather(1, at[:, None]).squeeze(1), 2 * x


class Summing(nn.Module):
    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return steps.sum(dim=2).cumsum(dim=1)


@pytest.fixture(scope="session")
def picking_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = (torch.zeros(2, WIDTH), torch.zeros(2, dtype=torch.int64))
    return archives.write(tmp_path_factory.mktemp("picking"), Picking(), example, SCHEMA.to_json())


@pytest.fixture(scope="session")
def summing_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("summing")
    return archives.write(directory, Summing(), (torch.zeros(2, 3, 2),), STEPS.to_json(), free=(0, 1))


@pytest.fixture
def picking(picking_archive: Path, start: Start) -> BaseHandler:
    return start(GenericHandler, picking_archive)


@pytest.fixture
def summing(summing_archive: Path, start: Start) -> BaseHandler:
    return start(GenericHandler, summing_archive)


def given_rows(rows: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return random.random((rows, WIDTH), np.float32), random.integers(0, WIDTH, rows)


def tensors(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, at = given_rows(rows, seed)
    return tensor("x", x), tensor("at", at)


PROTOCOLS: list[Callable[..., Request]] = [oip_json, oip_binary, oip_grpc]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_the_programs_numbers(picking: BaseHandler, protocol: Callable[..., Request]) -> None:
    (answer,) = ask(picking, protocol(*tensors(3)))
    x, at = given_rows(3)
    picked, doubled = load_program(picking.directory)(torch.from_numpy(x), torch.from_numpy(at))
    found = outputs(answer)
    np.testing.assert_array_equal(found["picked"], picked.numpy())
    np.testing.assert_array_equal(found["doubled"], doubled.numpy())


def test_inputs_may_stand_in_any_order(picking: BaseHandler) -> None:
    first, second = ask(picking, oip_json(*tensors(2)), oip_grpc(*reversed(tensors(2))))
    np.testing.assert_array_equal(outputs(first)["picked"], outputs(second)["picked"])


def test_plain_objects_are_rows(picking: BaseHandler) -> None:
    x, at = given_rows(2)
    rows = [{"x": x[row].tolist(), "at": int(at[row])} for row in range(2)]
    many, one = ask(picking, plain(rows), plain(rows[1]))
    expected = [{"picked": x[row, at[row]], "doubled": 2 * x[row]} for row in range(2)]
    assert [list(row) for row in json.loads(many.body)] == [["picked", "doubled"]] * 2
    for found, want in zip([*json.loads(many.body), json.loads(one.body)], [*expected, expected[1]], strict=True):
        assert found["picked"] == pytest.approx(want["picked"])
        assert found["doubled"] == pytest.approx(want["doubled"])


def test_rows_of_different_shapes_are_answered_in_one_batch(summing: BaseHandler, metrics_directory: Path) -> None:
    steps = [np.arange(2 * rows * length, dtype=np.float32).reshape(rows, length, 2)
             for rows, length in ((1, 3), (2, 1), (3, 3), (1, 7))]  # fmt: skip
    answers = ask(summing, *(oip_grpc(tensor("steps", each)) for each in steps))
    for answer, each in zip(answers, steps, strict=True):
        np.testing.assert_allclose(outputs(answer)["sums"], each.sum(axis=2).cumsum(axis=1))
    assert counted(metrics_directory) == 7


def test_plain_rows_of_one_request_may_have_different_shapes(summing: BaseHandler) -> None:
    (answer,) = ask(summing, plain([{"steps": [[1, 2]]}, {"steps": [[1, 2], [3, 4]]}]))
    assert json.loads(answer.body) == [{"sums": [3.0]}, {"sums": [3.0, 10.0]}]


def test_model_of_one_input_takes_bare_lists(summing: BaseHandler) -> None:
    one, many = ask(summing, plain([[1, 2], [3, 4]]), plain([[[1, 2]], [[3, 4]]]))
    assert json.loads(one.body) == {"sums": [3.0, 10.0]}
    assert json.loads(many.body) == [{"sums": [3.0]}, {"sums": [7.0]}]


@pytest.fixture(scope="session")
def wide_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One input of fixed shape, so that raw bytes are rows."""
    schema = TensorsSchema(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(2, WIDTH)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(WIDTH,)),),
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * WIDTH, WIDTH))
    directory = tmp_path_factory.mktemp("wide")
    return archives.write(directory, network, (torch.zeros(2, 2, WIDTH),), schema.to_json())


@pytest.fixture
def wide(wide_archive: Path, start: Start) -> BaseHandler:
    return start(GenericHandler, wide_archive)


def test_raw_bytes_are_rows(wide: BaseHandler) -> None:
    x = np.random.default_rng(3).random((3, 2, WIDTH), np.float32)
    raw, grpc = ask(wide, plain(x.tobytes(), "application/octet-stream"), oip_grpc(tensor("x", x)))
    np.testing.assert_allclose([row["y"] for row in json.loads(raw.body)], outputs(grpc)["y"], rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 39, 81])
def test_raw_bytes_must_fill_rows(wide: BaseHandler, length: int) -> None:
    (answer,) = ask(wide, plain(bytes(length), "application/octet-stream"))
    assert answer.status == 400
    assert answer.error == (
        f"input 'x': raw bytes do not fill its rows; found {length} bytes; "
        "allowed: a multiple of 40 bytes: FP32 of shape [2, 5]"
    )


def test_many_rows_go_through_the_program_in_bounded_calls(wide: BaseHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).random((9, 2, WIDTH), np.float32)
    (whole,) = ask(wide, oip_json(tensor("x", x)))
    monkeypatch.setattr(generic, "MAX_VALUES", 4 * 2 * WIDTH)
    calls: list[int] = []
    program = wide.program

    def watched(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(inputs[0]))
        return program(*inputs)

    monkeypatch.setattr(wide, "program", watched)
    (cut,) = ask(wide, oip_json(tensor("x", x)))
    assert calls == [4, 4, 1]
    np.testing.assert_allclose(outputs(cut)["y"], outputs(whole)["y"], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.arange(10, dtype=np.float16), "FP16"),
        (np.arange(10, dtype=np.uint8), "UINT8"),
        (np.arange(10, dtype=np.float32), "BF16"),
    ],
)
def test_datatypes_that_lose_nothing_are_converted(wide: BaseHandler, values: Any, datatype: str) -> None:
    narrow = Tensor("x", datatype, (1, 2, WIDTH), values)
    wanted = tensor("x", values.astype(np.float32), (1, 2, WIDTH))
    first, second = ask(wide, oip_binary(narrow), oip_binary(wanted))
    np.testing.assert_allclose(outputs(first)["y"], outputs(second)["y"], rtol=1e-5)


GOOD_X, GOOD_AT = tensors(1)
BAD: list[tuple[Request, int, str]] = [
    (plain(b"{"), 400, "body: not JSON"),
    (plain([]), 400, "body: empty batch"),
    (plain(3), 400, "row 0: wrong type; found 3; allowed: an object of x, at"),
    (plain(b"", "image/png"), 415, "content-type: 'image/png' is not read here; allowed: application/json"),
    (plain(bytes(20), "application/octet-stream"), 415, "content-type: 'application/octet-stream' is not read here"),
    (plain({"x": [0] * WIDTH}), 400, "row 0: missing at"),
    (plain({"x": [0] * 4, "at": 0}), 400, "row 0, input 'x': wrong shape; found [4]; allowed: [5]"),
    (plain({"x": [[0]] * 5, "at": 0}), 400, "row 0, input 'x': wrong shape; found [5, 1]; allowed: [5]"),
    (plain({"x": [0, [1], 0, 0, 0], "at": 0}), 400, "row 0, input 'x', value 1: wrong type for FP32; found [1]"),
    (plain({"x": [[1], 0, 0, 0, 0], "at": 0}), 400, "row 0, input 'x': lists of different lengths, or too deep"),
    (plain({"x": ["1"] * 5, "at": 0}), 400, "row 0, input 'x', value 0: wrong type for FP32; found '1'"),
    (plain({"x": [0] * 5, "at": 1.0}), 400, "row 0, input 'at', value 0: wrong type for INT64; found 1.0"),
    (plain({"x": [0] * 5, "at": True}), 400, "row 0, input 'at', value 0: wrong type for INT64; found true"),
    (plain([{"x": [0] * 5, "at": 0}, {"x": [0] * 5, "at": 2**63}]), 400, "row 1, input 'at', value 0: does not fit"),
    (plain({"x": json.loads("[" * 40 + "]" * 40), "at": 0}), 400, "row 0, input 'x': lists of different lengths, or"),
    (oip_json(GOOD_X), 400, "inputs: missing at; allowed: x, at"),
    (oip_json(GOOD_X, GOOD_AT, tensor("y", np.zeros(1, np.float32))), 400, "inputs: unknown 'y'; allowed: x, at"),
    (oip_grpc(GOOD_X, GOOD_AT, GOOD_X), 400, "inputs: the same input twice; found 3; allowed: x, at"),
    (oip_grpc(GOOD_X, tensors(2)[1]), 400, "input 'at': not as many rows as the input before it; found 2; allowed: 1"),
    (oip_grpc(*tensors(0)), 400, "inputs: empty batch; found no rows; allowed: at least one row"),
    (
        oip_binary(tensor("x", np.zeros((1, 6), np.float32)), GOOD_AT),
        400,
        "input 'x': wrong shape; found [rows, 6]; allowed: [rows, 5]",
    ),
    (oip_binary(tensor("x", np.zeros(5, np.float32)), GOOD_AT), 400, "input 'at': not as many rows"),
    (oip_grpc(GOOD_X, tensor("at", np.zeros(1, np.float32))), 400, "input 'at': wrong datatype; found 'FP32'; allowed"),
    (oip_grpc(tensor("x", [b"1"], (1, 1)), GOOD_AT), 400, "input 'x': wrong datatype; found 'BYTES'; allowed: FP32"),
    (oip_grpc(tensor("x", np.ones((1, 5), np.bool_)), GOOD_AT), 400, "input 'x': wrong datatype; found 'BOOL'"),
    (oip_binary(GOOD_X, tensor("at", np.array([WIDTH]))), 500, "the model failed on this input: RuntimeError"),
    (plain({"x": [0] * 5, "at": -1}), 500, "the model failed on this input: RuntimeError"),
]
BATCH = 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(chosen=st.dictionaries(st.integers(0, BATCH - 1), st.sampled_from(BAD), max_size=BATCH))
def test_each_item_gets_its_own_answer_whatever_its_neighbours_are(
    picking: BaseHandler, metrics_directory: Path, chosen: dict[int, tuple[Request, int, str]]
) -> None:
    before = counted(metrics_directory)
    good = [PROTOCOLS[at % 3](*tensors(1 + at % 2, seed=at)) for at in range(BATCH)]
    answers = ask(picking, *(chosen[at][0] if at in chosen else good[at] for at in range(BATCH)))
    for at, answer in enumerate(answers):
        if at in chosen:
            assert answer.status == chosen[at][1]
            assert answer.error.startswith(chosen[at][2])
        else:
            x, index = given_rows(1 + at % 2, seed=at)
            np.testing.assert_array_equal(outputs(answer)["picked"], x[np.arange(len(x)), index])
    assert counted(metrics_directory) - before == sum(1 + at % 2 for at in range(BATCH) if at not in chosen)


def test_every_refusal_is_the_one_that_is_meant(picking: BaseHandler) -> None:
    for request, status, words in BAD:
        (answer,) = ask(picking, request)
        assert (answer.status, answer.error[: len(words)]) == (status, words)


@pytest.mark.parametrize(
    ("shape", "found"), [((1, 0, 2), "[rows, 0, 2]"), ((1, 3, 3), "[rows, 3, 3]"), ((1, 6), "[rows, 6]")]
)
def test_free_axis_takes_any_size_but_none(summing: BaseHandler, shape: tuple[int, ...], found: str) -> None:
    (answer,) = ask(summing, oip_grpc(tensor("steps", np.zeros(shape, np.float32))))
    assert answer.error == f"input 'steps': wrong shape; found {found}; allowed: [rows, any, 2]"


def test_raw_tensor_is_not_copied_on_its_way_to_the_program(
    picking: BaseHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one request in the batch the program reads the bytes that came, where they lie well."""
    seen: list[int] = []
    program = picking.program

    def watched(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(inputs[0].data_ptr())
        return program(*inputs)

    monkeypatch.setattr(picking, "program", watched)
    for shift in range(4):  # one of them puts the tensor where a float32 may lie
        request = oip_grpc(*tensors(4))
        room = np.zeros(len(request.body) + shift, np.uint8)
        room[shift:] = np.frombuffer(request.body, np.uint8)
        (answer,) = picking.answer([Call.read(request.headers, room.data[shift:])])
        assert answer.status == 200
        start = room.ctypes.data
        seen[-1] = start <= seen[-1] < start + len(room)
    assert sorted(seen) == [False, False, False, True]


def test_plain_request_is_captured_as_tensors(asked_again: AskedAgain, picking_archive: Path) -> None:
    x, at = given_rows(2)
    rows = [{"x": row.tolist(), "at": int(where)} for row, where in zip(x, at, strict=True)]
    found = asked_again(GenericHandler, picking_archive, plain(rows))
    np.testing.assert_array_equal(found["doubled"], 2 * x)
    np.testing.assert_array_equal(found["picked"], x[[0, 1], at])


def test_of_plain_rows_of_different_shapes_those_like_the_first_are_captured(
    asked_again: AskedAgain, summing_archive: Path
) -> None:
    rows = [{"steps": [[value, 1.0]] * length} for value, length in ((1.0, 3), (2.0, 2), (3.0, 3))]
    found = asked_again(GenericHandler, summing_archive, plain(rows))
    np.testing.assert_array_equal(found["sums"], [[2, 4, 6], [4, 8, 12]])
