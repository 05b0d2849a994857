"""How good predictions are: scores at one half, and how far the ROC AUC of one ranking beats another's."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Scores of probabilities against labels; a probability of at least one half says yes."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    roc_auc: float

    @classmethod
    def of(cls, probability: FloatArray, label: BoolArray) -> "Scores":
        """Score `probability` [n] against `label` [n], which must hold both classes."""
        said = probability >= 0.5
        precision, recall, f1, _ = precision_recall_fscore_support(label, said, average="binary", zero_division=0.0)
        return cls(
            accuracy=float(accuracy_score(label, said)),
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
            roc_auc=float(roc_auc_score(label, probability)),
        )

    def as_dict(self) -> dict[str, float]:
        """The scores by name."""
        return asdict(self)


@dataclass(frozen=True)
class AucGain:
    """ROC AUC of a model less that of a baseline on the same rows, with a 95% interval."""

    baseline: float
    gain: float
    low: float
    high: float

    @property
    def convincing(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    def as_dict(self) -> dict[str, float]:
        """The comparison by the names of its metrics."""
        return {
            "baseline_roc_auc": self.baseline,
            "roc_auc_gain": self.gain,
            "roc_auc_gain_low": self.low,
            "roc_auc_gain_high": self.high,
        }


def auc_gain(
    probability: FloatArray, baseline: FloatArray, label: BoolArray, resamples: int = 1000, seed: int = 0
) -> AucGain:
    """Compare two rankings [n] of the same rows by a paired bootstrap: both see the same resampled rows."""
    random = np.random.default_rng(seed)
    ranked, ranked_baseline = _Ranking(probability, label), _Ranking(baseline, label)
    rows = len(label)
    ones = np.ones(rows)
    start = ranked_baseline.auc(ones)
    gains = np.empty(resamples)
    for index in range(resamples):
        times = np.bincount(random.integers(0, rows, rows), minlength=rows).astype(np.float64)
        gains[index] = ranked.auc(times) - ranked_baseline.auc(times)
    low, high = np.quantile(gains, (0.025, 0.975))
    return AucGain(baseline=start, gain=ranked.auc(ones) - start, low=float(low), high=float(high))


class _Ranking:
    """Rows sorted by score once, so that the AUC of a resample is two sums over runs of equal scores."""

    def __init__(self, score: FloatArray, label: BoolArray) -> None:
        self._order = np.argsort(score)
        ordered = score[self._order]
        self._starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        self._positive = label[self._order].astype(np.float64)

    def auc(self, weight: FloatArray) -> float:
        """Share of (positive, negative) pairs in the right order, ties counting half; `weight` [n] per row."""
        weights = weight[self._order]
        positive = np.add.reduceat(weights * self._positive, self._starts)
        negative = np.add.reduceat(weights * (1 - self._positive), self._starts)
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))
