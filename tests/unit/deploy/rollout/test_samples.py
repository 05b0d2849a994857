"""Exact increases, and bursts in counts."""

import numpy as np
import numpy.typing as npt
import pytest

from deploy.prometheus import Scraped
from deploy.rollout.samples import bursts, dispersion, increase


@pytest.mark.parametrize(
    ("values", "since", "expected"),
    [
        ([3, 5, 9], 10, 6),  # from the last sample up to then
        ([3, 5, 9], 5, 9),  # born later
        ([3, 5, 2, 4], 10, 6),  # 2, and 4 after a restart
        ([3, 0, 0], 10, 0),
        ([3, 5], 99, 0),
    ],
)
def test_increase_is_exact(values: list[float], since: float, expected: int) -> None:
    times = np.array([10, 15, 20, 25][: len(values)], dtype=np.float64)
    assert increase(Scraped({}, times, np.array(values, dtype=np.float64)), since) == expected


@pytest.mark.parametrize("run", [1, 5])
@pytest.mark.parametrize("rows", [40, 400])
def test_dispersion_is_the_length_of_runs_whatever_the_bins(run: int, rows: int) -> None:
    random = np.random.default_rng(1)
    shares = np.array([0.5, 0.3, 0.19, 0.009, 0.001, *[0.0] * 16])
    assert dispersion(run * random.multinomial(rows // run, shares, 500)) == pytest.approx(run, rel=0.2)


def test_dispersion_of_too_little_is_that_of_independent_rows() -> None:
    assert dispersion(np.zeros((0, 3))) == 1
    assert dispersion(np.full((100, 3), 0.2)) == 1
    assert dispersion([[100, 0], [300, 0], [100, 0], [300, 0], [0, 0]]) == 1


def counters(instance: str, counts: npt.NDArray[np.int64], labels: tuple[str, ...], label: str) -> list[Scraped]:
    """Counters of one node that have grown by counts [scrapes, bins]."""
    times = np.arange(0, 5 * len(counts), 5, dtype=np.float64)
    totals = counts.cumsum(axis=0).astype(np.float64)
    return [Scraped({"instance": instance, label: name}, times, totals[:, at]) for at, name in enumerate(labels)]


def test_bursts_are_those_of_each_node_through_restarts() -> None:
    random = np.random.default_rng(2)
    runs = 4 * random.multinomial(100, [0.4, 0.3, 0.3], (2, 300))
    plain = [one for node, counts in enumerate(runs) for one in counters(str(node), counts, ("a", "b", "c"), "bin")]
    assert bursts(plain, "bin", -1) == pytest.approx(4, rel=0.15)
    assert bursts(plain, "bin", 1e9) == 1
    restarted = [
        Scraped(one.labels, one.times, np.where(one.times < 700, one.values, one.values - one.values[139]))
        for one in plain
    ]
    assert bursts(restarted, "bin", -1) == pytest.approx(4, rel=0.15)


def test_bins_of_a_histogram_are_cumulated() -> None:
    counts = 4 * np.random.default_rng(3).multinomial(100, [0.4, 0.3, 0.3], 300)
    series = counters("a", counts.cumsum(axis=1), ("0.5", "2.0", "10.0"), "le")
    assert bursts(series, "le", -1, cumulated=True) == pytest.approx(4, rel=0.15)
