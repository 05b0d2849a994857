"""What is usual: how far windows of the training rows are from all of them, although nothing has drifted.

Six hours see a part of the day and one weather, a week one season. An alert that compared them with all of the training
without knowing that would cry wolf every day.
"""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import numpy.typing as npt

from monitoring.config import Drift, DriftWindow, seconds
from monitoring.drift import compare

BEGINNINGS = 6
"""A window begins every sixth of its length, because alerts do not wait for midnight."""
MAX_WINDOWS = 10_000
"""Of more, so many are looked at, evenly spaced."""


def usual_psi_excess(bins: npt.NDArray[np.int64], size: int, times: npt.NDArray[np.int64]) -> Mapping[str, float]:
    """The largest PSI excess by window of the alerts, at least 0.

    `bins` [n] are the rows' bins, out of `size`, `times` [n] their Unix times. A window in which training rows never
    were as many as an alert wants is left out: nothing is known of it.
    """
    found = {window: _largest(bins, size, times, seconds(window)) for window in get_args(DriftWindow)}
    return {window: excess for window, excess in found.items() if excess is not None}


def _largest(bins: npt.NDArray[np.int64], size: int, times: npt.NDArray[np.int64], window_seconds: int) -> float | None:
    """None without a window of enough rows."""
    step = window_seconds // BEGINNINGS
    steps, place = np.unique(times // step, return_inverse=True)
    counts = np.bincount(place * size + bins, minlength=len(steps) * size).reshape(-1, size)
    until = np.concatenate((np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)))
    # One window for each step that has rows, which is its last.
    first = np.searchsorted(steps, steps - BEGINNINGS, side="right")
    rows = until[1:].sum(axis=1) - until[first].sum(axis=1)
    whole = steps - steps[0] >= BEGINNINGS - 1
    enough = np.flatnonzero(whole & (rows >= Drift().rows))
    if not len(enough):
        return None
    chosen = enough[:: -(-len(enough) // MAX_WINDOWS)]
    excess = compare(until[chosen + 1] - until[first[chosen]], counts.sum(axis=0)).psi_excess
    return float(excess.max(initial=0.0))
