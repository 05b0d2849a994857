"""Random Fourier features: whitened, split as one likes, and moved by what no single value shows."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2

from monitoring.drift import rff_t2
from monitoring.rff import CUT, DIMENSIONS, Rff, digest, pooled

ROWS, VALUES = 600, 48


def rows(count: int, seed: int) -> npt.NDArray[np.float64]:
    """Of two clouds, so that there is a shape to see."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, VALUES))
    values[:, 0] += 4 * random.integers(0, 2, count)
    return values


@pytest.fixture(scope="module")
def rff() -> Rff:
    return Rff.fit(rows(ROWS, 0))


def t2(found: npt.NDArray[np.float32]) -> float:
    """T^2 of these rows, from their sums as they are counted."""
    return float(rff_t2((found + CUT).sum(axis=0), len(found), len(found), ROWS))


def test_the_reference_itself_is_whitened(rff: Rff) -> None:
    found = rff(rows(ROWS, 0))
    assert found.shape == (ROWS, DIMENSIONS)
    assert found.dtype == np.float32
    assert np.abs(found.mean(axis=0)).max() < 0.02  # what is cut is missing in it
    np.testing.assert_allclose(np.cov(found, rowvar=False), np.eye(DIMENSIONS), atol=0.05)


def test_statistic_of_no_drift_is_distributed_as_it_should_be() -> None:
    """Over references as over traffic: that a reference is a sample too is in the variance."""
    found = [t2(Rff.fit(rows(ROWS, 1000 + seed // 25))(rows(100, seed))) for seed in range(1, 201)]
    assert chi2(DIMENSIONS).ppf(0.3) < np.median(found) < chi2(DIMENSIONS).ppf(0.7)
    assert np.mean(np.array(found) > chi2(DIMENSIONS).ppf(0.95)) < 0.12


def test_a_turned_distribution_is_far_away_although_every_value_is_distributed_as_before(rff: Rff) -> None:
    """Each value by itself is standard normal still; only together do they say that all are one, or its opposite."""
    random = np.random.default_rng(5)
    turned = rows(400, 6)
    turned[:, 1:] = turned[:, [1]] * np.sign(random.standard_normal(VALUES - 1))
    assert t2(rff(turned)) > chi2(DIMENSIONS).ppf(1 - 1e-5)


def test_a_row_is_the_same_alone_and_among_others(rff: Rff) -> None:
    some = rows(33, 2)
    alone = np.concatenate([rff(some[at : at + 1]) for at in range(len(some))])
    np.testing.assert_allclose(rff(some), alone, atol=1e-5)  # but for rounding


def test_rows_that_cannot_be_measured_say_nothing_and_none_weighs_too_much(rff: Rff) -> None:
    some = rows(3, 3)
    some[0, 5], some[1, 5], some[2] = np.nan, np.inf, 1e6
    found = rff(some)
    assert not found[:2].any()
    assert np.abs(found).max() <= CUT


def test_a_reference_that_does_not_vary_says_nothing() -> None:
    flat = Rff.fit(np.ones((50, 4)))
    assert not flat(rows(5, 1)[:, :4]).any()


def test_bytes_keep_the_map_and_are_the_same_in_another_process(rff: Rff) -> None:
    data = rff.to_bytes()
    np.testing.assert_array_equal(Rff.from_bytes(data)(rows(9, 4)), rff(rows(9, 4)))
    program = (
        "from tests.unit.monitoring.test_rff import ROWS, rows; from monitoring.rff import Rff, digest;"
        "print(digest(Rff.fit(rows(ROWS, 0)).to_bytes()))"
    )
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == digest(data)


def test_pooling_averages_neighbours() -> None:
    values = np.arange(24, dtype=np.float64).reshape(2, 12)
    assert pooled(values, 12) is values
    np.testing.assert_array_equal(pooled(values, 4), values.reshape(2, 4, 3).mean(axis=2))
    assert pooled(np.ones((3, 1000)), 7).tolist() == [[1.0] * 7] * 3
    np.testing.assert_array_equal(pooled(values, 5), values.reshape(2, 4, 3).mean(axis=2))
    np.testing.assert_array_equal(pooled(values[:, :11], 4)[:, -1], values[:, 9:11].mean(axis=1))
