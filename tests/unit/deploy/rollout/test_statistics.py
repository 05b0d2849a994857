"""The gate's arithmetic against scipy, and against what Wald and Ville promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2_contingency

from deploy.rollout.statistics import above, compared, raised, sequential, steady_growth, step_false_alarm

TEST = {"p0": 0.01, "p1": 0.05, "false_alarm": 0.01, "missed": 0.1}
MARGIN = {"margin": 0.01, "z": 5.0, "confidence_z": 1.645}


@pytest.mark.parametrize(("bad", "trials"), [(0, 56), (3, 20), (40, 900)])
def test_the_log_ratio_is_that_of_two_binomials(bad: int, trials: int) -> None:
    found = sequential(bad, trials, 0, 0, **TEST)
    assert found.log_ratio == pytest.approx(binom.logpmf(bad, trials, 0.05) - binom.logpmf(bad, trials, 0.01))


def test_it_fails_and_passes_at_the_bounds_of_ville() -> None:
    found = sequential([0, 0, 3, 3, 4], [54, 57, 5, 60, 48], 0, 0, **TEST)
    assert found.upper == pytest.approx(np.log(100))
    assert found.lower == pytest.approx(np.log(0.1))
    assert found.failed.tolist() == [False, False, True, False, True]
    assert found.passed.tolist() == [False, True, False, False, False]


def test_a_share_of_p0_ever_fails_as_seldom_as_ville_says_and_p1_ever_passes_so() -> None:
    random = np.random.default_rng(1)
    trials = np.arange(1, 1001)
    for share, which, most in ((0.01, "failed", 0.01), (0.05, "passed", 0.1)):
        bad = (random.random((2000, 1000)) < share).cumsum(axis=1)
        found = getattr(sequential(bad, trials, 0, 0, **TEST), which)
        assert 0 < found.any(axis=1).mean() < most


def test_all_steps_together_spend_no_more_than_the_whole() -> None:
    spent = [step_false_alarm(0.02, step) for step in range(50)]
    assert spent[:2] == [0.01, 0.005]
    assert sum(spent) <= 0.02


def test_a_champion_that_is_bad_itself_takes_the_place_of_p0() -> None:
    low, high = raised(0.01, 0.05, [0, 3, 300], [0, 100, 3000])
    assert low.tolist() == pytest.approx([0.01, 0.01, 0.1])  # 3 of 100 may be chance
    odds = 0.1 / 0.9 * (0.05 / 0.95) / (0.01 / 0.99)
    assert high.tolist() == pytest.approx([0.05, 0.05, odds / (1 + odds)])
    assert not sequential(30, 300, 300, 3000, **TEST).failed
    assert sequential(30, 300, 30, 3000, **TEST).failed
    assert np.isfinite(sequential(10, 10, 3000, 3000, **TEST).log_ratio)


@pytest.mark.parametrize("counts", [(20, 1000, 14, 2800), (40, 400, 5, 1600), (3, 100, 60, 1900)])
def test_z_is_the_root_of_chi_square(counts: tuple[int, int, int, int]) -> None:
    bad, of, reference_bad, reference_of = counts
    table = [[bad, of - bad], [reference_bad, reference_of - reference_bad]]
    statistic = chi2_contingency(table, correction=False).statistic
    assert float(compared(*counts, **MARGIN).z) ** 2 == pytest.approx(statistic)


def test_the_upper_bound_is_newcombes() -> None:
    # Newcombe (1998), table II: 56/70 against 48/80, method 10, 95% two-sided: 0.0524 to 0.3339.
    found = compared(56, 70, 48, 80, margin=0.01, z=5, confidence_z=1.959964)
    assert float(found.upper) == pytest.approx(0.3339, abs=1e-4)


def test_between_worse_and_shown_to_be_as_good_it_is_undecided() -> None:
    found = compared([5, 20, 60], [1000, 1000, 1000], [14, 14, 14], [2800, 2800, 2800], **MARGIN)
    assert found.passed.tolist() == [True, False, False]
    assert found.failed.tolist() == [False, False, True]


def test_few_bad_ones_condemn_nobody_here_and_nothing_passes_without_data() -> None:
    assert not compared(9, 9, 0, 5000, **MARGIN).failed
    assert compared(10, 10, 0, 5000, **MARGIN).failed
    for counts in ((0, 0, 0, 0), (0, 0, 5, 1000), (0, 1000, 0, 0)):
        found = compared(*counts, **MARGIN)
        assert not found.failed
        assert not found.passed


counts = st.integers(1, 5000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


@given(counts, counts, st.integers(1, 100))
def test_more_bad_ones_never_make_either_test_better(ours: tuple[int, int], theirs: tuple[int, int], more: int) -> None:
    bad, of = ours
    worse = min(bad + more, of)
    before, after = sequential([bad, worse], of, *theirs, **TEST), compared([bad, worse], of, *theirs, **MARGIN)
    for failed, passed in ((before.failed, before.passed), (after.failed, after.passed)):
        assert failed[1] >= failed[0]
        assert passed[1] <= passed[0]


def test_above_each_edge() -> None:
    assert above([1, 2, 3]).tolist() == [5, 3]


def test_a_leak_grows_in_each_quarter_and_warm_up_or_a_jump_does_not() -> None:
    times = np.arange(0, 65, 5.0)
    rate, growth = steady_growth(times, 1e9 + 5e6 * times)
    assert rate == pytest.approx(5e6, rel=0.1)
    assert growth == pytest.approx(5e6 * 45, rel=0.1)
    assert steady_growth(times, np.where(times < 30, 1e9, 2e9))[0] == 0
    assert steady_growth(times, 1e9 * (1 - np.exp(-(30 + times) / 20)))[0] == 0
    assert steady_growth(times, -times)[0] == 0
    assert np.isnan(steady_growth(times[:3], times[:3])[0])
    assert np.isnan(steady_growth([], [])[0])
    assert np.isnan(steady_growth([0, 1, 2, 60], [0, 1, 2, 3])[0])
