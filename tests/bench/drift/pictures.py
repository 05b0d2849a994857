"""Digits of which a fifth is transposed: how often a sample of 100 is found at 0.1% false alarms.

Class, confidence, entropy and random Fourier features of scikit-learn's digits, as a handler with classes and inputs of
many values counts them; the classifier is a logistic regression. What is judged is the largest of the four deviates,
and its threshold is the one that 0.1% of samples without a transposed picture exceed.
"""

import numpy as np
import numpy.typing as npt

from monitoring import drift
from monitoring.prediction import predicted
from monitoring.profile import Profile
from monitoring.rff import CUT, DIMENSIONS, Rff
from tests.bench.drift.streams import Array
from tests.bench.findings import Finding

BAR = 0.95
FALSE_ALARMS = 0.001
INPUTS, TRANSPOSED = 100, 20
SPLITS = 5
"""Of the digits into those to learn from, the reference, and traffic."""
CALIBRATED, TRIED = 20_000, 2_000
"""Samples of each split: without transposed digits, and with."""
_LEARNED_FROM, _REFERENCE = 600, 700
_SIDE = 8


def pictures(seed: int) -> Finding:
    found = [_found(np.random.default_rng([seed, 13, split])) for split in range(SPLITS)]
    return Finding(
        f"samples found of {INPUTS} digits with {TRANSPOSED} transposed, 0.1% false alarms",
        float(np.mean(found)), "share", BAR, spread=(min(found), max(found)),
    )  # fmt: skip


def _found(random: np.random.Generator) -> float:
    """The share of samples of one split that are found."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    learned, reference, traffic = np.split(random.permutation(len(images)), (_LEARNED_FROM, _LEARNED_FROM + _REFERENCE))
    model = LogisticRegression(max_iter=5000).fit(images[learned], labels[learned])
    turned = images[traffic].reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1).reshape(-1, _SIDE**2)
    shown = np.concatenate((images[traffic], turned))
    judge = _Judge(images[reference], model.predict_proba(images[reference]), shown, model.predict_proba(shown))
    quiet = judge.deviates(_samples(random, len(traffic), CALIBRATED))
    threshold = np.quantile(quiet, 1 - FALSE_ALARMS, method="higher")
    tried = _samples(random, len(traffic), TRIED)
    tried[:, :TRANSPOSED] += len(traffic)
    return float((judge.deviates(tried) > threshold).mean())


class _Judge:
    """What is counted of every picture, so that a sample is a sum."""

    def __init__(self, reference: Array, likely: Array, shown: Array, shown_likely: Array) -> None:
        rff = Rff.fit(reference)
        self._profile = Profile.build({}, {}, {}, likely, [str(digit) for digit in range(likely.shape[1])])
        found, sure = predicted(shown_likely)
        bins = self._profile.binner()([sure], [found])
        self._counted = np.zeros((len(shown), self._profile.layout.size + DIMENSIONS))
        np.put_along_axis(self._counted, bins, 1, axis=1)
        self._counted[:, -DIMENSIONS:] = rff(shown) + CUT

    def deviates(self, samples: npt.NDArray[np.int64]) -> Array:
        """The largest of the deviates of each sample [samples, INPUTS] of pictures, [samples]."""
        counted = np.zeros((len(samples), self._counted.shape[1]))
        for each in samples.T:
            counted += self._counted[each]
        *bins, sums = np.split(counted, np.cumsum(self._profile.layout.bins), axis=1)
        deviates = [
            drift.compare(counts, feature.reference).z
            for counts, feature in zip(bins, self._profile.features, strict=True)
        ]
        t2 = drift.rff_t2(sums, INPUTS, INPUTS, self._profile.rows)
        largest: Array = np.maximum.reduce([*deviates, drift.wilson_hilferty_z(t2, DIMENSIONS)])
        return largest


def _samples(random: np.random.Generator, pictures: int, count: int) -> npt.NDArray[np.int64]:
    """Indices of different pictures, [count, INPUTS]."""
    return random.random((count, pictures)).argpartition(INPUTS, axis=1)[:, :INPUTS]
