"""What a fleet's nodes have counted of a model's traffic, asked of the Prometheus that scrapes them.

Counters are increased over a window first and then summed over nodes, so restarts and replicas do not matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.errors import NoData
from deploy.prometheus import Array, Instant, Prometheus, duration_text, selector
from monitoring import drift, names
from monitoring.profile import MISSING, OTHER
from monitoring.rules import rff
from monitoring.rules.drift import DISPERSION


@dataclass(frozen=True, eq=False)
class Counts:
    """One feature's rows by bin, over successive windows."""

    feature: str
    kind: str
    labels: tuple[str, ...]
    """Of its bins in order; `missing` is the last."""
    reference: Array
    """The profile's rows, [bins]; 0 where no node exported a profile."""
    live: Array
    """Rows seen, [windows, bins]."""
    dispersion: float = 1.0
    """How many rows in a burst count as one; 1 where none is recorded."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """By window of the alerts, PSI excess that windows of the training rows reach themselves."""

    def compared(self) -> drift.Comparison:
        """Each window against the profile, [windows]."""
        return drift.compare(self.live, self.reference, self.dispersion)


@dataclass(frozen=True, eq=False)
class Features:
    """Every feature of one version over the same windows, and the queries that gave them."""

    counts: tuple[Counts, ...]
    times: Array
    """Ends of the windows, Unix times, [windows]."""
    dispersion_is_recorded: bool
    queries: Mapping[str, str]


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features of the inputs over one window."""

    rows: float
    rows_effective: float
    shift_excess: float
    """Mean square shift beyond chance, in variances."""
    z: float


def versions(prometheus: Prometheus, model: str, window_seconds: float, at: float) -> dict[int, float]:
    """Rows by version in the window, most first.

    Raises:
        NoData: no version of the model counted a row; says which models have.
    """
    window = duration_text(window_seconds)
    query = f"sum by (version) (increase({selector(names.ROWS.name, model=model)}[{window}])) > 0"
    rows = {int(version): value for (version,), value in prometheus.instant(query, at).by("version").items()}
    if not rows:
        others = prometheus.instant(f"sum by (model) (increase({names.ROWS.name}[{window}])) > 0", at).by("model")
        found = (
            f"models with rows are {', '.join(sorted(name for (name,) in others))}" if others else "no model has any"
        )
        advice = "Send it traffic, see that Prometheus scrapes the node (shipway status), or take a longer --since"
        raise NoData(prometheus.url, f"rows of {model}", f"the last {window}", found, advice)
    return dict(sorted(rows.items(), key=lambda item: -item[1]))


def choose(
    prometheus: Prometheus, model: str, version: int | None, rows: Mapping[int, float], window_seconds: float
) -> int:
    """The version to look at: the one asked for, or the one with most rows; NoData if the one asked for has none."""
    if version is None:
        return next(iter(rows))
    if version not in rows:
        found = f"versions with rows are {', '.join(map(str, sorted(rows)))}"
        window = f"the last {duration_text(window_seconds)}"
        raise NoData(prometheus.url, f"rows of {model} version {version}", window, found, "Name one of them")
    return version


def read_features(
    prometheus: Prometheus, model: str, version: int, window_seconds: float, windows: int, at: float
) -> Features:
    """Counts of the `windows` successive windows that end at `at`, with what is recorded and usual of them.

    Raises:
        NoData: the version's nodes count no features.
    """
    plain = read_counts(prometheus, model, version, window_seconds, windows, at)
    recorded = read_dispersion(prometheus, model, windows * window_seconds, at)
    dispersion = recorded.by("feature", "kind")
    one = selector(names.USUAL_PSI_EXCESS.name, model=model, version=str(version))
    span = duration_text(windows * window_seconds)
    answer = prometheus.instant(f"max by (feature, kind, window) (max_over_time({one}[{span}]))", at)
    usual = answer.by("feature", "kind", "window")
    counts = tuple(
        replace(
            each,
            dispersion=dispersion.get((each.feature, each.kind), 1.0),
            usual={window: excess for (*its, window), excess in usual.items() if its == [each.feature, each.kind]},
        )
        for each in plain.counts
    )
    queries = {**plain.queries, "usual": answer.query, "dispersion": recorded.query}
    return Features(counts, plain.times, bool(dispersion), queries)


