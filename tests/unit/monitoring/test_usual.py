"""What is usual: a plain reference over every window, and what is known of rows without rhythm."""

from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from monitoring.config import DriftWindow, seconds
from monitoring.drift import compare
from monitoring.usual import usual_psi_excess

DAY, DAYS, START = 86400, 4, 1356998400
IntArray = npt.NDArray[np.int64]


def ten_days(per_day: int, seed: int) -> tuple[IntArray, IntArray]:
    """Bins that follow the time of day in half of the rows, and times, sorted."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, DAYS * DAY, DAYS * per_day))
    hours = times % DAY // 3600
    return np.where(random.random(len(times)) < 0.5, hours // 6, random.integers(0, 4, len(times))), START + times


@pytest.mark.parametrize("per_day", [900, 30_000])
def test_each_window_knows_the_most_that_its_rows_have_moved(per_day: int) -> None:
    bins, times = ten_days(per_day, seed=1)
    found = usual_psi_excess(bins, 6, times)
    for window in get_args(DriftWindow):
        length = seconds(window)
        step = length // 6
        every = []
        for end in range(START + length, START + DAYS * DAY + 1, step):
            first, last = np.searchsorted(times, (end - length, end))
            if last - first >= 100:
                counts = np.bincount(bins[first:last], minlength=6)
                every.append(compare(counts, np.bincount(bins, minlength=6)).psi_excess)
        assert found.get(window) == (pytest.approx(max(0.0, *every), rel=1e-9) if every else None)
    # A quarter of a day has a bin of its own, a whole day has all.
    assert found["6h"] > 0.2 > found["1d"]
    assert ("10m" in found) is (per_day > 900)


def test_rows_without_rhythm_have_hardly_anything_usual() -> None:
    random = np.random.default_rng(2)
    times = START + np.sort(random.integers(0, 60 * DAY, 300_000))
    assert max(usual_psi_excess(random.integers(0, 4, 300_000), 5, times)[window] for window in ("1d", "7d")) < 0.01


def test_few_rows_say_nothing() -> None:
    times = START + DAY * np.arange(60)
    assert usual_psi_excess(np.arange(60) % 3, 4, times) == {}
