"""Everything that a report shows, asked of Prometheus: counters over the window, and over its parts for each figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from deploy.drift import Drift, Question, examine
from deploy.prometheus import Array, Prometheus, Range, duration_text, selector
from deploy.rollout.record import Entry
from deploy.traffic import read_features
from monitoring import drift, names

QUANTILES = (0.5, 0.95, 0.99)
POINTS = 120
"""Of a line."""
LEAST_AVERAGE_SECONDS = 240
"""Fewer may hold too few scrapes, where Prometheus scrapes once a minute."""
MOST_PARTS = 24
LEAST_PART_SECONDS = 600
"""Parts of the window that counts of drift and quality are compared over: the shortest that rules look at."""
CONFIDENCE_Z = 1.96
"""Bounds of the accuracy hold it with 95%."""
ALERTS_OF_NO_MODEL = "NodeDown|Gpu.*"


@dataclass(frozen=True)
class Service:
    """What one version answered over the window."""

    version: int
    rows: float
    requests: float
    failed: float
    """Share answered 5xx; NaN without requests, as the next ones."""
    refused: float
    """Share answered 4xx."""
    latency_seconds: tuple[float, ...]
    """At each of QUANTILES."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Over time and by version, each point over the `average_seconds` before it."""

    average_seconds: float
    rate: Range
    failed: Range
    refused: Range
    latency: Mapping[float, Range]


@dataclass(frozen=True, eq=False)
class Heat:
    """Drift of every feature over the window's parts."""

    times: Array
    """Ends of the parts, [parts]."""
    part_seconds: float
    features: tuple[tuple[str, str], ...]
    """Name and kind."""
    compared: tuple[drift.Comparison, ...]
    """Of each feature, [parts]."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What feedback says of the version."""

    classes: tuple[str, ...]
    confusion: Array
    """Labelled rows, [parts, predicted, actual]."""
    coverage: Array
    """Labelled share of the rows predicted, [parts]."""
    reference_accuracy: float | None

    @property
    def whole(self) -> drift.Quality:
        """Over the whole window."""
        return drift.quality(self.confusion.sum(0))


@dataclass(frozen=True)
class Fired:
    """One alert, with its first and last time in the window."""

    alert: str
    about: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Report:
    """All of it. Drift, heat and quality are of one version, the rest of all."""

    drift: Drift
    start: float
    end: float
    services: tuple[Service, ...]
    lines: Lines
    heat: Heat
    labels: Labels | None
    fired: tuple[Fired, ...]
    rollouts: tuple[Entry, ...]
    """The ledger's entries of the window, alerts too."""

    @property
    def file_stamp(self) -> str:
        """The report's end, UTC, as it goes into a file's name."""
        return datetime.fromtimestamp(self.end, UTC).strftime("%Y%m%dT%H%M%SZ")


