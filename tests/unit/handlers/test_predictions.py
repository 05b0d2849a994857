"""What a worker says that it predicted: over a real socket, never waiting for anybody and never raising."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from handlers.answer import SHADOW
from handlers.base import BaseHandler
from handlers.predictions import OF_COPIES, PREDICTIONS, Predictions, Teller, Version, teller
from handlers.tabular import TabularHandler
from tests.unit.handlers.tiny import (
    GOOD,
    MODEL,
    RAISING,
    Request,
    ask,
    exposition,
    oip_grpc,
    oip_json,
    prediction_id,
    replayed,
    rows,
)

VERSION = Version("flights", "3", ("on time", "late"))
IDS = [prediction_id(1795000000.25, number) for number in range(3)]
NOW = 1e9


class Launcher:
    """The launcher's end, which reads only when it is asked to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(10)

    def accept(self) -> tuple[Version, socket.socket]:
        worker, _ = self._listener.accept()
        worker.settimeout(10)
        return Version.from_json(worker.recv(1 << 20)), worker

    def close(self) -> None:
        self._listener.close()


def heard(worker: socket.socket, *, of_copies: bool = False) -> list[Predictions]:
    """All that waits."""
    worker.setblocking(False)
    found = []
    while True:
        try:
            found.append(Predictions.from_bytes(worker.recv(1 << 22), of_copies=of_copies))
        except BlockingIOError:
            return found


def rows_of(*messages: Predictions) -> list[int]:
    return list(memoryview(b"".join(message.rows for message in messages)).cast("I"))


def classes_of(*messages: Predictions) -> list[int]:
    return list(memoryview(b"".join(message.classes for message in messages)).cast("H"))


@pytest.fixture
def launcher(short_directory: Callable[[], Path]) -> Iterator[Launcher]:
    found = Launcher(short_directory() / "predictions.sock")
    yield found
    found.close()


@pytest.fixture
def told(launcher: Launcher) -> Iterator[tuple[Teller, socket.socket]]:
    """Both ends of one worker's connection."""
    found = Teller(str(launcher.path), VERSION)
    version, worker = launcher.accept()
    assert version == VERSION
    yield found, worker
    found.close()
    worker.close()


def classes(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values)


def test_launcher_hears_what_was_told(told: tuple[Teller, socket.socket]) -> None:
    told[0].tell(IDS, [1, 3, 1], classes(0, 1, 0, 1, 1))
    (message,) = heard(told[1])
    assert message.ids.decode() == "".join(IDS)
    assert rows_of(message) == [1, 3, 1]
    assert classes_of(message) == [0, 1, 0, 1, 1]
    assert message.lost == 0


def test_what_nobody_takes_is_lost_and_the_next_message_says_how_much(told: tuple[Teller, socket.socket]) -> None:
    sent = 0
    started = time.monotonic()
    while not told[0]._lost:
        told[0].tell(IDS, [1, 3, 1], classes(0, 1, 0, 1, 1))
        sent += 1
    told[0].tell(IDS[:1], [2], classes(0, 1))
    assert time.monotonic() - started < 10
    taken = heard(told[1])
    assert len(taken) == sent - 1
    assert sum(message.lost for message in taken) == 0
    told[0].tell(IDS[:1], [1], classes(1))
    told[0].tell(IDS[:1], [1], classes(1))
    assert [message.lost for message in heard(told[1])] == [5 + 2, 0]


