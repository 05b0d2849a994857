"""`shipway drift`: which features of a version's traffic moved away from its profile, from where to where, in words."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from deploy.errors import NotPackaged
from deploy.packaged import packaged_digest
from deploy.prometheus import Array, Prometheus, duration_text, selector
from deploy.traffic import Counts, Features, Fourier, choose, read_features, read_fourier, versions
from model_store.archive import archive_name, read_member
from model_store.errors import ModelStoreError
from monitoring import config, names
from monitoring.drift import drifted
from monitoring.profile import Profile, ProfileInvalid
from monitoring.rules.drift import DISPERSION
from monitoring.words import is_ordered, what_moved

Edges = Mapping[tuple[str, str], tuple[float, ...]]
"""Edges between the bins of a feature, by its name and kind."""


@dataclass(frozen=True)
class Thresholds:
    """Effect, significance and rows: all three are wanted before anything counts as drifted."""

    window: str
    """Of the alerts' tier that they are those of."""
    effect: float
    """Of a feature: PSI excess. One whose training rows reach more in such a window wants more than that."""
    rff_effect: float
    """Of random Fourier features: mean square shift, in variances."""
    z: float
    rows: float

    @classmethod
    def of(cls, limits: config.Drift, window_seconds: float) -> Self:
        """What the alerts want of the longest of their windows that is no longer; of their shortest, below that."""
        windows = sorted(limits.tiers, key=config.seconds)
        fitting = [window for window in windows if config.seconds(window) <= window_seconds] or windows[:1]
        window, effect = fitting[-1], limits.tiers[fitting[-1]].effect
        return cls(window=window, effect=effect, rff_effect=limits.rff_effect, z=limits.z, rows=limits.rows)


@dataclass(frozen=True)
class Question:
    """What to look at, and what counts as drifted."""

    model: str
    version: int | None
    """None is the version with most rows in the window."""
    window_seconds: int
    at: float
    """End of the window, Unix time."""
    thresholds: Thresholds
    archives_dir: Path
    """Where the version's archive may lie, which knows the edges of its numbers."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One feature over one window."""

    counts: Counts
    live: Array
    """Rows by bin, [bins]."""
    rows: float
    rows_effective: float
    psi_excess: float
    effect: float
    """What `psi_excess` must be above."""
    z: float
    verdict: str
    """drifted, steady, too few rows, too young, or no profile."""
    words: str
    """What moved."""
    edges: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """The feature's, and what it is where it is no input."""
        is_input = self.counts.kind in ("number", "category")
        return self.counts.feature if is_input else f"{self.counts.feature} ({self.counts.kind})"

    def as_dict(self) -> dict[str, Any]:
        bins = zip(self.counts.labels, self.counts.reference.tolist(), self.live.tolist(), strict=True)
        return {
            "feature": self.counts.feature,
            "kind": self.counts.kind,
            "verdict": self.verdict,
            "psi_excess": _or_none(self.psi_excess),
            "effect": self.effect,
            "z": _or_none(self.z),
            "rows": self.rows,
            "rows_effective": self.rows_effective,
            "dispersion": self.counts.dispersion,
            "words": self.words,
            "edges": self.edges,
            "bins": [{"bin": label, "reference_rows": m, "rows": n} for label, m, n in bins],
        }


@dataclass(frozen=True)
class Drift:
    """Every feature of one version over one window, the largest effect first."""

    model: str
    version: int
    versions: dict[int, float]
    """Rows in the window by version of the model."""
    window_seconds: int
    at: float
    prometheus: str
    thresholds: Thresholds
    features: tuple[Judged, ...]
    fourier: Fourier | None
    fourier_verdict: str
    dispersion_is_recorded: bool
    queries: Mapping[str, str]

    @property
    def drifted(self) -> list[Judged]:
        return [one for one in self.features if one.verdict == "drifted"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "version": self.version,
            "versions": {str(version): rows for version, rows in self.versions.items()},
            "at": _utc(self.at),
            "window_seconds": self.window_seconds,
            "prometheus": self.prometheus,
            "thresholds": vars(self.thresholds),
            "dispersion_is_recorded": self.dispersion_is_recorded,
            "queries": dict(self.queries),
            "rff": vars(self.fourier) | {"verdict": self.fourier_verdict} if self.fourier else None,
            "features": [one.as_dict() for one in self.features],
        }

    def table(self, *, every: bool) -> Group:
        """The same for a person: what drifted, or `every` feature."""
        shown = self.features if every else self.drifted
        verdict = ["verdict"] if every else []
        table = Table("feature", *verdict, "PSI\nexcess", "z", "effective\nrows", "what moved")
        for one in shown:
            numbers = (_figure(one.psi_excess, 3), _figure(one.z, 1), _figure(one.rows_effective, 0))
            table.add_row(escape(one.name), *([one.verdict] if every else []), *numbers, escape(one.words))
        return Group(escape(self.headline()), table if shown else "", *map(escape, self.notes()))

    def headline(self) -> str:
        """One sentence with the counts, so that no table still says something."""
        verdicts = [one.verdict for one in self.features]
        others = {verdict: verdicts.count(verdict) for verdict in ("too few rows", "too young", "no profile")}
        return (
            f"{self.model} version {self.version}, the last {duration_text(self.window_seconds)} to {_utc(self.at)}: "
            f"{self.versions.get(self.version, 0):,.0f} rows; {len(self.drifted)} of {len(verdicts)} features drifted"
            + "".join(f"; {count} {verdict}" for verdict, count in others.items() if count)
        )

    def notes(self) -> list[str]:
        """What a reader must know to trust the table."""
        limits = self.thresholds
        wanted = f"PSI excess above {limits.effect:g}, z above {limits.z:g}, at least {limits.rows:g} effective rows"
        notes = [f"Drifted is what has all three: {wanted}."]
        if usual := sum(one.effect > limits.effect for one in self.features):
            notes.append(
                f"Of {usual} features, windows of {limits.window} within the training rows reach more than that "
                "themselves: these drifted only where they moved further."
            )
        if self.fourier:
            found = (
                f"mean square shift {self.fourier.shift_excess:z.3f} (allowed {limits.rff_effect:g}), "
                f"z {self.fourier.z:.1f}, {self.fourier.rows_effective:,.0f} effective rows"
            )
            notes.append(f"An input as a whole (random Fourier features): {self.fourier_verdict}; {found}.")
        if not self.dispersion_is_recorded:
            notes.append(
                f"No {DISPERSION} is recorded: each row counts for itself, and bursts of equal rows look like drift."
            )
        if all(one.edges is None for one in self.features if is_ordered(one.counts.feature, one.counts.kind)):
            notes.append("No archive of the version is here: numbers are named by their place in the profile.")
        return notes


