"""What others' defaults say of the same traffic, in chunks of one hour: reimplemented, as no chunk knows its traffic.

Evidently 0.7 (evidently/legacy/calculations/stattests): PSI >= 0.1 over equal-width bins of reference and current
values together, Sturges' number of them, empty ones filled with 0.0001; and its default for a reference of more than
1,000 rows, Wasserstein's distance over the reference's standard deviation >= 0.1. The third is the two-sample test of
Kolmogorov and Smirnov at p < 0.05, which alibi-detect's and whylogs' examples use. All leave missing values out.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import ks_2samp, wasserstein_distance

from monitoring.drift import psi
from tests.bench.drift.streams import Array

EVIDENTLY_THRESHOLD = 0.1
SIGNIFICANCE = 0.05
_FILLED = 0.0001


def evidently_psi(reference: Array, current: Array) -> bool:
    bins = np.histogram_bin_edges(np.concatenate((reference, current)), bins="sturges")
    live, expected = (_filled(np.histogram(values, bins)[0] / len(values)) for values in (current, reference))
    return bool(psi(live, expected) >= EVIDENTLY_THRESHOLD)


def evidently_wasserstein(reference: Array, current: Array) -> bool:
    return bool(wasserstein_distance(reference, current) / reference.std() >= EVIDENTLY_THRESHOLD)


def kolmogorov_smirnov(reference: Array, current: Array) -> bool:
    return bool(ks_2samp(reference, current, method="asymp").pvalue < SIGNIFICANCE)


OTHERS: Mapping[str, Callable[[Array, Array], bool]] = {
    "Evidently PSI >= 0.1 (reimplemented)": evidently_psi,
    "Evidently default, Wasserstein >= 0.1 sd (reimplemented)": evidently_wasserstein,
    "KS test, p < 0.05 (scipy)": kolmogorov_smirnov,
}


def _filled(shares: Array) -> Array:
    least = shares[shares > 0].min()
    return np.where(shares > 0, shares, least / 1e6 if least <= _FILLED else _FILLED)
