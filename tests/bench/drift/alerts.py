"""The alert FeatureDrift, minute by minute, as `monitoring/rules/drift.py` gives it to Prometheus.

Windows, thresholds and hold times are the configuration's, the arithmetic is `monitoring/drift.py`: what is written
here is which rows a window holds, what dispersion is known when, and how long a condition lasts. Counters are scraped
and rules evaluated every minute; that `increase` extrapolates to the ends of a window is left out.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from monitoring import drift
from monitoring.config import Drift, DriftTier, seconds
from monitoring.rules.rule import SAMPLED
from tests.bench.drift.streams import Array, Counts, Stream

Bools = npt.NDArray[np.bool_]
Minutes = npt.NDArray[np.int64]

DISPERSION_HOURS = 168
_SAMPLED_MINUTES = seconds(SAMPLED) // 60
_DIRECT_MINUTES = 60
"""Longer windows are sums of what was recorded every minute over SAMPLED."""


def firing(stream: Stream, config: Drift) -> Bools:
    """Whether a feature's alert fires in any tier, at the end of every minute, [minutes, F]."""
    windows, dispersion = Windows(stream.minutes), known_dispersion(stream)
    shape = stream.minutes.shape[:2]
    fires = np.zeros(shape, dtype=np.bool_)
    for window, tier in config.tiers.items():
        length = seconds(window) // 60

        def drifted(at: Minutes, features: Minutes, length: int = length, tier: DriftTier = tier) -> Bools:
            compared = drift.compare(
                windows.rows(length, at, features),
                stream.reference[features],
                dispersion[at[:, np.newaxis] // 60, features],
            )
            return drift.drifted(compared, min_effect=tier.effect, min_z=config.z, min_rows=config.rows)

        fires |= lasting(drifted, seconds(tier.hold) // 60, shape)
    return fires


def episodes(fires: Bools) -> int:
    """How often an alert of [times, F] begins to fire."""
    return int((fires[1:] & ~fires[:-1]).sum() + fires[0].sum())


class Windows:
    """Rows by bin in any window that ends with any minute."""

    def __init__(self, minutes: Counts) -> None:
        total = np.cumsum(minutes, axis=0)
        zero = np.zeros_like(total[:1])
        # At minute t: all rows until then, and the sum of that over all minutes until then. Minute 0 is the beginning.
        self._total = np.concatenate((zero, total))
        self._sum = np.cumsum(self._total, axis=0)

    def rows(self, length: int, at: Minutes, features: Minutes) -> Array:
        """Of the last `length` minutes at the end of minutes `at` (the first is 0), [at, features, B]."""
        ends = at + 1
        if length <= _DIRECT_MINUTES:
            return _at(self._total, ends, features) - _at(self._total, ends - length, features)
        sampled = _at(self._sum, ends, features) - _at(self._sum, ends - length, features)
        before = ends - _SAMPLED_MINUTES
        sampled -= _at(self._sum, before, features) - _at(self._sum, before - length, features)
        return sampled / _SAMPLED_MINUTES


def known_dispersion(stream: Stream) -> Array:
    """Mean over the pairs of successive hours of the last 7 days, at the end of every hour, [1 + hours, F]."""
    steps, *rest = stream.minutes.shape
    hours = np.concatenate((stream.hours, stream.minutes.reshape(steps // 60, 60, *rest).sum(axis=1)))
    pairs = drift.pair_dispersion(hours[1:], hours[:-1])
    means: Array = np.nanmean(sliding_window_view(pairs, DISPERSION_HOURS, axis=0), axis=-1)
    return np.fmax(means, 1)


def _at(sums: Counts, minutes: Minutes, features: Minutes) -> Array:
    """0 before the beginning."""
    return sums[np.maximum(minutes, 0)[:, np.newaxis], features].astype(np.float64)


def lasting(condition: Callable[[Minutes, Minutes], Bools], hold: int, shape: tuple[int, ...]) -> Bools:
    """Where the condition was true at this minute and at the `hold` minutes before it, [minutes, F].

    So long a time contains one of the minutes hold, 2 hold + 1, ...: features for which the condition is true at none
    of them are not looked at again.
    """
    minutes, features = np.arange(shape[0]), np.arange(shape[1])
    lasting = np.zeros(shape, dtype=np.bool_)
    some = np.flatnonzero(condition(minutes[hold :: hold + 1], features).any(axis=0))
    if len(some) and len(minutes) > hold:
        lasting[hold:, some] = sliding_window_view(condition(minutes, some), hold + 1, axis=0).all(axis=-1)
    return lasting
