"""The drift arithmetic: equal to scipy and scikit-learn, vectorised, and without an opinion where there are no rows."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, chi2, chi2_contingency, norm
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from monitoring import drift

REFERENCE = np.array([500.0] * 10 + [20.0])
SHIFTED = np.array([20.0, 40, 50, 60, 80, 100, 120, 140, 180, 210, 30])


def sampled(random: np.random.Generator, shares: drift.Array, rows: int, *shape: int) -> drift.Array:
    return random.multinomial(rows, shares, shape).astype(np.float64)


def test_chi_square_is_the_one_of_a_contingency_table() -> None:
    found = drift.chi_square(drift.shares(SHIFTED), drift.shares(REFERENCE), SHIFTED.sum(), REFERENCE.sum())
    assert found == pytest.approx(chi2_contingency([SHIFTED, REFERENCE], correction=False).statistic, rel=1e-12)


def test_z_keeps_the_tail_of_a_chi_square_near_the_normal_one() -> None:
    for probability in (0.1, 0.01, 0.001):
        x = chi2.isf(probability, 10)
        assert drift.wilson_hilferty_z(x, 10) == pytest.approx(norm.isf(probability), rel=0.02)


def test_psi_is_its_formula_and_its_excess_takes_the_sampling_away() -> None:
    p = (REFERENCE + 0.5) / (REFERENCE.sum() + 5.5)
    q = (SHIFTED + 0.5) / (SHIFTED.sum() + 5.5)
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    found = drift.compare(SHIFTED, REFERENCE, dispersion=2.0)
    assert found.psi == pytest.approx(expected)
    assert found.rows_effective == SHIFTED.sum() / 2
    assert found.psi_excess == pytest.approx(expected - 10 * (2 / SHIFTED.sum() + 1 / REFERENCE.sum()))


def test_excess_is_nothing_without_drift_and_the_same_at_any_traffic_with_it() -> None:
    random = np.random.default_rng(5)
    still = np.full(10, 0.1)
    edges = norm.isf(1 - np.arange(1, 10) / 10)
    moved = np.diff(norm.cdf(np.concatenate(([-np.inf], edges, [np.inf])) - 0.5))  # the mean by half a deviation
    for rows in (500, 5000):
        reference = sampled(random, still, 5000, 2000)
        none = drift.compare(sampled(random, still, rows, 2000), reference)
        assert abs(none.psi_excess.mean()) < 0.001
        half = drift.compare(sampled(random, moved, rows, 2000), reference)
        assert half.psi_excess.mean() == pytest.approx(0.231, abs=0.01)


def test_jensen_shannon_is_scipys() -> None:
    live, expected = drift.smoothed_shares(SHIFTED), drift.smoothed_shares(REFERENCE)
    assert drift.jensen_shannon(live, expected) == pytest.approx(jensenshannon(live, expected, base=2), rel=1e-12)
    assert drift.jensen_shannon(live, live) == 0


def test_kolmogorov_smirnov_is_the_largest_gap_of_the_distribution_functions() -> None:
    live, expected = [0.4, 0.4, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]
    distance = drift.kolmogorov_smirnov(live, expected)
    assert distance == pytest.approx(0.5)
    assert drift.kolmogorov_smirnov_p(distance, 30, 60) == pytest.approx(2 * np.exp(-2 * 0.25 / (1 / 30 + 1 / 60)))
    assert drift.kolmogorov_smirnov_p(0.0, 30, 60) == 1


def test_dispersion_finds_the_length_of_runs_and_ignores_a_drift_that_lasts() -> None:
    random = np.random.default_rng(7)
    shares = drift.shares(SHIFTED)  # not the reference: dispersion does not look at it
    alone = sampled(random, shares, 2000, 200, 3)
    runs = 5 * sampled(random, shares, 400, 200, 3)
    assert drift.dispersion(alone) == pytest.approx(1.0, abs=0.1)
    assert drift.dispersion(runs) == pytest.approx(5.0, rel=0.1)


def test_dispersion_is_1_until_two_windows_have_rows() -> None:
    assert drift.dispersion(SHIFTED[np.newaxis]) == 1
    assert drift.dispersion(np.stack([SHIFTED, np.zeros(11), SHIFTED])) == 1


def test_missing_z_is_a_one_sided_binomial_z() -> None:
    found = drift.missing_z([0.08, 0.0], 0.02, 400, 5000)
    spread = np.sqrt(0.02 * 0.98 * (1 / 400 + 1 / 5000))
    assert found == pytest.approx([0.06 / spread, -0.02 / spread])


def test_t2_of_fourier_features_is_chi_square_without_drift_and_large_with_it() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(1000, 100, 32))  # windows, rows, dimensions
    sums = (features + 4).sum(1)
    still = drift.rff_t2(sums, np.full(1000, 100), np.full(1000, 100), np.inf)
    assert still.mean() == pytest.approx(32, rel=0.05)
    assert np.mean(still > chi2.isf(0.01, 32)) == pytest.approx(0.01, abs=0.008)
    moved = drift.rff_t2(sums + 50, np.full(1000, 100), np.full(1000, 100), 5000)
    assert drift.wilson_hilferty_z(moved, 32).min() > 5
    # Each of 100 rows was moved by 0.5, so each mean by 0.5 variances' root.
    assert drift.rff_shift_excess(moved, 32, 100, 5000).mean() == pytest.approx(0.25, rel=0.05)


def test_wilson_interval_is_scipys() -> None:
    low, high = drift.wilson_interval([8, 0, 10], 10, norm.isf(0.025))
    for place, hits in enumerate((8, 0, 10)):
        expected = binomtest(hits, 10).proportion_ci(0.95, method="wilson")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_quality_is_scikit_learns_over_the_classes_seen() -> None:
    random = np.random.default_rng(11)
    actual = random.integers(0, 3, 500)
    predicted = np.where(random.random(500) < 0.7, actual, random.integers(0, 3, 500))
    confusion = np.zeros((4, 4))  # the fourth class was never seen
    np.add.at(confusion, (predicted, actual), 1)
    found = drift.quality(confusion)
    precision, recall, f1, _ = precision_recall_fscore_support(actual, predicted)
    assert found.labelled == 500
    assert found.accuracy == pytest.approx(accuracy_score(actual, predicted))
    assert found.precision[:3] == pytest.approx(precision)
    assert found.recall[:3] == pytest.approx(recall)
    assert found.f1[:3] == pytest.approx(f1)
    assert np.isnan(found.f1[3])
    assert found.macro_f1 == pytest.approx(f1_score(actual, predicted, average="macro"))


def test_everything_is_vectorised_over_leading_axes() -> None:
    random = np.random.default_rng(1)
    counts = sampled(random, drift.shares(REFERENCE), 300, 4, 3)  # windows, features
    reference = np.stack([REFERENCE, SHIFTED, REFERENCE])
    together = drift.compare(counts, reference, dispersion=[1.0, 2.0, 3.0])
    assert together.z.shape == (4, 3)
    for window in range(4):
        for feature, phi in enumerate((1.0, 2.0, 3.0)):
            alone = drift.compare(counts[window, feature], reference[feature], phi)
            assert together.psi_excess[window, feature] == pytest.approx(alone.psi_excess)
            assert together.z[window, feature] == pytest.approx(alone.z)


def test_counts_of_replicas_add_up_to_the_statistic_of_one_process() -> None:
    parts = np.stack([SHIFTED // 3, SHIFTED // 2, SHIFTED - SHIFTED // 3 - SHIFTED // 2])
    merged, alone = drift.compare(parts.sum(0), REFERENCE), drift.compare(SHIFTED, REFERENCE)
    assert (merged.psi_excess, merged.z) == (alone.psi_excess, alone.z)


@pytest.mark.parametrize(("effect", "z", "rows", "expected"), [
    (0.1, 5, 100, True), (9.0, 5, 100, False), (0.1, 900, 100, False), (0.1, 5, 5000, False)
])  # fmt: skip
def test_a_verdict_wants_effect_and_significance_and_rows(effect: float, z: float, rows: float, expected: bool) -> None:
    compared = drift.compare(SHIFTED, REFERENCE)
    assert drift.drifted(compared, min_effect=effect, min_z=z, min_rows=rows) == expected


def test_no_rows_are_no_verdict_and_no_warning() -> None:
    for counts, reference in ((np.zeros(11), REFERENCE), (SHIFTED, np.zeros(11))):
        compared = drift.compare(counts, reference)
        assert np.isnan(compared.z)
        assert np.isnan(compared.psi_excess)
        assert not drift.drifted(compared, min_effect=0.1, min_z=5, min_rows=0)
    assert np.isnan(drift.quality(np.zeros((2, 2))).macro_f1)
    assert np.isnan(drift.wilson_interval(0, 0, 1.96)).all()
