"""The arithmetic of drift and quality: pure functions of counts, and no thresholds of their own.

The last axis of every `counts` is the bins of one feature, all of them, `missing` too; axes before it are whatever the
caller has, features or windows, and broadcast. Counts are rows seen in traffic, `reference` the profile's own rows.
Where there are no rows there is no answer: NaN, which exceeds no threshold. The recording rules compute the same from
the same counters.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitoring.rff import CUT

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Traffic against reference, one value for each leading index of the counts, [...]."""

    rows: Array
    rows_effective: Array
    psi: Array
    psi_excess: Array
    chi_square: Array
    z: Array


def compare(counts: npt.ArrayLike, reference: npt.ArrayLike, dispersion: npt.ArrayLike = 1.0) -> Comparison:
    """Compare counts [..., bins] with reference [..., bins]; dispersion [...] is 1 where rows are independent."""
    counts, reference = _floats(counts), _floats(reference)
    bins = counts.shape[-1]
    rows, reference_rows = counts.sum(-1), reference.sum(-1)
    effective = rows_effective(rows, dispersion)
    expected = smoothed_shares(reference)
    found_psi = np.where(rows > 0, psi(smoothed_shares(counts), expected), np.nan)
    found_chi_square = chi_square(shares(counts), expected, effective, reference_rows)
    return Comparison(
        rows=rows,
        rows_effective=effective,
        psi=found_psi,
        psi_excess=psi_excess(found_psi, bins, effective, reference_rows),
        chi_square=found_chi_square,
        z=wilson_hilferty_z(found_chi_square, bins - 1),
    )


def drifted(compared: Comparison, *, min_effect: float, min_z: float, min_rows: float) -> Bools:
    """Whether a feature has drifted in one tier, [...]: enough effect AND enough significance AND enough rows."""
    effect = compared.psi_excess > min_effect
    significance = compared.z > min_z
    return effect & significance & (compared.rows_effective >= min_rows)


def shares(counts: npt.ArrayLike) -> Array:
    """Shares of counts [..., bins] as they are; NaN without rows."""
    counts = _floats(counts)
    return _ratio(counts, counts.sum(-1, keepdims=True))


def smoothed_shares(counts: npt.ArrayLike) -> Array:
    """(n + 1/2) / (N + B/2) of counts [..., bins]: never 0, so that its logarithm is finite.

    The estimator of Krichevsky and Trofimov (1981), which is Jeffreys' prior on B bins.
    """
    counts = _floats(counts)
    bins = counts.shape[-1]
    smoothed: Array = (counts + 0.5) / (counts.sum(-1, keepdims=True) + 0.5 * bins)
    return smoothed


def rows_effective(rows: npt.ArrayLike, dispersion: npt.ArrayLike) -> Array:
    """N / dispersion: how many independent rows tell as much as `rows` rows that come in bursts."""
    return _ratio(_floats(rows), _floats(dispersion))


def psi(live: npt.ArrayLike, expected: npt.ArrayLike) -> Array:
    """Population stability index of smoothed shares [..., bins]: sum of (q - p) ln(q / p).

    The symmetrised divergence of Jeffreys (1946). Without drift it is (B - 1)(1/N + 1/M) on average and not 0
    (Yurdakul 2018, "Statistical properties of the population stability index").
    """
    live, expected = _floats(live), _floats(expected)
    index: Array = ((live - expected) * np.log(live / expected)).sum(-1)
    return index


def psi_excess(psi: npt.ArrayLike, bins: int, rows: npt.ArrayLike, reference_rows: npt.ArrayLike) -> Array:
    """PSI less what rows [...] and reference_rows [...] give without drift: an effect that traffic does not change.

    Give effective rows. A normal feature whose mean moves by d standard deviations has about d^2.
    """
    return _floats(psi) - (bins - 1) * _inverse_rows(rows, reference_rows)


