"""From what a worker tells to what Prometheus reads: real sockets, a real file, and the clock's own time."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sklearn.metrics import confusion_matrix

from deploy.errors import StoreUnavailable
from deploy.node.agreement import Agreement
from deploy.node.blocks import pack_id
from deploy.node.feedback import Feedback, Limits
from deploy.node.feedback_store import SQLite, Store
from deploy.node.labels import Label, Result
from handlers.predictions import Teller, Version
from monitoring import names
from tests.unit.handlers.tiny import prediction_id

VERSION = Version("digits", "4", ("zero", "one", "two"))
LIMITS = Limits(flush_seconds=0.01, retry_seconds=0.05)
WITHIN_SECONDS = 20.0
_numbers = count()


class Breaking(SQLite):
    """Cannot be used while it is told so."""

    broken = False

    def connect(self) -> sqlite3.Connection:
        if self.broken:
            raise sqlite3.OperationalError("database or disk is full")
        return super().connect()


@asynccontextmanager
async def running(state_dir: Path, store: Store, limits: Limits = LIMITS) -> AsyncIterator[Feedback]:
    """The launcher's part of it."""
    path = state_dir / "predictions.sock"
    path.unlink(missing_ok=True)
    feedback = Feedback(store, path, limits, lambda: None, Agreement())
    task = asyncio.create_task(feedback.run())
    try:
        await until(path.exists)
        yield feedback
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await feedback.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def ids(number: int) -> list[str]:
    """Of predictions that are made now."""
    return [prediction_id(time.time(), next(_numbers)) for _ in range(number)]


def label(made: str, text: str, row: int | None = None) -> Label:
    return Label(*pack_id(made), row, text)


def outcomes(results: Sequence[Result]) -> list[str]:
    return [result.outcome for result in results]


def exposition(feedback: Feedback) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(feedback)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def pair(predicted: str, actual: str) -> str:
    return f'shipway_feedback_total{{actual="{actual}",model="digits",predicted="{predicted}",version="4"}}'


def predictions(outcome: str) -> str:
    return f'shipway_feedback_predictions_total{{model="digits",outcome="{outcome}",version="4"}}'


@pytest.fixture
def worker(state_dir: Path) -> Iterator[Callable[[], Teller]]:
    """A function that connects a worker."""
    tellers: list[Teller] = []

    def connect(version: Version = VERSION) -> Teller:
        tellers.append(Teller(str(state_dir / "predictions.sock"), version))
        return tellers[-1]

    yield connect
    for teller in tellers:
        teller.close()


Worker = Callable[..., Teller]


