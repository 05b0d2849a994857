"""The gate's arithmetic on counts, element by element: one look at one rollout, or ten thousand simulated ones at once.

Counts are those so far, of the candidate and, as `reference`, of the champion on the same window. Where there is
nothing to count from, neither `failed` nor `passed` is true.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitoring.drift import Array, Bools, wilson_interval

FEWEST_BAD = 10
"""A comparison condemns on no fewer bad ones: below that, z is far from normal."""
_MOST = 0.999


@dataclass(frozen=True, eq=False)
class Sequential:
    """Wald's test at one look."""

    log_ratio: Array
    """Log-likelihood ratio of p1 to p0."""
    upper: float
    """From here on it fails."""
    lower: float
    """From here down it passes."""
    p0: Array
    p1: Array
    failed: Bools
    passed: Bools


@dataclass(frozen=True, eq=False)
class Compared:
    """Candidate's share of bad ones less the champion's."""

    difference: Array
    z: Array
    upper: Array
    """Upper confidence bound of the difference."""
    failed: Bools
    passed: Bools


def sequential(
    bad: npt.ArrayLike,
    trials: npt.ArrayLike,
    reference_bad: npt.ArrayLike,
    reference_trials: npt.ArrayLike,
    *,
    p0: float,
    p1: float,
    false_alarm: float,
    missed: float,
) -> Sequential:
    """The sequential probability ratio test (Wald 1945) of a share of bad ones, looked at as often as one likes.

    It fails at ln(1/false_alarm), and goes on after it has passed: a likelihood ratio is a martingale where the share
    is p0 and shrinks below it, so that it ever rises so high with probability `false_alarm` at most (Ville 1939). It
    passes at ln(missed), as the inverse ratio ever does for a share of p1 with probability `missed` at most.

    Where the champion's own share is above p0 beyond doubt (Wilson's lower bound at 3 standard deviations), it takes
    p0's place, and p1 keeps its odds to it: what ails both is no fault of the candidate.
    """
    bad, trials = _floats(bad), _floats(trials)
    low, high = raised(p0, p1, reference_bad, reference_trials)
    ratio = bad * np.log(high / low) + (trials - bad) * np.log((1 - high) / (1 - low))
    upper, lower = -float(np.log(false_alarm)), float(np.log(missed))
    return Sequential(ratio, upper, lower, low, high, ratio >= upper, ratio <= lower)


def raised(p0: float, p1: float, bad: npt.ArrayLike, trials: npt.ArrayLike) -> tuple[Array, Array]:
    """p0 and p1, or the champion's share in p0's place where it is above it beyond doubt, and p1 at the same odds."""
    bad, trials = _floats(bad), _floats(trials)
    share = np.divide(bad, trials, out=np.zeros(np.broadcast(bad, trials).shape), where=trials > 0)
    doubtless = np.nan_to_num(wilson_interval(bad, trials, 3)[0]) > p0
    low = np.where(doubtless, np.minimum(share, _MOST), p0)
    odds = low / (1 - low) * (p1 / (1 - p1)) / (p0 / (1 - p0))
    return low, np.where(doubtless, odds / (1 + odds), p1)


def step_false_alarm(false_alarm: float, step: int) -> float:
    """What step `step`, from 0, may spend of a whole rollout's probability of a false alarm: half of what is left.

    The test begins anew with each step, because a version may break under more load alone; the sum over however many
    steps stays below `false_alarm`.
    """
    return false_alarm / 2.0 ** (step + 1)


def compared(
    bad: npt.ArrayLike,
    trials: npt.ArrayLike,
    reference_bad: npt.ArrayLike,
    reference_trials: npt.ArrayLike,
    *,
    margin: float,
    z: float,
    confidence_z: float,
) -> Compared:
    """Candidate against champion: fails where worse by more than `margin` beyond chance, passes where that is excluded.

    Chance: the two-proportion z with the pooled share is above `z`, on FEWEST_BAD bad ones or more. Excluded: the upper
    bound of the difference (Newcombe 1998, method 10, of two Wilson intervals) is not above the margin. Between the
    two it is undecided.
    """
    bad, trials = _floats(bad), _floats(trials)
    reference_bad, reference_trials = _floats(reference_bad), _floats(reference_trials)
    share, reference = _ratio(bad, trials), _ratio(reference_bad, reference_trials)
    difference = share - reference
    pooled = _ratio(bad + reference_bad, trials + reference_trials)
    deviation = np.sqrt(pooled * (1 - pooled) * (_ratio(1.0, trials) + _ratio(1.0, reference_trials)))
    deviate = _ratio(difference, deviation)
    _, high = wilson_interval(bad, trials, confidence_z)
    low, _ = wilson_interval(reference_bad, reference_trials, confidence_z)
    upper = difference + np.sqrt((high - share) ** 2 + (reference - low) ** 2)
    failed = (deviate > z) & (difference > margin) & (bad >= FEWEST_BAD)
    return Compared(difference, deviate, upper, failed, (upper <= margin) & ~failed)


def above(counts: npt.ArrayLike) -> Array:
    """How many lie above each inner edge, [bins - 1], of counts by bin in order, [bins]."""
    counts = _floats(counts)
    upper: Array = counts.sum() - np.cumsum(counts)[:-1]
    return upper


def steady_growth(times: npt.ArrayLike, values: npt.ArrayLike) -> tuple[float, float]:
    """Growth per second in the quarter of the time where it was least, and growth from the first quarter to the last.

    Of the medians of the quarters; (NaN, NaN) where one has no sample. What is not steady has a growth per second of 0:
    a jump, which is in one or two quarters, and warm-up, which brings less than half as much at last as at first.
    """
    times, values = _floats(times), _floats(values)
    width = (times[-1] - times[0]) / 4 if len(times) else 0.0
    quarter = np.minimum((times - times[:1]) // width, 3) if width > 0 else np.zeros_like(times)
    parts = [values[quarter == number] for number in range(4)]
    if not all(map(len, parts)):
        return np.nan, np.nan
    medians = np.array([np.median(part) for part in parts])
    grown = np.diff(medians)
    steady = max(grown.min(), 0.0) if grown[-1] >= grown[0] / 2 else 0.0
    return float(steady / width), float(medians[-1] - medians[0])


def _floats(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _ratio(over: npt.ArrayLike, below: npt.ArrayLike) -> Array:
    """Quotient, NaN where `below` is 0."""
    over, below = np.broadcast_arrays(_floats(over), _floats(below))
    quotient: Array = np.divide(over, below, out=np.full(over.shape, np.nan), where=below != 0)
    return quotient
