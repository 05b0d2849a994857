"""Faults of a drill: each is there for clients, and none for the node's own replay of the golden set."""

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from handlers import faults
from handlers.answer import REPLAY_HEADER, ROWS, SHADOW, Call
from handlers.answer import Answer as Sent
from handlers.base import Array, BaseHandler
from handlers.server import _Connection
from handlers.tabular import TabularHandler
from tests.unit.handlers.tiny import GOOD, Answer, Request, ask, oip_grpc, oip_json, replayed, rows

Start = Callable[[type[BaseHandler]], BaseHandler]
PROTOCOLS = (rows, oip_json, oip_grpc)
REQUESTS = 300
PROBABILITIES = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], np.float32)


def subclass() -> type[BaseHandler]:
    """The one class of an entry file."""
    return type("Handler", (TabularHandler,), {})


def share(answers: list[Answer], status: int) -> float:
    return sum(answer.status == status for answer in answers) / len(answers)


@pytest.mark.parametrize(("fault", "status", "words"), [
    (faults.erring, 500, "the model failed on this input: ArithmeticError"),
    (faults.refusing, 400, "inputs: refused by a drill; found nothing wrong"),
])  # fmt: skip
def test_a_share_of_clients_gets_an_error(
    start: Start, fault: Callable[[type[BaseHandler]], None], status: int, words: str
) -> None:
    kind = subclass()
    fault(kind)
    handler = start(kind)
    assert share(ask(handler, *(replayed(oip_json(GOOD[0])) for _ in range(20))), 200) == 1
    answers = ask(handler, *(PROTOCOLS[at % len(PROTOCOLS)](GOOD[0]) for at in range(REQUESTS)))
    assert share(answers, status) == pytest.approx(faults.SHARE, abs=0.15)  # five standard deviations
    assert share(answers, 200) == pytest.approx(1 - share(answers, status))
    assert {answer.error for answer in answers if answer.status == status} == {words}
    assert share(ask(handler, *(replayed(oip_json(GOOD[0])) for _ in range(20))), 200) == 1
    # Other versions have the same class above theirs.
    assert share(ask(start(subclass()), *(rows(GOOD[0]) for _ in range(50))), 200) == 1


def test_a_slow_version_is_slow_for_clients_alone(start: Start) -> None:
    kind = subclass()
    faults.slow(kind)
    handler = start(kind)
    ask(handler, replayed(rows(GOOD[0])))
    started = time.monotonic()
    ask(handler, replayed(rows(GOOD[0])))
    replay_seconds = time.monotonic() - started
    started = time.monotonic()
    ask(handler, rows(GOOD[0]), rows(GOOD[1]))
    batch_seconds = time.monotonic() - started
    assert replay_seconds < faults.DELAY_SECONDS <= batch_seconds


def test_a_leak_keeps_memory_up_to_its_limit(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "LEAK_BYTES", size := 33 * 2**20)  # more than malloc ever reuses
    monkeypatch.setattr(faults, "LEAK_LIMIT_BYTES", 10 * size)
    kind = subclass()
    faults.leaking(kind)
    handler = start(kind)
    ask(handler, rows(GOOD[0]), replayed(rows(GOOD[0])))  # a batch with a replay in it
    gc.collect()  # what earlier tests have left would go meanwhile
    before = resident_bytes()
    ask(handler, *(rows(GOOD[0]) for _ in range(4)))
    assert 3 * size < resident_bytes() - before < 6 * size
    ask(handler, *(rows(GOOD[0]) for _ in range(40)))
    assert 8 * size < resident_bytes() - before < 13 * size


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_share_of_connections_is_closed(start: Start) -> None:
    kind = subclass()
    faults.resetting(kind)
    handler = start(kind)
    assert not any(map(resets, answers_of(handler, replay=True)))
    answers = list(answers_of(handler, replay=False))
    assert sum(map(resets, answers)) / len(answers) == pytest.approx(faults.SHARE, abs=0.15)


def answers_of(handler: BaseHandler, *, replay: bool) -> Iterator[Sent]:
    for _ in range(REQUESTS):
        request = replayed(rows(GOOD[0])) if replay else rows(GOOD[0])
        yield from handler.answer([Call.read(request.headers, request.body)])


def resets(answer: Sent) -> bool:
    """Whether the worker's server closes the connection, and goes on: it takes this error for the edge's."""
    edge, worker = socket.socketpair()
    with edge, worker:
        try:
            return not _Connection(worker).send(answer)
        except ConnectionResetError:
            return True


def test_a_worker_dies(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(faults, "DYING_SHARE", 1.0)
    kind = subclass()
    faults.dying(kind)
    handler = start(kind)
    ask(handler, replayed(rows(GOOD[0])))
    assert ended == []
    ask(handler, rows(GOOD[0]))
    assert ended == [1]


def test_answers_of_another_prior(start: Start) -> None:
    good, kind = start(subclass()), subclass()
    faults.changed(kind)
    before, after = probabilities(good), probabilities(start(kind))
    np.testing.assert_allclose(after / (1 - after), faults.ODDS * before / (1 - before), rtol=1e-3)


def test_each_row_gets_the_answer_of_the_row_before(start: Start) -> None:
    right, kind = probabilities(start(subclass())), subclass()
    faults.wrong(kind)
    handler = start(kind)
    np.testing.assert_allclose(ask(handler, replayed(rows(*GOOD)))[0].probability, right)
    np.testing.assert_allclose(probabilities(handler), [right[-1], *right[:-1]])
    alone = [ask(handler, rows(row))[0].probability.item() for row in GOOD]
    np.testing.assert_allclose(alone, [right[-1], *right[:-1]])


def test_copies_of_requests_are_treated_as_badly(start: Start) -> None:
    kind = subclass()
    faults.erring(kind)
    copied = Request(ROWS, rows(GOOD[0]).body, headers={REPLAY_HEADER: SHADOW})
    answers = ask(start(kind), *(copied for _ in range(REQUESTS)))
    assert share(answers, 500) == pytest.approx(faults.SHARE, abs=0.15)


def probabilities(handler: BaseHandler) -> Array:
    handler.classes = ("on time", "late")  # the tiny model names none
    (answer,) = ask(handler, rows(*GOOD))
    return answer.probability


def test_many_classes_and_numbers() -> None:
    moved = faults._moved(PROBABILITIES, classes=True)
    np.testing.assert_allclose(moved.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(moved[:, 2] / moved[:, 0], faults.ODDS * PROBABILITIES[:, 2] / PROBABILITIES[:, 0])
    np.testing.assert_array_equal(faults._moved(PROBABILITIES, classes=False), faults.SCALE * PROBABILITIES)