def chi_square(
    live: npt.ArrayLike, expected: npt.ArrayLike, rows: npt.ArrayLike, reference_rows: npt.ArrayLike
) -> Array:
    """Pearson's two-sample chi-square of shares [..., bins], B - 1 degrees of freedom without drift.

    Sum of (s - p)^2 / (w s + (1 - w) p) / (1/N + 1/M) with w = N / (N + M), the pooled share below the line: with
    plain shares and rows it is exactly `scipy.stats.chi2_contingency`. Give effective rows.
    """
    live, expected = _floats(live), _floats(expected)
    rows, reference_rows = _floats(rows), _floats(reference_rows)
    weight = _ratio(rows, rows + reference_rows)[..., np.newaxis]
    pooled = weight * live + (1 - weight) * expected
    # A bin that is empty on both sides says nothing.
    terms = np.divide((live - expected) ** 2, pooled, out=np.zeros_like(pooled), where=pooled != 0)
    return _ratio(terms.sum(-1), _inverse_rows(rows, reference_rows))


def wilson_hilferty_z(chi_square: npt.ArrayLike, degrees: int) -> Array:
    """The normal deviate of a chi-square with `degrees` of freedom, so that one threshold serves any number of bins.

    ((x/d)^(1/3) - 1 + 2/(9d)) / sqrt(2/(9d)), after Wilson and Hilferty (1931). Far out it is too small: at z = 5 the
    real tail is 0.57 of the normal one for d = 10, 0.1 of it for d = 1.
    """
    spread = 2 / (9 * degrees)
    deviate: Array = (np.cbrt(_floats(chi_square) / degrees) - (1 - spread)) / np.sqrt(spread)
    return deviate


def jensen_shannon(live: npt.ArrayLike, expected: npt.ArrayLike) -> Array:
    """Jensen-Shannon distance of smoothed shares [..., bins], base 2, from 0 to 1 (Endres and Schindelin 2003)."""
    live, expected = _floats(live), _floats(expected)
    middle = (live + expected) / 2
    divergence = 0.5 * (live * np.log2(live / middle) + expected * np.log2(expected / middle)).sum(-1)
    distance: Array = np.sqrt(np.maximum(divergence, 0))  # rounding goes below 0
    return distance


def kolmogorov_smirnov(live: npt.ArrayLike, expected: npt.ArrayLike) -> Array:
    """Largest distance of the two distribution functions at the edges between bins, of shares [..., bins] in order.

    `missing`, the last bin, is then the highest value.
    """
    gaps = np.cumsum(_floats(live) - _floats(expected), axis=-1)
    largest: Array = np.abs(gaps).max(-1)
    return largest


def kolmogorov_smirnov_p(distance: npt.ArrayLike, rows: npt.ArrayLike, reference_rows: npt.ArrayLike) -> Array:
    """An upper bound of the p-value: 2 exp(-2 D^2 / (1/N + 1/M)), Kolmogorov's limit; binned data are below it."""
    exponent = -2 * _ratio(_floats(distance) ** 2, _inverse_rows(rows, reference_rows))
    bound: Array = np.minimum(2 * np.exp(exponent), 1)
    return bound


def pair_dispersion(counts: npt.ArrayLike, before: npt.ArrayLike) -> Array:
    """Chi-square between two successive windows [..., bins] over its B - 1 degrees of freedom.

    About 1 if rows are independent, about k if they come in runs of k. A drift that lasts is in both windows and
    cancels. The estimate of overdispersion in McCullagh and Nelder (1989), section 4.5, with half a row added to each
    bin of each window below the line.
    """
    counts, before = _floats(counts), _floats(before)
    bins = counts.shape[-1]
    rows, rows_before = counts.sum(-1), before.sum(-1)
    pooled = (counts + before + 1) / (rows + rows_before + bins)[..., np.newaxis]
    squares = ((shares(counts) - shares(before)) ** 2 / pooled).sum(-1)
    return _ratio(squares, (bins - 1) * _inverse_rows(rows, rows_before))


def dispersion(counts: npt.ArrayLike) -> Array:
    """Mean of `pair_dispersion` over successive windows [windows, ..., bins]: [...], and at least 1.

    1 where no two windows in a row have rows.
    """
    counts = _floats(counts)
    pairs = pair_dispersion(counts[1:], counts[:-1])
    known = np.isfinite(pairs)
    mean = _ratio(np.where(known, pairs, 0).sum(0), known.sum(0).astype(np.float64))
    return np.fmax(mean, 1.0)


