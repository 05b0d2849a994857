"""What the alerts would have said of the months, hour by hour, from what Prometheus has.

The recording rules are evaluated every minute and read what they recorded before: months of that take hours. So this
asks Prometheus for `increase(...[1h])`, as `shipway drift` does, adds hours up to the windows of the tiers, and applies
the arithmetic of `monitoring.drift` with the thresholds of `monitoring.config`, which are those of the rules. An alert
begins at a full hour. Tiers shorter than an hour are left out: no 10 minutes have the rows that an alert wants.
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
WEEK = "7d"

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Judged:
    """One feature in one window, at every full hour, [hours]."""

    psi_excess: Array
    alert: Bools
    without_usual: Bools
    """What the alert would be if nothing were known of windows of the training rows."""


@dataclass(frozen=True, eq=False)
class Feature:
    counts: Counts
    """By the hour."""
    windows: Mapping[str, Judged]

    @property
    def name(self) -> str:
        return self.counts.feature

    @property
    def alert(self) -> Bools:
        """Whether any of its windows alerts, [hours]."""
        any_of_them: Bools = np.any([one.alert for one in self.windows.values()], axis=0)
        return any_of_them


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

    def accuracy(self, hours: int) -> Array:
        """Of the labels of the `hours` up to each hour, [hours]."""
        return drift.quality(rolling(self.confusion, hours)).accuracy

    def actual(self, name: str, hours: int) -> Array:
        """The share of labels that are of this class, of the `hours` up to each hour, [hours]."""
        by_class = rolling(self.confusion, hours).sum(axis=-2)
        return drift.shares(by_class)[:, self.classes.index(name)]


def read(
    prometheus: Prometheus, model: str, version: int, start: int, end: int, config: Config
) -> tuple[list[Feature], Quality]:
    """Every feature, and quality, from `start` to `end`, Unix times. Raises NoData and what Prometheus raises."""
    hours = (end - start) // HOUR
    counts = read_features(prometheus, model, version, HOUR, hours, end).counts
    return [judged(one, config) for one in counts], _quality(prometheus, model, hours, end, config)


def judged(counts: Counts, config: Config) -> Feature:
    """One feature in every tier that is an hour or longer."""
    limits = {"min_z": config.drift.z, "min_rows": config.drift.rows}
    dispersion = trailing_dispersion(counts.live)
    windows: dict[str, Judged] = {}
    for window, tier in config.drift.tiers.items():
        if seconds(window) < HOUR:
            continue
        hours, hold = seconds(window) // HOUR, seconds(tier.hold)
        compared = drift.compare(rolling(counts.live, hours), counts.reference, dispersion)
        effect = max(tier.effect, counts.usual.get(window, 0.0))
        alert, plain = (drift.drifted(compared, min_effect=each, **limits) for each in (effect, tier.effect))
        if window in counts.usual:
            alert[:hours] = False  # a window that is not full yet
        windows[window] = Judged(compared.psi_excess, lasting(alert, hold), lasting(plain, hold))
    return Feature(counts, windows)


def _quality(prometheus: Prometheus, model: str, hours: int, end: int, config: Config) -> Quality:
    query = increase(FEEDBACK, "1h", by="predicted, actual", where=selector("", model=model))
    labels = prometheus.range(query, end, HOUR, hours).by("predicted", "actual")
    classes = sorted({predicted for predicted, _ in labels})
    rows = [[np.nan_to_num(labels[predicted, actual]) for actual in classes] for predicted in classes]
    confusion = np.moveaxis(np.array(rows), -1, 0)
    accuracy = f"max(max_over_time({selector(REFERENCE_ACCURACY.name, model=model)}[1d]))"
    reference = prometheus.instant(accuracy, end).samples[0].value
    return Quality(tuple(classes), confusion, reference, accuracy_low(confusion, reference, config))


def accuracy_low(confusion: Array, reference: float, config: Config) -> Bools:
    """The alert AccuracyLow in each hour: the labels of a day say that accuracy fell by more than is allowed."""
    day = rolling(confusion, DAY_HOURS)
    labelled, hits = day.sum((-1, -2)), np.trace(day, axis1=-2, axis2=-1)
    _, high = drift.wilson_interval(hits, labelled, config.quality.sigmas)
    low: Bools = (high < reference - config.quality.accuracy_drop) & (labelled >= config.quality.labels)
    return low


def rolling(counts: Array, hours: int) -> Array:
    """Sums over the `hours` up to each hour, of counts [hours, ...]; fewer at the start."""
    total = np.concatenate((np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)))
    sums: Array = total[1:] - total[np.maximum(np.arange(1, len(total)) - hours, 0)]
    return sums


def lasting(condition: Bools, hold_seconds: int) -> Bools:
    """Where a condition [hours] holds and has held for `hold_seconds`; less than an hour is over by the next one."""
    lasted = condition.copy()
    for hours in range(1, hold_seconds // HOUR + 1):
        lasted[hours:] &= condition[:-hours]
        lasted[:hours] = False
    return lasted


def trailing_dispersion(counts: Array) -> Array:
    """As the rules have it: the mean over 7 days of each hour against the hour before, at least 1; [hours]."""
    pairs = np.concatenate(([np.nan], drift.pair_dispersion(counts[1:], counts[:-1])))
    known = np.isfinite(pairs)
    sums, number = (rolling(each, WEEK_HOURS) for each in (np.where(known, pairs, 0), known.astype(np.float64)))
    return np.maximum(sums / np.maximum(number, 1), 1)


def beginnings(alert: Bools) -> list[int]:
    """Where a run of True begins."""
    return [int(hour) for hour in np.flatnonzero(alert & ~np.concatenate(([False], alert[:-1])))]
