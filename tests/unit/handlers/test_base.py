"""The main path: items of a batch fail alone, and counting is exact and costs no answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.answer import GRPC, HTTP, ROWS, Call
from handlers.base import Array, BaseHandler, Item
from handlers.measured import Measured
from handlers.slots import counters_directory, read_counts
from handlers.tabular import TabularHandler
from tests.unit.handlers.tiny import (
    GOOD,
    MODEL,
    RAISING,
    VERSION,
    Request,
    Row,
    ask,
    exposition,
    oip_binary,
    oip_grpc,
    oip_json,
    profile,
    replayed,
    rows,
)

Start = Callable[[type[BaseHandler]], BaseHandler]
PROTOCOLS: list[Callable[..., Request]] = [rows, oip_json, oip_binary, oip_grpc]
BATCH = 16


def row(at: int) -> Row:
    """Rows that all differ, so that an answer given to the wrong item shows."""
    return {**GOOD[0], "delay": 30 * at, "wind": at / 3}


def good(at: int) -> Request:
    """A good request whose protocol and number of rows depend on its place in the batch."""
    return PROTOCOLS[at % 4](*(row(at + 17 * extra) for extra in range(1 + at % 2)))


BAD: list[tuple[Request, int, str]] = [
    (Request(ROWS, b"{"), 400, "body: not JSON"),
    (Request(ROWS, b"[" * 1000 + b"]" * 1000), 400, "row 0: wrong type"),
    (Request(ROWS, b""), 400, "body: not JSON"),
    (rows({**GOOD[0], "delay": "3"}), 400, "column 'delay', row 0: wrong type; found '3'"),
    (rows({**GOOD[0], "origin": "LGA"}), 400, "column 'origin', row 0: unknown category; found 'LGA'"),
    (Request(HTTP, b'{"inputs": []}'), 400, "inputs: at least one input is needed"),
    (
        Request(HTTP, b"{}", headers={"inference-header-content-length": "9" * 5000}),
        400,
        "inference-header-content-length",
    ),
    (oip_json({**GOOD[0], "delay": None}), 400, "column 'delay', row 0: wrong value; found a missing value"),
    (oip_binary({**GOOD[0], "wind": np.inf}), 400, "column 'wind', row 0: wrong value"),
    (Request(GRPC, b"\xff" * 50), 400, "body: not a ModelInferRequest"),
    (Request(GRPC, b""), 400, "inputs: at least one input is needed"),
    (Request(GRPC, oip_grpc(GOOD[0]).body[:-3]), 400, "body: not a ModelInferRequest"),
    (Request(HTTP, b"", headers={"content-encoding": "br"}), 415, "content-encoding: 'br' is not unpacked here"),
    (Request(HTTP, b"{", arrived="1000.0", limits="30"), 504, "not computed: it waited for "),
    (Request(GRPC, b"", arrived="1000.0", limits="30 5S"), 504, "not computed: it waited for "),
    (rows(GOOD[0], RAISING), 500, "the model failed on this input: IndexError"),
    (oip_json(RAISING), 500, "the model failed on this input: IndexError"),
    (oip_grpc(RAISING), 500, "the model failed on this input: IndexError"),
]


def counted(directory: Path) -> int:
    """Rows counted by all workers of the tiny model; each stands in one bin of every feature."""
    counters = counters_directory(directory, MODEL, VERSION, profile().to_json())
    counts = read_counts(counters, profile())
    at = 0
    for feature in profile().features:
        assert counts.bins[at : at + len(feature.labels)].sum() == counts.rows, feature.name
        at += len(feature.labels)
    return counts.rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(chosen=st.dictionaries(st.integers(0, BATCH - 1), st.sampled_from(BAD), max_size=BATCH))
def test_each_item_gets_its_own_answer_whatever_its_neighbours_are(
    handler: BaseHandler, metrics_directory: Path, chosen: dict[int, tuple[Request, int, str]]
) -> None:
    before = counted(metrics_directory)
    requests = [chosen[at][0] if at in chosen else good(at) for at in range(BATCH)]
    answers = ask(handler, *requests)
    alone = [ask(handler, good(at))[0].probability for at in range(BATCH)]
    for at, answer in enumerate(answers):
        if at in chosen:
            _, status, words = chosen[at]
            assert answer.status == status
            assert answer.error.startswith(words)
        else:
            # Not bit by bit: torch computes the ends of long vectors otherwise than short ones.
            np.testing.assert_allclose(answer.probability, alone[at], rtol=1e-6)
    once = sum(1 + at % 2 for at in range(BATCH))
    refused = sum(1 + at % 2 for at in chosen)
    assert counted(metrics_directory) - before == 2 * once - refused


def test_outcomes_are_counted_by_protocol(handler: BaseHandler, metrics_directory: Path) -> None:
    ask(handler, rows(*GOOD), oip_grpc(GOOD[0]), Request(HTTP, b""), rows(RAISING), oip_json(GOOD[1]))
    series = 'shipway_requests_total{{model="tiny",outcome="{}",protocol="{}",version="3"}}'
    found = exposition(metrics_directory)
    for outcome, protocol in (("ok", ROWS), ("ok", GRPC), ("refused", HTTP), ("failed", ROWS), ("ok", HTTP)):
        assert found[series.format(outcome, protocol)] == 1
    assert found['shipway_batch_requests_sum{model="tiny",version="3"}'] == 5
    assert counted(metrics_directory) == 5


def test_work_that_nobody_waits_for_is_skipped(handler: BaseHandler, metrics_directory: Path) -> None:
    late, good = rows(GOOD[0]), rows(GOOD[1])
    one, two = ask(handler, Request(ROWS, late.body, arrived="1000.0", limits="30"), good)
    assert (one.status, two.status) == (504, 200)
    found = exposition(metrics_directory)
    assert found[f'shipway_requests_total{{model="tiny",outcome="expired",protocol="{ROWS}",version="3"}}'] == 1
    assert counted(metrics_directory) == 1


def test_latency_is_measured_from_the_edge(handler: BaseHandler, metrics_directory: Path) -> None:
    request = rows(GOOD[0])
    ask(handler, Request(ROWS, request.body, arrived="0.000000"))
    found = exposition(metrics_directory)
    answered = found['shipway_request_seconds_sum{model="tiny",protocol="predictions",version="3"}']
    waited = found['shipway_queue_seconds_total{model="tiny",version="3"}']
    assert answered >= waited > 1e9  # since 1970


def test_fault_of_the_model_is_logged_with_its_stack(handler: BaseHandler, caplog: pytest.LogCaptureFixture) -> None:
    ask(handler, rows(RAISING))
    assert "the model failed on one request" in caplog.text
    assert "index out of range" in caplog.text


class Miscounting(TabularHandler):
    """Counts no batch, but raises."""

    def measure(self, inputs: list[Array], outputs: list[Array]) -> Measured:
        raise OSError(f"no space left for {len(inputs[0])} rows, {len(outputs)} outputs")


def test_fault_in_counting_costs_no_answer(
    start: Start, metrics_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ask(start(Miscounting), rows(GOOD[0]), oip_json(GOOD[1]))
    assert [answer.status for answer in answers] == [200, 200]
    assert exposition(metrics_directory)['shipway_monitor_errors_total{model="tiny",version="3"}'] == 2
    assert "a batch was answered but not counted" in caplog.text


def test_replay_is_answered_but_not_counted(handler: BaseHandler, metrics_directory: Path) -> None:
    (answer,) = ask(handler, replayed(oip_json(*GOOD)))
    assert len(answer.probability) == len(GOOD)
    assert counted(metrics_directory) == 0
    assert not [series for series in exposition(metrics_directory) if series.startswith("shipway_requests_total")]


def test_golden_set_that_cannot_be_counted_is_refused(start: Start, metrics_directory: Path) -> None:
    """So the node does not take a version whose traffic would be answered and not counted."""
    golden, client = ask(start(Miscounting), replayed(oip_json(*GOOD)), oip_json(GOOD[1]))
    assert (golden.status, client.status) == (500, 200)
    assert "profile.json does not fit what the handler measures: no space left for 3 rows" in golden.error
    assert exposition(metrics_directory)['shipway_monitor_errors_total{model="tiny",version="3"}'] == 1


def test_client_is_counted_beside_a_replay(handler: BaseHandler, metrics_directory: Path) -> None:
    answers = ask(handler, replayed(oip_json(*GOOD)), rows(*GOOD[:2]), replayed(rows(GOOD[0])), oip_grpc(GOOD[2]))
    assert [answer.status for answer in answers] == [200] * 4
    assert counted(metrics_directory) == 3


class Faulty(TabularHandler):
    """A user's own, with a fault in the hook that `fault` names, for requests of two rows alone."""

    fault = ""

    def read_plain(self, call: Call) -> tuple[Any, int, bool]:
        data, count, single = super().read_plain(call)
        self._fail("read_plain", count)
        return data, count, single

    def check(self, items: list[Item]) -> list[Array]:
        for item in items:
            self._fail("check", item.rows)
        return super().check(items)

    def plain(self, arrays: list[Array]) -> list[dict[str, Any]]:
        self._fail("plain", min(2, len(arrays[0])))  # for a whole batch too
        return super().plain(arrays)

    def _fail(self, hook: str, count: int) -> None:
        if hook == self.fault and count == 2:
            raise KeyError(hook)


@pytest.mark.parametrize("fault", ["read_plain", "check", "plain"])
def test_fault_in_a_hook_costs_its_own_request_alone(start: Start, fault: str) -> None:
    handler = start(Faulty)
    assert isinstance(handler, Faulty)
    handler.fault = fault
    answers = ask(handler, rows(GOOD[0]), rows(*GOOD[:2]), rows(GOOD[1]))
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert answers[1].error == "the model failed on this input: KeyError"


class Summing(TabularHandler):
    """Its program answers a batch with one number."""

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.program = lambda numbers, _: (numbers.sum(dim=0, keepdim=True)[:, 0],)


def test_program_that_answers_with_other_rows_is_not_cut_into_items(start: Start) -> None:
    one, two = ask(start(Summing), rows(GOOD[0]), rows(*GOOD[:2]))
    assert one.status == 200
    assert (two.status, two.error) == (500, "the model failed on this input: ValueError")


def test_worker_computes_in_one_thread(handler: BaseHandler) -> None:
    assert handler.version == VERSION
    assert torch.get_num_threads() == 1
