"""The expected values themselves, against scipy's own statistics."""

import pytest

from tests.rules.drift_scenarios import features
from tests.rules.formulas import Drift, scipys


@pytest.mark.parametrize("drift", [pytest.param(drift, id=name) for (name, _), drift in features(0.1).items()])
def test_chi_square_and_z_are_scipys(drift: Drift) -> None:
    # Half a row in each bin of the profile, which keeps an empty bin finite, moves chi-square by a fraction.
    statistic, z = scipys(Drift(drift.live / drift.dispersion, drift.profile))
    assert drift.chi2 == pytest.approx(statistic, rel=5e-3)
    # Wilson and Hilferty's value errs towards silence, by a few percent, the more so the rarer.
    assert drift.z == pytest.approx(z, rel=0.07)
    assert drift.z <= z