def examine(prometheus: Prometheus, asked: Question) -> Drift:
    """Judge one version over one window.

    Raises:
        NoData: no rows in the window, or no features counted.
        PrometheusUnreachable, QueryRefused: there is no answer.
    """
    model, window_seconds, at = asked.model, asked.window_seconds, asked.at
    rows = versions(prometheus, model, window_seconds, at)
    version = choose(prometheus, model, asked.version, rows, window_seconds)
    features = read_features(prometheus, model, version, window_seconds, 1, at)
    full = _was_there(prometheus, model, version, at - config.seconds(asked.thresholds.window))
    fourier = read_fourier(prometheus, model, version, window_seconds, at)
    return Drift(
        model=model,
        version=version,
        versions=rows,
        window_seconds=window_seconds,
        at=at,
        prometheus=prometheus.url,
        thresholds=asked.thresholds,
        features=_judged(features, asked.thresholds, read_edges(asked.archives_dir, model, version), full=full),
        fourier=fourier,
        fourier_verdict=_fourier_verdict(fourier, asked.thresholds) if fourier else "",
        dispersion_is_recorded=features.dispersion_is_recorded,
        queries=features.queries,
    )


def read_edges(archives_dir: Path, model: str, version: int, digest: str | None = None) -> Edges:
    """Edges from the profile in the version's archive; empty where no readable archive is, and words do without.

    `digest`: of the archive that is meant, where a version was packaged more than once; the newest one otherwise.
    """
    with contextlib.suppress(NotPackaged, ModelStoreError, OSError, KeyError, ProfileInvalid):
        found = digest or packaged_digest(archives_dir, model, version)
        profile = Profile.from_json(read_member(archives_dir / archive_name(model, version, found), "profile.json"))
        return {(one.name, one.kind): one.edges for one in profile.features}
    return {}


def _was_there(prometheus: Prometheus, model: str, version: int, at: float) -> bool:
    rows = selector(names.ROWS.name, model=model, version=str(version))
    return bool(prometheus.instant(f"max({rows})", at).samples)


def _judged(features: Features, thresholds: Thresholds, edges: Edges, *, full: bool) -> tuple[Judged, ...]:
    judged = [_judge(one, thresholds, edges.get((one.feature, one.kind)), full=full) for one in features.counts]
    return tuple(sorted(judged, key=lambda one: -np.nan_to_num(one.psi_excess, nan=-np.inf)))


def _judge(counts: Counts, thresholds: Thresholds, edges: tuple[float, ...] | None, *, full: bool) -> Judged:
    """`full` says that the version was there a whole window ago, as what is usual of such windows wants it."""
    compared = counts.compared()
    ordered = is_ordered(counts.feature, counts.kind)
    # Bins are one more than edges, and `missing`: else the archive here is not what the nodes run.
    known = edges if ordered and edges is not None and len(edges) == len(counts.labels) - 2 else None
    usual = counts.usual.get(thresholds.window)
    effect = max(thresholds.effect, usual or 0.0)
    beyond = drifted(compared, min_effect=effect, min_z=thresholds.z, min_rows=thresholds.rows)
    rows_effective = float(compared.rows_effective[-1])
    if not counts.reference.sum():
        verdict = "no profile"
    elif rows_effective < thresholds.rows:
        verdict = "too few rows"
    elif not beyond[-1]:
        verdict = "steady"
    else:
        verdict = "drifted" if full or usual is None else "too young"
    return Judged(
        counts=counts,
        live=counts.live[-1],
        rows=float(compared.rows[-1]),
        rows_effective=rows_effective,
        psi_excess=float(compared.psi_excess[-1]),
        effect=effect,
        z=float(compared.z[-1]),
        verdict=verdict,
        words=what_moved(counts.labels, counts.reference, counts.live[-1], ordered=ordered, edges=known),
        edges=known,
    )


def _fourier_verdict(fourier: Fourier, thresholds: Thresholds) -> str:
    if fourier.rows_effective < thresholds.rows:
        return "too few rows"
    beyond = fourier.shift_excess > thresholds.rff_effect and fourier.z > thresholds.z
    return "drifted" if beyond else "steady"


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def _figure(value: float, decimals: int) -> str:
    return f"{value:z,.{decimals}f}" if np.isfinite(value) else "-"
