"""Scores and the paired bootstrap, against scikit-learn and against cases whose answer is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model_store.metrics import Scores, auc_gain

ROWS = 2000


def ranking(quality: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels."""
    random = np.random.default_rng(seed)
    label = random.random(ROWS) < 0.3
    return np.round(random.normal(size=ROWS) + quality * label, 1), label


def test_scores_of_a_known_table() -> None:
    scores = Scores.of(np.array([0.9, 0.5, 0.4, 0.6, 0.1]), np.array([True, True, True, False, False]))
    assert scores.as_dict() == pytest.approx(
        {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "roc_auc": 4 / 6}
    )


def test_auc_with_ties_is_that_of_scikit_learn() -> None:
    good, label = ranking(2, seed=0)
    poor = np.round(np.random.default_rng(1).normal(size=ROWS) + label, 1)
    gain = auc_gain(good, poor, label, resamples=10)
    assert gain.baseline == pytest.approx(roc_auc_score(label, poor))
    assert gain.gain == pytest.approx(roc_auc_score(label, good) - roc_auc_score(label, poor))


def test_a_better_ranking_convinces_and_the_same_does_not() -> None:
    good, label = ranking(2, seed=0)
    random = np.random.default_rng(1)
    poor = random.normal(size=ROWS) + label
    better = auc_gain(good, poor, label)
    assert better.convincing
    assert better.low < better.gain < better.high
    assert not auc_gain(poor, good, label).convincing
    same = auc_gain(good, good * 2, label)
    assert (same.low, same.gain, same.high) == (0, 0, 0)
    assert not same.convincing


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    # Two rankings equally good: an interval of 95% leaves zero out in 1 of 20 cases, here at most 6 of 40.
    misses = 0
    for seed in range(40):
        first, label = ranking(1, seed)
        second = np.random.default_rng(1000 + seed).normal(size=ROWS) + label
        gain = auc_gain(first, second, label, resamples=200, seed=seed)
        misses += not gain.low <= 0 <= gain.high
    assert misses <= 6
