"""Capturing in a real handler: what is kept is answered again alike, is masked, and no fault of it costs an answer.

The plain requests of the other kinds are in the tests of their handlers.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from handlers import capture
from handlers.answer import REPLAY_HEADER, ROWS
from handlers.capture import CAPTURE, Asked, Capture, Plan
from handlers.captured import SEGMENTS, CapturedRequest
from handlers.protocol.oip_json import decode
from handlers.tabular import TabularHandler
from handlers.tensors import Tensor
from tests.unit.handlers import tiny
from tests.unit.handlers.archives import Start, again
from tests.unit.handlers.tiny import GOOD, MODEL, RAISING, Request, ask, exposition, prediction_id


def plan_of(tmp_path: Path, **changed: Any) -> Plan:
    return Plan(
        **{"directory": str(tmp_path / "kept"), "share": 1.0, "max_bytes": 64 << 20, "keep_seconds": 3600.0, **changed}
    )


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A function that makes workers capture."""

    def capturing(**changed: Any) -> Plan:
        made = plan_of(tmp_path, **changed)
        monkeypatch.setenv(CAPTURE, made.to_json())
        return made

    return capturing


def kept(plan: Plan) -> list[CapturedRequest]:
    """The oldest first."""
    return plan.segments.newest(MODEL, 100, time.time())[::-1]


def test_requests_of_every_protocol_are_answered_again_alike(plan: Callable[..., Plan], start: Start) -> None:
    capturing, handler = plan(), start(TabularHandler)
    asked = [protocol(*GOOD) for protocol in (tiny.rows, tiny.oip_json, tiny.oip_binary, tiny.oip_grpc)]
    answers = ask(handler, *asked)
    found = kept(capturing)
    assert [each.protocol for each in found] == [each.protocol for each in asked]
    for answer, captured in zip(answers, found, strict=True):
        (same,) = ask(handler, again(captured))
        np.testing.assert_array_equal(same.probability, answer.probability)
        assert (captured.version, captured.masked) == (3, ())
    assert len(kept(capturing)) == len(asked), "the node's own requests are not captured"


def golden_archive(directory: Path) -> Path:
    """The tiny model with a golden set, whose first row stands in for what is masked."""
    tiny.write_archive(directory)
    first = {"delay": 7, "wind": 2.5, "carrier": "B6", "origin": "EWR"}
    golden = {"request": {"inputs": tiny.tensors(first, GOOD[1])}}
    (directory / "golden.json").write_bytes(orjson.dumps(golden))
    return directory


