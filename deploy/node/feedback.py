"""Feedback: predictions are kept, labels joined to them, and what came of it counted under the version that predicted.

One thread writes, in the order in which it is asked to: what waits is written before any label is looked up. What
waits is bounded, and what is beyond that is dropped and counted, as a prediction must never wait for a disk.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.errors import StoreUnavailable
from deploy.node.agreement import Agreement
from deploy.node.blocks import Block, key, pack
from deploy.node.feedback_store import Pair, Store
from deploy.node.labels import OUTCOMES, UNKNOWN, Label, Result
from deploy.node.predictions import Receiver
from handlers.predictions import Predictions, Version
from monitoring import names

logger = logging.getLogger(__name__)

ALL_PAIRS_UP_TO_CLASSES = 12
"""A model of so many classes has every pair of them at 0 from the start; of more, and with `other`, as they occur."""
ANSWER_SECONDS = 4.0
"""For one request, less than the edge gives it."""
_AGAIN_SECONDS = 0.05
"""Between two looks for a prediction that may be on its way."""
Name = tuple[str, str]
"""Model and version."""


@dataclass(frozen=True)
class Limits:
    keep_hours: float = 168.0
    keep_rows: int = 10_000_000
    waiting_rows: int = 200_000
    """Rows that may wait to be written. Each takes half a kilobyte where requests come alone."""
    flush_seconds: float = 0.2
    retry_seconds: float = 1.0
    trim_seconds: float = 60.0
    settle_seconds: float = 0.5
    """A prediction is told a moment after it is answered, by a worker or by another node."""
    settled_seconds: float = 60.0
    """A prediction that was asked for so long ago has been told, if it was made."""


class Feedback(Collector):
    """All of it for one node. Also the collector of its metrics."""

    def __init__(
        self, store: Store, socket: Path, limits: Limits, publish: Callable[[], None], agreement: Agreement
    ) -> None:
        self._store = store
        self._limits = limits
        self._publish = publish
        self._agreement = agreement
        self._receiver = Receiver(socket, self._announced, self._predicted, agreement.copied)
        self._writer = ThreadPoolExecutor(1, "feedback")
        self._work = asyncio.Event()
        self._lock = threading.Lock()
        # Held by the lock: what the loop's thread has for the writer's.
        self._waiting: list[tuple[Version, Predictions]] = []
        self._waiting_rows = 0
        self._predicting: set[Version] = set()
        """Since the store was told last."""
        self._kept, self._dropped = Counter[Name](), Counter[Name]()
        # The writer's, as the store has them.
        self._stale = True
        self._trimmed_at = 0.0
        self._versions: frozenset[Version] = frozenset()
        self._counts: dict[Pair, int] = {}
        # The loop's.
        self._problem = ""
        self._labels = Counter[str]()

    def problems(self) -> tuple[str, ...]:
        """What a person should know, in words."""
        return (self._problem,) if self._problem else ()

    async def run(self) -> None:
        """Take in predictions and write them until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receiver.serve())
            group.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, if that is possible, and let go of the store. `run` has ended."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._flush)
        except StoreUnavailable as error:
            logger.error("%s; %s predicted rows were not kept", error, self._waiting_rows)
        await loop.run_in_executor(self._writer, self._store.close)
        self._writer.shutdown()

    async def label(self, labels: Sequence[Label | Result]) -> list[Result]:
        """What became of each; those that were refused already stay so. A label that is before its prediction waits.

        Raises StoreUnavailable: then all may be sent again, as what was joined nevertheless is repeated and changes
        nothing.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                results = await self._settled(labels)
        except TimeoutError:
            raise StoreUnavailable(self._store.place, f"no answer within {ANSWER_SECONDS:g} s") from None
        self._labels.update(result.outcome for result in results)
        return results

    async def _settled(self, labels: Sequence[Label | Result]) -> list[Result]:
        results = [each if isinstance(each, Result) else UNKNOWN for each in labels]
        left = {index: each for index, each in enumerate(labels) if isinstance(each, Label)}
        until = time.monotonic() + self._limits.settle_seconds
        while left:
            self._receiver.drain()
            joining = asyncio.get_running_loop().run_in_executor(self._writer, self._join, list(left.values()))
            for index, result in zip(left, await joining, strict=True):
                results[index] = result
            if time.monotonic() > until:
                break
            young = _tenth() - int(10 * self._limits.settled_seconds)
            left = {i: each for i, each in left.items() if results[i] is UNKNOWN and each.tenth >= young}
            if left:
                await asyncio.sleep(_AGAIN_SECONDS)
        return results

    # On the loop's thread, called for what workers say.

    def _announced(self, version: Version) -> None:
        with self._lock:
            self._predicting.add(version)
        self._work.set()

    def _predicted(self, version: Version, predictions: Predictions) -> None:
        self._agreement.answered(version, predictions)
        rows, name = predictions.size, (version.model, version.version)
        with self._lock:
            self._predicting.add(version)
            self._dropped[name] += predictions.lost
            if self._waiting_rows + rows > self._limits.waiting_rows:
                self._dropped[name] += rows
                return
            self._waiting.append((version, predictions))
            self._waiting_rows += rows
        self._work.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        self._work.set()
        while True:
            try:
                async with asyncio.timeout(self._limits.trim_seconds):
                    await self._work.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(self._limits.flush_seconds)
            self._work.clear()
            try:
                await loop.run_in_executor(self._writer, self._flush_and_trim)
                self._say("")
            except StoreUnavailable as error:
                self._say(str(error))
                self._work.set()
                await asyncio.sleep(self._limits.retry_seconds)

    def _say(self, problem: str) -> None:
        if problem == self._problem:
            return
        if problem:
            logger.error("%s; predictions wait, up to %s rows of them", problem, self._limits.waiting_rows)
        else:
            logger.info("the feedback store %s is in use", self._store.place)
        self._problem = problem
        self._publish()

    # On the writer's thread.

    def _flush_and_trim(self) -> None:
        self._flush()
        now = time.monotonic()
        if now - self._trimmed_at > self._limits.trim_seconds:
            self._trimmed_at = now
            self._refresh()
            self._store.trim(self._oldest(), self._limits.keep_rows)

    def _flush(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
            new = self._predicting - self._versions
        if new or self._stale:
            self._refresh()
        if not waiting:
            return
        try:
            self._store.keep(_blocks(waiting))
            outcomes = self._kept
        except StoreUnavailable:
            raise
        except Exception:  # of ours: it would come back for ever
            logger.exception("predictions were dropped")
            outcomes = self._dropped
        with self._lock:
            del self._waiting[: len(waiting)]
            for version, predictions in waiting:
                rows = predictions.size
                self._waiting_rows -= rows
                outcomes[version.model, version.version] += rows

    def _refresh(self) -> None:
        """Tell the store who predicts, and take over its counts of all whose predictions it keeps."""
        with self._lock:
            predicting = frozenset(self._predicting)
        self._store.announce(predicting, _tenth())
        with self._lock:
            self._predicting -= predicting
        self._versions = frozenset(self._store.versions(self._oldest()))
        self._counts = self._store.counts()
        self._stale = False

    def _join(self, labels: Sequence[Label]) -> list[Result]:
        self._flush()
        results, counts = self._store.join(labels)
        self._counts.update(counts)
        shown = {(version.model, version.version) for version in self._versions}
        self._stale = self._stale or any(pair[:2] not in shown for pair in counts)
        return results

    def _oldest(self) -> int:
        return _tenth() - int(10 * 3600 * self._limits.keep_hours)

    # Wherever metrics are made.

    def collect(self) -> Iterator[Metric]:
        labels, predictions, joined = map(_family, (names.FEEDBACK_LABELS, names.PREDICTIONS_KEPT, names.FEEDBACK))
        for outcome in OUTCOMES:
            labels.add_metric([outcome], self._labels[outcome])
        with self._lock:
            told = {"kept": self._kept.copy(), "dropped": self._dropped.copy()}
        shown = {(version.model, version.version) for version in self._versions}
        for name, (kind, rows) in product(sorted(shown.union(*told.values())), told.items()):
            predictions.add_metric([*name, kind], rows[name])
        counts = {pair: 0 for version in self._versions for pair in _pairs(version)}
        counts |= {pair: count for pair, count in self._counts.copy().items() if pair[:2] in shown}
        for pair, count in sorted(counts.items()):
            joined.add_metric(pair, count)
        yield from (labels, predictions, joined)


def _blocks(waiting: Iterable[tuple[Version, Predictions]]) -> Iterator[Block]:
    by_version: dict[Version, list[Predictions]] = {}
    for version, predictions in waiting:
        by_version.setdefault(version, []).append(predictions)
    return (block for version, messages in by_version.items() for block in pack(key(version), messages))


def _pairs(version: Version) -> Iterator[Pair]:
    """Those that are there from the start, as Prometheus counts no increase from nothing."""
    if len(version.classes) <= ALL_PAIRS_UP_TO_CLASSES:
        for predicted, actual in product(version.classes, repeat=2):
            yield version.model, version.version, predicted, actual


def _family(metric: names.Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _tenth() -> int:
    """Now, in tenths of a second since 1970."""
    return int(10 * time.time())
