"""A worker's own metrics, in prometheus_client's multiprocess files bound to the worker's slot."""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.values import MultiProcessValue

from handlers.slots import Slot
from monitoring import names

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Where workers count; the node sets it in TorchServe's environment, under the metrics library's own name."""

Outcome = Literal["ok", "refused", "failed", "expired"]


class WorkerMetrics:
    """Metrics of one version in this worker. Children are kept, because looking labels up costs as much as counting."""

    def __init__(self, directory: Path, slot: Slot, model: str, version: str) -> None:
        # The library decides how values are stored when it is imported, by an environment variable, and names the
        # files by process; a slot's number instead keeps their number bounded over restarts.
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not there: the node makes it before it starts a worker")
        prometheus_client.values.ValueClass = MultiProcessValue(lambda: slot.number)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        self._labels = {"model": model, "version": version}
        self._seconds = Histogram(
            names.REQUEST_SECONDS.name,
            names.REQUEST_SECONDS.help,
            names.REQUEST_SECONDS.labels,
            buckets=names.LATENCY_BUCKETS_SECONDS,
            registry=registry,
        )
        self._requests = Counter(names.REQUESTS.name, names.REQUESTS.help, names.REQUESTS.labels, registry=registry)
        self._batches = Histogram(
            names.BATCH_REQUESTS.name,
            names.BATCH_REQUESTS.help,
            names.BATCH_REQUESTS.labels,
            buckets=names.BATCH_BUCKETS,
            registry=registry,
        ).labels(**self._labels)
        self._queue = Counter(
            names.QUEUE_SECONDS.name, names.QUEUE_SECONDS.help, names.QUEUE_SECONDS.labels, registry=registry
        ).labels(**self._labels)
        self._errors = Counter(
            names.MONITOR_ERRORS.name, names.MONITOR_ERRORS.help, names.MONITOR_ERRORS.labels, registry=registry
        ).labels(**self._labels)
        self._captured = Counter(names.CAPTURED.name, names.CAPTURED.help, names.CAPTURED.labels, registry=registry)
        self._children: dict[tuple[str, Outcome], tuple[Histogram, Counter]] = {}

    def answered(self, protocol: str, outcome: Outcome, seconds: Sequence[float], requests: int) -> None:
        """`requests` of one batch were answered, `seconds` after they reached the edge where it said when."""
        children = self._children.get((protocol, outcome))
        if children is None:
            children = (
                self._seconds.labels(protocol=protocol, **self._labels),
                self._requests.labels(protocol=protocol, outcome=outcome, **self._labels),
            )
            self._children[protocol, outcome] = children
        _observe(children[0], seconds)
        children[1].inc(requests)

    def batch(self, requests: int, waited_seconds: Sequence[float]) -> None:
        """A worker took `requests` at once, each after it had waited."""
        self._batches.observe(requests)
        self._queue.inc(sum(waited_seconds))

    def monitor_error(self, requests: int) -> None:
        self._errors.inc(requests)

    def captured(self, outcome: str) -> None:
        self._captured.labels(outcome=outcome, **self._labels).inc()


def _observe(child: Histogram, values: Sequence[float]) -> None:
    """What `child.observe` does for each value, with one write for all that fall into the same bucket."""
    if not values:
        return
    child._sum.inc(sum(values))  # noqa: SLF001 - the library writes twice for every value, and has no other way
    tally = Tally([bisect_left(child._upper_bounds, value) for value in values])  # noqa: SLF001
    for bucket, times in tally.items():
        child._buckets[bucket].inc(times)  # noqa: SLF001