def missing_z(
    missing: npt.ArrayLike, expected: npt.ArrayLike, rows: npt.ArrayLike, reference_rows: npt.ArrayLike
) -> Array:
    """One-sided z of a share of missing values [...] against the smoothed reference share [...]; positive for more.

    The normal approximation of a binomial: (s - p) / sqrt(p (1 - p) (1/N + 1/M)). Give effective rows.
    """
    missing, expected = _floats(missing), _floats(expected)
    return _ratio(missing - expected, np.sqrt(expected * (1 - expected) * _inverse_rows(rows, reference_rows)))


def rff_t2(
    sums: npt.ArrayLike,
    rows: npt.ArrayLike,
    rows_effective: npt.ArrayLike,
    reference_rows: npt.ArrayLike,
) -> Array:
    """T^2 of random Fourier features from their sums [..., dimensions] over rows [...].

    Without drift it is chi-square, with a degree of freedom for each dimension. The features are white on the
    reference (mean 0, variance 1) and were raised by CUT, so that sums only grow. Sum of mean^2 /
    (1/N + 1/M): Hotelling (1931) in the space of Rahimi and Recht (2007), the FastMMD of Zhao and Meng (2015).
    """
    mean = _ratio(_floats(sums), _floats(rows)[..., np.newaxis]) - CUT
    return _ratio((mean**2).sum(-1), _inverse_rows(rows_effective, reference_rows))


def rff_shift_excess(
    t2: npt.ArrayLike, dimensions: int, rows_effective: npt.ArrayLike, reference_rows: npt.ArrayLike
) -> Array:
    """Mean square shift of a dimension, in variances, less what chance gives: an effect that traffic does not change.

    Of T^2 [...] over so many dimensions: (T^2 / D - 1)(1/N + 1/M), which is mean(mean^2) - (1/N + 1/M).
    """
    excess: Array = (_floats(t2) / dimensions - 1) * _inverse_rows(rows_effective, reference_rows)
    return excess


def wilson_interval(hits: npt.ArrayLike, trials: npt.ArrayLike, z: float) -> tuple[Array, Array]:
    """Lower and upper bound [...] of a share of which `hits` of `trials` were seen; Wilson (1927). z = 1.96 for 95%."""
    hits, trials = _floats(hits), _floats(trials)
    share = _ratio(hits, trials)
    half = z * np.sqrt(_ratio(share * (1 - share), trials) + _ratio(z**2 / 4, trials**2))
    middle = share + _ratio(z**2 / 2, trials)
    scale = 1 + _ratio(z**2, trials)
    return (middle - half) / scale, (middle + half) / scale


@dataclass(frozen=True)
class Quality:
    """What a confusion matrix says; NaN where it says nothing."""

    labelled: Array
    accuracy: Array
    precision: Array
    recall: Array
    f1: Array
    macro_f1: Array


def quality(confusion: npt.ArrayLike) -> Quality:
    """Accuracy [...], precision, recall and F1 [..., classes] and macro F1 [...] of rows [..., predicted, actual].

    As scikit-learn's precision_recall_fscore_support counts them, except that 0/0 is NaN and not 0: a class that was
    never predicted has no precision. Macro F1 is the mean over the classes that were predicted or actual.
    """
    confusion = _floats(confusion)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted, actual = confusion.sum(-1), confusion.sum(-2)
    labelled = confusion.sum((-2, -1))
    f1 = _ratio(2 * hits, predicted + actual)
    seen = np.isfinite(f1)
    return Quality(
        labelled=labelled,
        accuracy=_ratio(hits.sum(-1), labelled),
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, actual),
        f1=f1,
        macro_f1=_ratio(np.where(seen, f1, 0).sum(-1), seen.sum(-1).astype(np.float64)),
    )


def _floats(values: npt.ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _inverse_rows(rows: npt.ArrayLike, reference_rows: npt.ArrayLike) -> Array:
    """1/N + 1/M: the variance that counting so few rows brings. NaN if either is 0."""
    return _ratio(1.0, _floats(rows)) + _ratio(1.0, _floats(reference_rows))


def _ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Array:
    """Quotient, NaN instead of a warning where `below` is 0."""
    above, below = np.broadcast_arrays(_floats(above), _floats(below))
    quotient: Array = np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
    return quotient