def test_confusion_is_that_of_scikit_learn(state_dir: Path, worker: Worker) -> None:
    random = np.random.default_rng(3)
    predicted = random.integers(0, 3, 500)
    actual = np.where(random.random(500) < 0.7, predicted, random.integers(0, 4, 500))
    texts = (*VERSION.classes, "three")
    made = ids(250)

    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            teller = worker()
            for at in range(0, 250, 10):  # each of two rows
                teller.tell(made[at : at + 10], [2] * 10, predicted[2 * at : 2 * at + 20])
            labels = [label(made[n // 2], texts[actual[n]], n % 2) for n in random.permutation(500).tolist()]
            assert set(outcomes(await feedback.label(labels))) == {"joined"}
            found = exposition(feedback)
        expected = confusion_matrix(predicted, actual, labels=range(4))
        for p, a in product(range(3), range(4)):
            assert found[pair(texts[p], (*VERSION.classes, "other")[a])] == expected[p, a]
        assert found['shipway_feedback_labels_total{outcome="joined"}'] == 500
        assert (found[predictions("kept")], found[predictions("dropped")]) == (500, 0)

    asyncio.run(main())


def test_label_that_comes_at_once_is_joined(state_dir: Path, worker: Worker) -> None:
    """Whatever waits is written first, however long that would have waited."""

    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f"), replace(LIMITS, flush_seconds=60)) as feedback:
            teller = worker()
            await until(lambda: feedback._receiver._workers)
            for _ in range(50):
                (made,) = ids(1)
                teller.tell([made], [1], np.array([1]))
                assert outcomes(await feedback.label([label(made, "one")])) == ["joined"]

    asyncio.run(asyncio.wait_for(main(), WITHIN_SECONDS))


def test_label_that_is_before_its_prediction_waits_for_it(state_dir: Path, worker: Worker) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f"), replace(LIMITS, settle_seconds=10)) as feedback:
            teller = worker()
            made = ids(2)
            teller.tell(made[:1], [1], np.array([0]))
            labelling = asyncio.create_task(feedback.label([label(made[0], "one"), label(made[1], "two")]))
            await until(lambda: exposition(feedback).get(pair("zero", "one")))
            assert not labelling.done()
            teller.tell(made[1:], [1], np.array([2]))
            assert outcomes(await labelling) == ["joined", "joined"]
            assert exposition(feedback)[pair("two", "two")] == 1

    asyncio.run(main())


def test_label_of_an_old_prediction_that_is_not_kept_waits_for_nothing(state_dir: Path) -> None:
    old, young = prediction_id(time.time() - 3600), prediction_id(time.time())

    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f"), replace(LIMITS, settle_seconds=0.2)) as feedback:
            for made, least in ((old, 0.0), (young, 0.2)):
                started = time.monotonic()
                assert outcomes(await feedback.label([label(made, "one")])) == ["unknown"]
                assert least <= time.monotonic() - started
            assert exposition(feedback)['shipway_feedback_labels_total{outcome="unknown"}'] == 2

        async with running(state_dir, SQLite(state_dir / "f"), replace(LIMITS, settle_seconds=60)) as feedback:
            assert outcomes(await feedback.label([label(old, "one")])) == ["unknown"]

    asyncio.run(asyncio.wait_for(main(), WITHIN_SECONDS))


def test_refused_labels_stay_refused_and_count(state_dir: Path, worker: Worker) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            (made,) = ids(1)
            worker().tell([made], [2], np.array([1, 1]))
            refused = Result("refused", "why")
            results = await feedback.label([refused, label(made, "one", 1), label(made, "one", 7)])
            assert outcomes(results) == ["refused", "joined", "refused"]
            assert results[0] is refused
            assert exposition(feedback)['shipway_feedback_labels_total{outcome="refused"}'] == 2

    asyncio.run(main())


def test_what_cannot_be_written_waits_and_what_is_too_much_is_dropped(
    state_dir: Path, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Breaking(state_dir / "f")
        store.broken = True
        async with running(state_dir, store, replace(LIMITS, waiting_rows=100)) as feedback:
            teller = worker()
            made = ids(130)
            for each in made:
                teller.tell([each], [1], np.array([2]))
            await until(lambda: exposition(feedback).get(predictions("dropped")) == 30)
            with pytest.raises(StoreUnavailable, match="database or disk is full"):
                await feedback.label([label(made[0], "two")])
            assert feedback.problems() == (
                f"the feedback store {state_dir}/f cannot be used now: database or disk is full",
            )
            assert exposition(feedback)[predictions("kept")] == 0
            store.broken = False
            await until(lambda: not feedback.problems())
            results = outcomes(await feedback.label([label(each, "two") for each in made]))
            assert results == ["joined"] * 100 + ["unknown"] * 30
            found = exposition(feedback)
            assert (found[predictions("kept")], found[predictions("dropped")]) == (100, 30)

    asyncio.run(main())
    assert len([record for record in caplog.records if "predictions wait" in record.message]) == 1


def test_what_a_worker_lost_counts_as_dropped(state_dir: Path, worker: Worker) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            teller = worker()
            teller._lost = 17
            teller.tell(ids(1), [1], np.array([0]))
            await until(lambda: exposition(feedback).get(predictions("kept")) == 1)
            assert exposition(feedback)[predictions("dropped")] == 17

    asyncio.run(main())


def test_counts_go_on_after_a_restart(state_dir: Path, worker: Worker) -> None:
    made = ids(3)

    async def before() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            worker().tell(made, [1, 1, 1], np.array([0, 1, 2]))
            await feedback.label([label(made[0], "one")])

    async def after() -> None:
        # No worker: the version may have gone, but labels for it may still come.
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            await until(lambda: pair("zero", "one") in exposition(feedback))
            found = exposition(feedback)
            assert (found[pair("zero", "one")], found[pair("one", "one")]) == (1, 0)
            results = await feedback.label([label(each, "one") for each in made])
            assert outcomes(results) == ["repeated", "joined", "joined"]
            found = exposition(feedback)
            assert [found[pair(each, "one")] for each in VERSION.classes] == [1, 1, 1]

    asyncio.run(before())
    asyncio.run(after())


def test_what_was_told_last_is_kept_when_the_node_stops(state_dir: Path, worker: Worker) -> None:
    (made,) = ids(1)

    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f"), replace(LIMITS, flush_seconds=60)) as feedback:
            teller = worker()
            await until(lambda: feedback._receiver._workers)
            teller.tell([made], [1], np.array([0]))
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            assert outcomes(await feedback.label([label(made, "one")])) == ["joined"]

    asyncio.run(main())


def test_metrics_are_those_that_are_declared(state_dir: Path, worker: Worker) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            worker()
            await until(lambda: predictions("kept") in exposition(feedback))
            found = {family.name + "_total": family for family in feedback.collect()}
            declared = {
                metric.name: metric for metric in (names.FEEDBACK, names.FEEDBACK_LABELS, names.PREDICTIONS_KEPT)
            }
            assert {name: family.documentation for name, family in found.items()} == {
                name: metric.help for name, metric in declared.items()
            }
            for name, family in found.items():
                assert {tuple(sorted(sample.labels)) for sample in family.samples} == {
                    tuple(sorted(declared[name].labels))
                }

    asyncio.run(main())


@pytest.mark.parametrize("number", [12, 13])
def test_every_pair_is_there_from_the_start_while_they_are_few(state_dir: Path, worker: Worker, number: int) -> None:
    classes = tuple(map(str, range(number)))

    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            worker(Version("digits", "4", classes))
            await until(lambda: predictions("kept") in exposition(feedback))
            pairs = {
                series: value for series, value in exposition(feedback).items() if "shipway_feedback_total" in series
            }
            assert pairs == ({pair(p, a): 0 for p in classes for a in classes} if number == 12 else {})

    asyncio.run(main())


def test_predictions_are_let_go_of_while_the_node_runs(state_dir: Path, worker: Worker) -> None:
    async def main() -> None:
        limits = replace(LIMITS, keep_rows=5, trim_seconds=0.05)
        async with running(state_dir, SQLite(state_dir / "f"), limits) as feedback:
            teller = worker()
            made = [prediction_id(time.time() - 100 + second) for second in range(20)]
            teller.tell(made, [1] * 20, np.zeros(20, dtype=np.int64))
            await until(lambda: exposition(feedback).get(predictions("kept")) == 20)
            size = sqlite3.connect(state_dir / "f")
            await until(lambda: size.execute("SELECT sum(size) FROM shipway_predictions").fetchone() == (5,))
            size.close()
            labels = [label(each, "zero") for each in made]
            assert outcomes(await feedback.label(labels)) == ["unknown"] * 15 + ["joined"] * 5

    asyncio.run(main())


def test_fault_of_ours_drops_its_predictions_and_no_others(
    state_dir: Path, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            teller = worker()
            teller.tell(["x" * 36], [1], np.array([0]))
            await until(lambda: exposition(feedback).get(predictions("dropped")) == 1)
            (made,) = ids(1)
            teller.tell([made], [1], np.array([0]))
            assert outcomes(await feedback.label([label(made, "zero")])) == ["joined"]

    asyncio.run(main())
    assert "predictions were dropped" in caplog.text


def test_worker_that_says_what_no_worker_says_is_left(
    state_dir: Path, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running(state_dir, SQLite(state_dir / "f")) as feedback:
            broken, right = worker(), worker()
            broken._socket.send(b"nonsense")
            await until(lambda: "a worker said what no worker says" in caplog.text)
            (made,) = ids(1)
            right.tell([made], [1], np.array([0]))
            assert outcomes(await feedback.label([label(made, "zero")])) == ["joined"]

    asyncio.run(main())