def read_counts(
    prometheus: Prometheus, model: str, version: int, window_seconds: float, windows: int, at: float
) -> Features:
    """The same without what is recorded and usual. Raises NoData."""
    window, span = duration_text(window_seconds), duration_text(windows * window_seconds)
    one = {"model": model, "version": str(version)}
    by = "feature, kind, bin"
    queries = {
        "live": f"sum by ({by}) (increase({selector(names.FEATURE_ROWS.name, **one)}[{window}]))",
        # Over the whole span: a version that was taken out of service within it still had its profile.
        "reference": f"max by ({by}) (max_over_time({selector(names.REFERENCE_ROWS.name, **one)}[{span}]))",
    }
    found = prometheus.range(queries["live"], at, window_seconds, windows)
    live = found.by("feature", "kind", "bin")
    if not live:
        wanted = f"rows by feature of {model} version {version}"
        advice = (
            f"A node exports them for an archive that holds a profile: see {names.FEATURE_ROWS.name} on its /metrics"
        )
        raise NoData(prometheus.url, wanted, f"the last {span}", "the version may have none", advice)
    reference = prometheus.instant(queries["reference"], at).by("feature", "kind", "bin")
    features = sorted({(feature, kind) for feature, kind, _ in live})
    counts = tuple(_counts(feature, kind, live, reference) for feature, kind in features)
    return Features(counts, found.times, dispersion_is_recorded=False, queries=queries)


def read_dispersion(prometheus: Prometheus, model: str, span_seconds: float, at: float) -> Instant:
    """The newest recorded dispersion of each feature, by feature and kind."""
    recorded = f"{selector(DISPERSION, model=model)}[{duration_text(span_seconds)}]"
    return prometheus.instant(f"max by (feature, kind) (last_over_time({recorded}))", at)


def read_fourier(prometheus: Prometheus, model: str, version: int, window_seconds: float, at: float) -> Fourier | None:
    """Random Fourier features of the window; None for a version that has none, or had no rows."""
    window = duration_text(window_seconds)
    one = {"model": model, "version": str(version)}

    def ask(query: str) -> list[float]:
        return [sample.value for sample in prometheus.instant(query, at).samples]

    sums = ask(f"sum by (dimension) (increase({selector(names.RFF_SUM.name, **one)}[{window}]))")
    rows = ask(f"sum(increase({selector(names.ROWS.name, **one)}[{window}])) > 0")
    reference = ask(f"max(max_over_time({selector(names.RFF_REFERENCE_ROWS.name, **one)}[{window}]))")
    if not (sums and rows and reference):
        return None
    dispersion = ask(f"max(last_over_time({selector(rff.DISPERSION, model=model)}[{window}]))")
    effective = float(drift.rows_effective(rows[0], dispersion[0] if dispersion else 1.0))
    t2 = drift.rff_t2(sums, rows[0], effective, reference[0])
    shift = drift.rff_shift_excess(t2, len(sums), effective, reference[0])
    return Fourier(rows[0], effective, float(shift), float(drift.wilson_hilferty_z(t2, len(sums))))


def _counts(
    feature: str,
    kind: str,
    live: Mapping[tuple[str, ...], Array],
    reference: Mapping[tuple[str, ...], float],
) -> Counts:
    labels = {label for name, its_kind, label in [*live, *reference] if (name, its_kind) == (feature, kind)}
    ordered = tuple(sorted(labels, key=lambda label: (label == MISSING, label == OTHER, label)))
    # Where a node's counters had no sample in a window, it counted nothing.
    rows = [np.nan_to_num(live[feature, kind, label]) if (feature, kind, label) in live else 0.0 for label in ordered]
    return Counts(
        feature=feature,
        kind=kind,
        labels=ordered,
        reference=np.array([reference.get((feature, kind, label), 0.0) for label in ordered]),
        live=np.stack(np.broadcast_arrays(*rows), axis=-1),
    )
