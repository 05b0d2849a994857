"""What the rules must give, by numpy and scipy, in the form in which the formulas are published."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, chi2_contingency, norm

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Scores of one feature's counts by bin, the last of which is `missing`, against the profile's rows by bin."""

    live: FloatArray
    profile: FloatArray
    dispersion: float = 1.0

    @property
    def rows(self) -> float:
        return float(self.live.sum())

    @property
    def effective(self) -> float:
        return self.rows / self.dispersion

    @property
    def _p(self) -> FloatArray:
        p: FloatArray = (self.profile + 0.5) / (self.profile.sum() + 0.5 * len(self.profile))
        return p

    @property
    def chance(self) -> float:
        return float(1 / self.effective + 1 / self.profile.sum())

    @property
    def psi(self) -> float:
        q = (self.live + 0.5) / (self.rows + 0.5 * len(self.live))
        return float(np.sum((q - self._p) * np.log(q / self._p)))

    @property
    def psi_excess(self) -> float:
        return self.psi - (len(self.live) - 1) * self.chance

    @property
    def chi2(self) -> float:
        weight = self.effective / (self.effective + self.profile.sum())
        s, p = self.live / self.rows, self._p
        return float(np.sum((s - p) ** 2 / (weight * s + (1 - weight) * p)) / self.chance)

    @property
    def z(self) -> float:
        return wilson_hilferty(self.chi2, len(self.live) - 1)

    @property
    def missing_excess(self) -> float:
        return float(self.live[-1] / self.rows - self._p[-1])

    @property
    def missing_z(self) -> float:
        return float(self.missing_excess / np.sqrt(self._p[-1] * (1 - self._p[-1]) * self.chance))


def wilson_hilferty(statistic: float, degrees: int) -> float:
    """Approximately the standard normal value that is as unlikely as chi-square `statistic`."""
    spread = 2 / (9 * degrees)
    return float(((statistic / degrees) ** (1 / 3) - (1 - spread)) / np.sqrt(spread))


def scipys(drift: Drift) -> tuple[float, float]:
    """Chi-square of the two samples by scipy, without bins that are empty in both, and its exact normal value."""
    table = np.array([drift.live, drift.profile])
    found = chi2_contingency(table[:, table.sum(axis=0) > 0], correction=False)
    return float(found.statistic), float(norm.isf(chi2.sf(found.statistic, len(drift.live) - 1)))