def test_batch_that_is_too_long_for_a_message_comes_in_several(told: tuple[Teller, socket.socket]) -> None:
    room = told[0]._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    counts = [1, room // 6, room // 6, room // 6]
    expected = np.random.default_rng(0).integers(0, 60_000, sum(counts))
    ids = [*IDS, prediction_id(1795000001.0)]
    told[0].tell(ids, counts, expected)
    messages = heard(told[1])
    assert len(messages) > 1
    assert b"".join(message.ids for message in messages).decode() == "".join(ids)
    assert rows_of(*messages) == counts
    assert classes_of(*messages) == expected.tolist()


def test_request_that_fits_no_message_is_lost_alone(told: tuple[Teller, socket.socket]) -> None:
    room = told[0]._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    told[0].tell(IDS, [1, room, 1], np.zeros(room + 2, dtype=np.int64))
    told[0].tell(IDS[:1], [1], classes(0))
    messages = heard(told[1])
    assert sum(rows_of(*messages)) == 3
    assert sum(message.lost for message in messages) == room


def test_launcher_that_is_gone_costs_nothing(told: tuple[Teller, socket.socket]) -> None:
    told[1].close()
    told[0].tell(IDS[:1], [1], classes(0))
    assert told[0]._lost == 1


def test_worker_without_a_launcher_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert teller(VERSION) is None
    monkeypatch.setenv(PREDICTIONS, str(tmp_path / "nobody.sock"))
    assert teller(VERSION) is None
    assert "predictions of this worker are not kept for labels" in caplog.text


@pytest.mark.parametrize("message", [b"", b"x" * 11, b"\1\0\0\0" + bytes(8) + b"x"])
def test_what_no_worker_says_is_not_taken(message: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Predictions.from_bytes(message)


class Deciding(TabularHandler):
    """Says so of its probability."""

    def load(self) -> None:
        super().load()
        self.classes = ("on time", "late")


class Worker:
    """A handler that tells a launcher."""

    def __init__(self, handler: BaseHandler, socket_: socket.socket) -> None:
        self.handler = handler
        self.socket = socket_


Begin = Callable[[type[BaseHandler]], Worker]


@pytest.fixture
def begin(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, start: Callable[[type[BaseHandler]], BaseHandler]
) -> Iterator[Begin]:
    workers: list[Worker] = []

    def initialize(kind: type[BaseHandler]) -> Worker:
        monkeypatch.setenv(PREDICTIONS, str(launcher.path))
        handler = start(kind)
        version, worker = launcher.accept()
        assert version == Version(MODEL, "3", ("on time", "late"))
        workers.append(Worker(handler, worker))
        return workers[-1]

    yield initialize
    for worker in workers:
        worker.socket.close()
        assert worker.handler._teller is not None
        worker.handler._teller.close()


def from_the_edge(request: Request, arrived: float) -> Request:
    """The same request with an id and a time."""
    return Request(request.protocol, request.body, request.headers["content-type"], arrived=str(arrived))


def test_classes_of_all_rows_are_told_under_the_ids_of_their_requests(begin: Begin) -> None:
    worker = begin(Deciding)
    requests = (rows(*GOOD), oip_grpc(GOOD[0]), rows(RAISING), oip_json(*GOOD[:2]))
    sent = [from_the_edge(request, NOW + at) for at, request in enumerate(requests)]
    # The one on which the program raises has the others asked once more by themselves, each its own message.
    answers = ask(worker.handler, *sent)
    assert [answer.status for answer in answers] == [200, 200, 500, 200]
    messages = heard(worker.socket)
    assert b"".join(m.ids for m in messages).decode() == "".join(prediction_id(NOW + at) for at in (0, 1, 3))
    assert rows_of(*messages) == [3, 1, 2]
    expected = np.concatenate([answers[at].probability for at in (0, 1, 3)]) > 0.5
    assert classes_of(*messages) == expected.astype(int).tolist()


def test_replays_are_not_told(begin: Begin) -> None:
    worker = begin(Deciding)
    client = from_the_edge(rows(*GOOD[:2]), NOW)
    ask(worker.handler, replayed(rows(*GOOD)), client, replayed(rows(GOOD[0])))
    (message,) = heard(worker.socket)
    assert (message.ids.decode(), rows_of(message)) == (prediction_id(NOW), [2])
    ask(worker.handler, replayed(rows(*GOOD)))
    assert heard(worker.socket) == []


def test_copies_are_told_by_themselves_and_counted_nowhere(
    begin: Begin, launcher: Launcher, metrics_directory: Path
) -> None:
    worker = begin(Deciding)
    client, copy = (from_the_edge(rows(*GOOD[:2]), NOW + at) for at in (0, 1))
    ask(worker.handler, replayed(copy, SHADOW), client, replayed(rows(*GOOD)))
    launcher_of_copies, _ = launcher._listener.accept()
    with launcher_of_copies:
        said = launcher_of_copies.recv(1 << 20)
        assert Version.from_json(said.removeprefix(OF_COPIES)) == Version(MODEL, "3", ("on time", "late"))
        assert said.startswith(OF_COPIES)
        (of_copy,) = heard(launcher_of_copies, of_copies=True)
        (of_client,) = heard(worker.socket)
        assert (of_copy.ids.decode(), of_client.ids.decode()) == (prediction_id(NOW + 1), prediction_id(NOW))
        assert classes_of(of_copy) == classes_of(of_client)
        assert all(127 <= each <= 255 for each in of_copy.sure)  # of two classes the likelier one
        assert (len(of_copy.sure), len(of_client.sure)) == (2, 0)
    series = 'shipway_requests_total{model="tiny",outcome="ok",protocol="predictions",version="3"}'
    assert exposition(metrics_directory)[series] == 1
    told = worker.handler._teller_of_copies
    assert told is not None
    told.close()


def test_fault_in_telling_costs_no_answer(
    begin: Begin, metrics_directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = begin(Deciding)
    monkeypatch.setattr(worker.handler, "probabilities", lambda outputs: outputs[0][0])  # of no row at all
    (answer,) = ask(worker.handler, from_the_edge(rows(GOOD[0]), NOW))
    assert answer.status == 200
    assert "a batch was answered but not kept for labels" in caplog.text
    assert exposition(metrics_directory)['shipway_monitor_errors_total{model="tiny",version="3"}'] >= 1
    assert heard(worker.socket) == []


def test_model_without_classes_and_explainer_tell_nobody(
    start: Callable[[type[BaseHandler]], BaseHandler],
    explainer: Callable[[type[BaseHandler], Path], BaseHandler],
    archive: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Numbers(TabularHandler):
        def load(self) -> None:
            super().load()
            self.classes = ()

    monkeypatch.setenv(PREDICTIONS, str(launcher.path))
    assert start(Numbers)._teller is None
    assert explainer(Deciding, archive)._teller is None