def test_masked_inputs_are_never_written_and_stay_valid(
    plan: Callable[..., Plan], start: Start, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    capturing = plan(mask=("wind", "carrier", "of another model"))
    handler = start(TabularHandler, golden_archive(tmp_path / "archive"))
    secret = {"delay": 3, "wind": 98765.25, "carrier": "secret carrier", "origin": "JFK"}
    for protocol in (tiny.rows, tiny.oip_json, tiny.oip_grpc):
        ask(handler, protocol(secret, secret))
    data = b"".join(path.read_bytes() for path in Path(capturing.directory).rglob("*") if path.is_file())
    assert b"secret" not in data
    assert b"98765" not in data
    assert np.float32(98765.25).tobytes() not in data
    assert np.float64(98765.25).tobytes() not in data
    found = kept(capturing)
    assert [each.masked for each in found] == [("wind", "carrier")] * 3
    for captured in found:
        request = decode(memoryview(captured.body), str(captured.header_length))
        values = {tensor.name: list(tensor.values) for tensor in request.inputs}
        assert values["wind"] == [2.5, 2.5]
        assert values["carrier"] == [b"B6", b"B6"]
        assert values["delay"] == [3, 3]
        assert ask(handler, again(captured))[0].status == 200


def test_what_cannot_be_masked_is_not_kept(tmp_path: Path) -> None:
    golden = b'{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}}'
    capturing, counted = capturer(tmp_path, golden, mask=("y",))
    capturing.note(asked(Tensor("y", "FP32", (1,), np.ones(1, np.float32))))
    capturing.write()
    assert counted == {"failed": 1}


def test_share_is_a_matter_of_chance_and_refused_requests_are_not_kept(plan: Callable[..., Plan], start: Start) -> None:
    capturing, handler = plan(share=0.3, mask=()), start(TabularHandler)
    for _ in range(40):
        ask(handler, tiny.rows(*GOOD), tiny.rows({**GOOD[0], "delay": "late"}), tiny.rows(RAISING))
    # Of 40 requests at 0.3, all but one time in 10,000 there are 2 to 24.
    assert 2 <= len(kept(capturing)) <= 24


def test_nothing_is_kept_unless_it_is_asked_for(start: Start, tmp_path: Path, metrics_directory: Path) -> None:
    assert CAPTURE not in os.environ
    ask(start(TabularHandler), tiny.rows(*GOOD))
    assert not (tmp_path / "kept").exists()
    assert not any("captured" in name for name in exposition(metrics_directory))


def test_copies_that_no_client_waits_for_are_not_kept(plan: Callable[..., Plan], start: Start) -> None:
    capturing, handler = plan(), start(TabularHandler)
    for why in ("1", "shadow"):
        body = orjson.dumps(GOOD[0])
        (answer,) = ask(handler, Request(ROWS, body, "application/json", {REPLAY_HEADER: why}, arrived="1"))
        assert answer.status == 200
    assert kept(capturing) == []


def test_prediction_id_and_counts_are_kept(plan: Callable[..., Plan], start: Start, metrics_directory: Path) -> None:
    capturing, handler = plan(), start(TabularHandler)
    now = time.time()
    ask(handler, Request(ROWS, orjson.dumps(GOOD[0]), "application/json", arrived=str(now)))
    (captured,) = kept(capturing)
    assert captured.id == prediction_id(now)
    assert now <= captured.at <= time.time()
    series = 'shipway_captured_requests_total{model="tiny",outcome="kept",version="3"}'
    assert exposition(metrics_directory)[series] == 1


def test_full_disk_costs_no_answer_and_what_follows_is_kept(
    plan: Callable[..., Plan], start: Start, monkeypatch: pytest.MonkeyPatch, metrics_directory: Path
) -> None:
    capturing, handler = plan(), start(TabularHandler)
    whole = os.write

    def half(descriptor: int, data: bytes) -> int:
        return whole(descriptor, data[: len(data) // 2])

    for write in (whole, half, whole):
        monkeypatch.setattr(os, "write", write)
        (answer,) = ask(handler, tiny.rows(*GOOD))
        assert answer.status == 200
    assert len(kept(capturing)) == 2
    series = 'shipway_captured_requests_total{model="tiny",outcome="failed",version="3"}'
    assert exposition(metrics_directory)[series] == 1


def test_directory_that_cannot_be_made_costs_no_answer(plan: Callable[..., Plan], start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan(directory=str(tmp_path / "file" / "below"))
    (answer,) = ask(start(TabularHandler), tiny.rows(*GOOD))
    assert answer.status == 200


class Clock:
    def __init__(self) -> None:
        self.now, self.cost = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.cost
        return self.now


def capturer(
    tmp_path: Path, golden: bytes = b"", clock: Callable[[], float] = time.monotonic, **changed: Any
) -> tuple[Capture, Counter[str]]:
    counted: Counter[str] = Counter()

    def count(outcome: str) -> None:
        counted[outcome] += 1

    return Capture(plan_of(tmp_path, **changed), MODEL, 3, golden, count, clock), counted


def asked(*tensors: Tensor) -> Asked:
    return Asked("id", "oip_http", lambda: tensors)


SMALL = Tensor("x", "FP32", (1,), np.ones(1, np.float32))


def test_capturing_takes_a_small_part_of_the_time(tmp_path: Path) -> None:
    clock = Clock()
    capturing, counted = capturer(tmp_path, clock=clock)
    clock.cost = 0.1  # every look at the clock, of which there are two for a request
    for _ in range(1000):
        capturing.note(asked(SMALL))
    capturing.write()
    assert counted["kept"] == pytest.approx(capture.BURST_SECONDS / 0.1 * (1 + 2 * capture.TIME_SHARE) + 50, rel=0.3)
    assert counted["busy"] == 1000 - counted["kept"]


def test_request_that_is_too_large_is_counted_and_not_kept(tmp_path: Path) -> None:
    capturing, counted = capturer(tmp_path, max_bytes=SEGMENTS * 1000)
    capturing.note(asked(Tensor("x", "FP32", (1000,), np.ones(1000, np.float32))))
    capturing.note(asked(SMALL))
    capturing.write()
    assert counted == {"too_large": 1, "kept": 1}


def test_full_segments_follow_each_other_and_removed_ones_are_left(tmp_path: Path) -> None:
    capturing, counted = capturer(tmp_path, max_bytes=SEGMENTS * 1000)
    found: set[Path] = set()
    for _ in range(20):
        capturing.note(asked(SMALL))
        capturing.write()
        found = set((tmp_path / "kept" / MODEL).iterdir())
    assert len(found) > 1
    assert all(path.stat().st_size <= 1000 for path in found)
    assert counted == {"kept": 20}
    for path in found:
        path.unlink()
    capturing.note(asked(SMALL))
    capturing.write()
    assert len(plan_of(tmp_path).segments.newest(MODEL, 9, time.time())) == 1


def test_plan_survives_the_environment(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mask=("a", "b"))
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["share"] == 1.0
