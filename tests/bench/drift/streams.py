"""Simulated traffic: rows a minute in the bins of a profile of a reference sample, and a shift from some minute on.

A feature is standard normal, one row in a hundred without a value. Rows come by a Poisson process, alone or in runs of
identical ones. Every feature has rows of its own: how many episodes are to be expected is the same as with common
rows, and each feature can stand for a repetition by itself.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from monitoring.profile import Profile

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

REFERENCE_ROWS = 5000
MISSING_SHARE = 0.01
HISTORY_HOURS = 169
"""Hours of traffic before the first minute: 168 pairs of successive hours, which dispersion is the mean of."""
DAY = 24 * 60


@dataclass(frozen=True)
class Traffic:
    rows_per_hour: float
    run: int = 1
    """Identical rows in a row."""
    shift: float = 0.0
    """What is added to every value, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Traffic of F features against a reference sample of each."""

    values: Array
    """The reference, [REFERENCE_ROWS, F]; missing is NaN."""
    edges: Array
    """Of the bins, [F, B - 2]; the last bin is `missing`."""
    reference: Counts
    """The reference's rows by bin, [F, B]."""
    hours: Counts
    """Rows by hour before the first minute, [HISTORY_HOURS, F, B]."""
    minutes: Counts
    """Rows by minute, [minutes, F, B]."""


def simulate(
    random: np.random.Generator, traffic: Traffic, *, features: int, minutes: int, shifted_minutes: int = 0
) -> Stream:
    """`minutes` without a shift after a week of the same, then `shifted_minutes` with it."""
    values = random.standard_normal((REFERENCE_ROWS, features))
    values[random.random(values.shape) < MISSING_SHARE] = np.nan
    profile = Profile.build({str(at): column.astype(np.float32) for at, column in enumerate(values.T)}, {}, {})
    edges = np.array([feature.edges for feature in profile.features])
    before, after = shares(edges), shares(edges, traffic.shift)
    return Stream(
        values,
        edges,
        np.array([feature.reference for feature in profile.features]),
        _rows(random, traffic, 60, HISTORY_HOURS, before),
        np.concatenate((_rows(random, traffic, 1, minutes, before), _rows(random, traffic, 1, shifted_minutes, after))),
    )


def shares(edges: Array, shift: float = 0.0) -> Array:
    """Of rows in each bin, [F, B]."""
    present = np.diff(ndtr(edges - shift), axis=1, prepend=0, append=1)
    missing = np.full((len(edges), 1), MISSING_SHARE)
    return np.concatenate((present * (1 - MISSING_SHARE), missing), axis=1)


def raw_values(random: np.random.Generator, counts: Counts, edges: Array, run: int, shift: float = 0.0) -> Array:
    """Values that fall into the bins of one feature as `counts` [B] says, those that are not missing, [rows]."""
    bounds = np.concatenate(([0], ndtr(edges - shift), [1]))
    runs = counts[:-1] // run
    low, width = np.repeat(bounds[:-1], runs), np.repeat(np.diff(bounds), runs)
    values: Array = np.repeat(ndtri(low + width * random.random(len(low))) + shift, run)
    return values


def _rows(random: np.random.Generator, traffic: Traffic, minutes: int, steps: int, shares: Array) -> Counts:
    """Rows by bin in steps of so many minutes, [steps, F, B]."""
    runs = random.poisson(traffic.rows_per_hour / 60 * minutes / traffic.run, (steps, len(shares)))
    return random.multinomial(runs, shares) * traffic.run