def gather(prometheus: Prometheus, asked: Question, entries: Sequence[Entry]) -> Report:
    """Ask for everything, and take from the ledger's entries those of the window; errors are those of `examine`."""
    found = examine(prometheus, asked)
    model, window_seconds, at = asked.model, asked.window_seconds, asked.at
    parts = min(MOST_PARTS, max(1, window_seconds // LEAST_PART_SECONDS))
    # Whole seconds, because PromQL's windows are written in them.
    part_seconds = window_seconds // parts
    return Report(
        drift=found,
        start=at - window_seconds,
        end=at,
        services=_services(prometheus, found),
        lines=_lines(prometheus, model, window_seconds, at),
        heat=_heat(prometheus, found, part_seconds, parts),
        labels=_labels(prometheus, found, part_seconds, parts),
        fired=_fired(prometheus, model, window_seconds, at),
        rollouts=tuple(one for one in entries if at - window_seconds <= one.at <= at),
    )


def _services(prometheus: Prometheus, found: Drift) -> tuple[Service, ...]:
    window = duration_text(found.window_seconds)
    counted = selector(names.EDGE_REQUESTS.name, model=found.model)
    requests = prometheus.instant(f"sum by (version, code) (increase({counted}[{window}]))", found.at)
    by_code = requests.by("version", "code")
    latency = [
        prometheus.instant(_quantile(found.model, quantile, window), found.at).by("version") for quantile in QUANTILES
    ]
    return tuple(
        _service(version, rows, by_code, tuple(one.get((str(version),), np.nan) for one in latency))
        for version, rows in found.versions.items()
    )


def _service(
    version: int, rows: float, by_code: Mapping[tuple[str, ...], float], latency: tuple[float, ...]
) -> Service:
    codes = {code: value for (of, code), value in by_code.items() if of == str(version)}
    requests = sum(codes.values())

    def share(first_digit: str) -> float:
        matching = sum(value for code, value in codes.items() if code.startswith(first_digit))
        return matching / requests if requests else np.nan

    return Service(version, rows, requests, share("5"), share("4"), latency)


def _lines(prometheus: Prometheus, model: str, window_seconds: float, at: float) -> Lines:
    step = max(window_seconds / POINTS, 1)
    average = max(4 * step, LEAST_AVERAGE_SECONDS)
    window = duration_text(average)

    def over_time(query: str) -> Range:
        return prometheus.range(query, at, step, int(window_seconds // step))

    def rate(codes: str) -> str:
        chosen = selector(names.EDGE_REQUESTS.name, f'code=~"{codes}"', model=model)
        return f"sum by (version) (rate({chosen}[{window}]))"

    def share(codes: str) -> Range:
        every = rate(".+")
        return over_time(f"({rate(codes)} or 0 * {every}) / ({every} > 0)")

    return Lines(
        average_seconds=average,
        rate=over_time(rate(".+")),
        failed=share("5.."),
        refused=share("4.."),
        latency={quantile: over_time(_quantile(model, quantile, window)) for quantile in QUANTILES},
    )


def _quantile(model: str, quantile: float, window: str) -> str:
    buckets = selector(f"{names.EDGE_SECONDS.name}_bucket", model=model)
    return f"histogram_quantile({quantile}, sum by (version, le) (rate({buckets}[{window}])))"


def _heat(prometheus: Prometheus, found: Drift, part_seconds: float, parts: int) -> Heat:
    features = read_features(prometheus, found.model, found.version, part_seconds, parts, found.at)
    by_name = {(one.feature, one.kind): one for one in features.counts}
    # In the order of the whole window's effect.
    order = [(one.counts.feature, one.counts.kind) for one in found.features]
    return Heat(
        times=features.times,
        part_seconds=part_seconds,
        features=tuple(order),
        compared=tuple(by_name[feature].compared() for feature in order),
    )


def _labels(prometheus: Prometheus, found: Drift, part_seconds: float, parts: int) -> Labels | None:
    one = {"model": found.model, "version": str(found.version)}
    part = duration_text(part_seconds)

    def over_parts(by: str, metric: str) -> Range:
        return prometheus.range(
            f"sum by ({by}) (increase({selector(metric, **one)}[{part}]))", found.at, part_seconds, parts
        )

    cells = over_parts("predicted, actual", names.FEEDBACK.name).by("predicted", "actual")
    classes = tuple(sorted({label for cell in cells for label in cell}))
    confusion = np.zeros((parts, len(classes), len(classes)))
    for (predicted, actual), values in cells.items():
        confusion[:, classes.index(predicted), classes.index(actual)] = np.nan_to_num(values)
    if not confusion.sum():
        return None
    rows = np.nan_to_num(next(iter(over_parts("version", names.ROWS.name).by("version").values()), np.zeros(parts)))
    accuracy = prometheus.instant(f"max({selector(names.REFERENCE_ACCURACY.name, **one)})", found.at).samples
    return Labels(
        classes=classes,
        confusion=confusion,
        coverage=np.divide(confusion.sum((1, 2)), rows, out=np.full(parts, np.nan), where=rows > 0),
        reference_accuracy=accuracy[0].value if accuracy else None,
    )


def _fired(prometheus: Prometheus, model: str, window_seconds: float, at: float) -> tuple[Fired, ...]:
    step = max(window_seconds / 1000, 15)
    firing = selector("ALERTS", alertstate="firing", model=model)
    others = selector("ALERTS", f'alertname=~"{ALERTS_OF_NO_MODEL}"', alertstate="firing", model="")
    found = prometheus.range(f"{firing} or {others}", at, step, int(window_seconds // step) + 1)
    fired = []
    for series in found.series:
        told = {name: value for name, value in series.labels.items() if name not in _NOT_TOLD}
        about = ", ".join(f"{name} {value}" for name, value in sorted(told.items()))
        for start, end in _runs(np.isfinite(series.values)):
            fired.append(Fired(series.labels["alertname"], about, float(found.times[start]), float(found.times[end])))
    return tuple(sorted(fired, key=lambda one: one.start))


_NOT_TOLD = frozenset({"__name__", "alertname", "alertstate", "model"})


def _runs(on: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    changes = np.flatnonzero(np.diff(np.concatenate(([False], on, [False])).astype(np.int8)))
    return [(int(start), int(after) - 1) for start, after in changes.reshape(-1, 2)]
