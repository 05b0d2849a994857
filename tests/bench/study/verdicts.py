"""What the alerts would have said of the year, hour by hour, from what Prometheus has.

The recording rules are evaluated every minute and read what they recorded before: a year of that takes hours. So this
asks Prometheus for `increase(...[1h])`, as `shipway drift` does, adds hours up to the windows of the tiers, and applies
the arithmetic of `monitoring.drift` with the thresholds of `monitoring.config`, which are those of the rules. An alert
begins at a full hour, and an `hold` below an hour is over by then.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.prometheus import Prometheus, selector
from deploy.traffic import Counts, read_features
from monitoring import drift
from monitoring.config import Config, seconds
from monitoring.names import FEEDBACK, REFERENCE_ACCURACY
from monitoring.rules.rule import increase

HOUR = 3600
DAY_HOURS, WEEK_HOURS = 24, 7 * 24
WEEK = "1w"
"""A window of the study's own, with the effect that the longest tier wants."""

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature over the year."""

    counts: Counts
    """By the hour."""
    alerts: Mapping[str, Bools]
    """By window, whether it alerts in each hour, [hours]."""
    weekly: Array
    """PSI excess of each week from the start on, [weeks]."""
    natural: float
    """The largest PSI excess of a week of training: what the weeks of one and the same distribution show."""
    drifted: Bools
    """Whether the week counts as drifted and is beyond what is natural, [weeks]."""

    @property
    def name(self) -> str:
        return self.counts.feature


@dataclass(frozen=True, eq=False)
class Quality:
    """Labels by the hour in which they came."""

    classes: tuple[str, ...]
    confusion: Array
    """[hours, predicted, actual]"""
    reference: float
    """Accuracy at registration."""
    alert: Bools
    """AccuracyLow, [hours]."""

    @property
    def weekly(self) -> Array:
        """[weeks, predicted, actual]"""
        return weeks(self.confusion)


def read(prometheus: Prometheus, model: str, version: int, start: int, end: int) -> tuple[list[Counts], Quality]:
    """Counts by feature, and quality, from `start` to `end`, Unix times, by the hour."""
    hours = (end - start) // HOUR
    return [*read_features(prometheus, model, version, HOUR, hours, end).counts], _quality(
        prometheus, model, hours, end
    )


def judge(counts: Counts, config: Config, training_weeks: int) -> Feature:
    """Every tier that is an hour or longer, and the week; the first weeks are those of training."""
    limits = {"min_z": config.drift.z, "min_rows": config.drift.rows}
    tiers = {window: (seconds(window) // HOUR, tier.effect) for window, tier in config.drift.tiers.items()}
    dispersion = trailing_dispersion(counts.live)
    alerts = {}
    for window, (hours, effect) in tiers.items():
        if hours:  # within less than an hour there are not `rows` flights, ever: see `most_rows`
            compared = drift.compare(rolling(counts.live, hours), counts.reference, dispersion)
            alerts[window] = drift.drifted(compared, min_effect=effect, **limits)
    of_weeks = dispersion[WEEK_HOURS - 1 :: WEEK_HOURS]
    compared = drift.compare(weeks(counts.live), counts.reference, of_weeks)
    natural = float(np.nanmax(compared.psi_excess[:training_weeks]))
    effect = max(effect for _, effect in [tiers["1d"], (0, natural)])
    return Feature(
        counts=counts,
        alerts=alerts,
        weekly=compared.psi_excess,
        natural=natural,
        drifted=drift.drifted(compared, min_effect=effect, **limits),
    )


def _quality(prometheus: Prometheus, model: str, hours: int, end: int) -> Quality:
    query = increase(FEEDBACK, "1h", by="predicted, actual", where=selector("", model=model))
    labels = prometheus.range(query, end, HOUR, hours).by("predicted", "actual")
    classes = sorted({predicted for predicted, _ in labels})
    confusion = np.stack(
        [np.stack([np.nan_to_num(labels[one, other]) for other in classes], -1) for one in classes], -2
    )
    accuracy = f"max(max_over_time({selector(REFERENCE_ACCURACY.name, model=model)}[1d]))"
    reference = prometheus.instant(accuracy, end).samples[0].value
    return Quality(tuple(classes), confusion, reference, np.zeros(hours, dtype=np.bool_))


def accuracy_low(quality: Quality, config: Config) -> Bools:
    """The alert AccuracyLow in each hour: the labels of a day say that accuracy fell by more than is allowed."""
    day = rolling(quality.confusion, DAY_HOURS)
    labelled, hits = day.sum((-1, -2)), np.trace(day, axis1=-2, axis2=-1)
    _, high = drift.wilson_interval(hits, labelled, config.quality.sigmas)
    low: Bools = high < quality.reference - config.quality.accuracy_drop
    return low & (labelled >= config.quality.labels)


def weeks(counts: Array) -> Array:
    """Sums over whole weeks, of counts [hours, ...]: [weeks, ...]. A rest of days is left out."""
    whole = len(counts) // WEEK_HOURS
    sums: Array = counts[: whole * WEEK_HOURS].reshape(whole, WEEK_HOURS, *counts.shape[1:]).sum(1)
    return sums


def rolling(counts: Array, hours: int) -> Array:
    """Sums over the `hours` up to each hour, of counts [hours, ...]; fewer at the start."""
    total = np.concatenate((np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)))
    sums: Array = total[1:] - total[np.maximum(np.arange(1, len(total)) - hours, 0)]
    return sums


def trailing_dispersion(counts: Array) -> Array:
    """As the rules have it: the mean over 7 days of each hour against the hour before, at least 1; [hours]."""
    pairs = np.concatenate(([np.nan], drift.pair_dispersion(counts[1:], counts[:-1])))
    known = np.isfinite(pairs)
    sums, number = (rolling(each, WEEK_HOURS) for each in (np.where(known, pairs, 0), known.astype(np.float64)))
    return np.maximum(sums / np.maximum(number, 1), 1)


def beginnings(alert: Bools) -> list[int]:
    """Where a run of True begins."""
    return np.flatnonzero(alert & ~np.concatenate(([False], alert[:-1]))).tolist()
