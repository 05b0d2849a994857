"""Models with labels for some of their rows, judged as scikit-learn judges them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from monitoring.names import CONFIDENCE_SUM, FEEDBACK, REFERENCE_ACCURACY, ROWS
from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

LAST = 90
MINUTES = 60
"""Rows and labels come for so long; then alerts have time to fire."""
SIGMAS, LEAST_LABELS, DROP, MACRO_F1 = 3.0, 50, 0.02, 0.5
ROWS_PREDICTED, CONFIDENCE = 400.0, 0.85
CLASSES = ("cat", "dog", "other")


@dataclass(frozen=True)
class Labelled:
    """Rows by predicted class, and by actual class within it. `promised` is above the upper bound of accuracy."""

    counts: tuple[tuple[int, ...], ...]
    promised: float

    @property
    def _pairs(self) -> tuple[list[str], list[str], list[int]]:
        """(actual, predicted, weight) of every cell."""
        cells = [(CLASSES[a], CLASSES[p], n) for p, row in enumerate(self.counts) for a, n in enumerate(row) if n]
        return [a for a, _, _ in cells], [p for _, p, _ in cells], [n for _, _, n in cells]

    @property
    def total(self) -> int:
        return int(np.sum(self.counts))

    @property
    def accuracy(self) -> float:
        actual, predicted, weights = self._pairs
        return float(accuracy_score(actual, predicted, sample_weight=weights))

    @property
    def bounds(self) -> tuple[float, float]:
        sure = float(norm.cdf(SIGMAS) - norm.cdf(-SIGMAS))
        found = binomtest(int(np.trace(self.counts)), self.total).proportion_ci(sure, method="wilson")
        return float(found.low), float(found.high)

    @property
    def macro_f1(self) -> float:
        actual, predicted, weights = self._pairs
        return float(f1_score(actual, predicted, average="macro", sample_weight=weights))

    def by_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall and F1; one that would divide by 0 is left out."""
        actual, predicted, weights = self._pairs
        seen = sorted({*actual, *predicted})
        scores = precision_recall_fscore_support(
            actual, predicted, labels=seen, sample_weight=weights, zero_division=np.nan
        )
        return {
            name: {one: float(value) for one, value in zip(seen, values, strict=True) if not np.isnan(value)}
            for name, values in zip(("precision", "recall", "f1"), scores[:3], strict=True)
        }


MODELS = {
    # Accuracy: what was promised lies a little more, or a little less, than the drop above the upper bound.
    "fallen": Labelled(((40, 10, 0), (6, 60, 4), (0, 0, 0)), 0.025),
    "hardly_fallen": Labelled(((44, 12, 0), (5, 70, 3), (0, 0, 0)), 0.016),
    "enough_labels": Labelled(((20, 10, 0), (5, 20, 5), (0, 0, 0)), 0.1),
    "too_few_labels": Labelled(((14, 6, 0), (4, 14, 2), (0, 0, 0)), 0.1),
    # Macro F1, with nothing promised. A class `other` that is never right costs a third.
    "low_f1": Labelled(((50, 20, 4), (25, 40, 6), (3, 0, 0)), 0.0),
    "fair_f1": Labelled(((60, 10, 2), (12, 60, 6), (0, 0, 0)), 0.0),
    "low_f1_too_few": Labelled(((10, 10, 2), (9, 7, 2), (0, 0, 0)), 0.0),
}

SPARSE = ("low_f1", "low_f1_too_few")
"""A cell without rows has no series here, and one that stands at 0 elsewhere."""


def scenarios() -> Iterator[Scenario]:
    assert MACRO_F1 / 1.5 < MODELS["low_f1"].macro_f1 < MACRO_F1 < MODELS["fair_f1"].macro_f1 < MACRO_F1 * 1.5
    series: dict[tuple[str, Labels], Samples] = {}
    for model, labelled in MODELS.items():
        its = {"model": model, "version": "3"}
        for node, part, reset in (("a", 0.25, None), ("b", 0.75, 40)):
            where = {**its, "instance": node}
            series[ROWS.name, labels(**where)] = _counted(ROWS_PREDICTED * part, reset)
            series[CONFIDENCE_SUM.name, labels(**where)] = _counted(ROWS_PREDICTED * CONFIDENCE * part, reset)
            for predicted, row in zip(CLASSES, labelled.counts, strict=True):
                for actual, count in zip(CLASSES, row, strict=True):
                    if count or model not in SPARSE:
                        cell = labels(**where, predicted=predicted, actual=actual)
                        series[FEEDBACK.name, cell] = _counted(count * part, reset)
            if labelled.promised:
                promised = labelled.bounds[1] + labelled.promised
                series[REFERENCE_ACCURACY.name, labels(**where)] = constant(promised, LAST)
    yield Scenario("quality", LAST, series, _records(), _alerts())
    yield _counts()


def _counts() -> Scenario:
    """While they come: the increases that the others are sums of."""
    its, cell = {"model": "m", "version": "3"}, {"predicted": "cat", "actual": "dog"}
    series: dict[tuple[str, Labels], Samples] = {}
    for node, reset in (("a", None), ("b", 12)):
        series[FEEDBACK.name, labels(**its, **cell, instance=node)] = counter(3, 15, reset)
        series[CONFIDENCE_SUM.name, labels(**its, instance=node)] = counter(0.5, 15, reset)
    return Scenario(
        "quality counts", 15, series,
        {
            "shipway_quality:labels:10m": {labels(**its, **cell): 60.0},
            "shipway_quality:confidence:10m": {labels(**its): 10.0},
        },
    )  # fmt: skip


def _counted(total: float, reset: int | None) -> Samples:
    grown = counter(total / MINUTES, MINUTES, reset)
    return [*grown, (grown[-1][0], LAST - MINUTES)]


def _records() -> dict[str, dict[Labels, float]]:
    found: dict[str, dict[Labels, float]] = {}
    for model, labelled in MODELS.items():
        its = {"model": model, "version": "3"}
        for (name, more), value in (_of_version(labelled) | _of_classes(labelled, sparse=model in SPARSE)).items():
            found.setdefault(f"shipway_quality:{name}:1d", {})[labels(**its, **dict(more))] = value
    return found


def _of_version(labelled: Labelled) -> dict[tuple[str, Labels], float]:
    low, high = labelled.bounds
    values = {
        "labelled": labelled.total,
        "accuracy": labelled.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": labelled.macro_f1,
        "expected_accuracy": CONFIDENCE,
        "label_coverage": labelled.total / ROWS_PREDICTED,
    }
    return {(name, ()): float(value) for name, value in values.items()}


def _of_classes(labelled: Labelled, *, sparse: bool) -> dict[tuple[str, Labels], float]:
    found = {
        (name, labels(**{"class": one})): score
        for name, by_class in labelled.by_class().items()
        for one, score in by_class.items()
    }
    counts: npt.NDArray[np.int64] = np.array(labelled.counts)
    sums = {"predicted": counts.sum(axis=1), "actual": counts.sum(axis=0), "correct": np.diag(counts)}
    for name, by_index in sums.items():
        for one, count, seen in zip(CLASSES, by_index, sums["predicted"] + sums["actual"], strict=True):
            if seen or not sparse:
                found[name, labels(**{"class": one})] = float(count)
    for predicted, row in zip(CLASSES, labelled.counts, strict=True):
        for actual, count in zip(CLASSES, row, strict=True):
            if count or not sparse:
                found["confusion", labels(predicted=predicted, actual=actual)] = float(count)
    return found


def _alerts() -> dict[str, Fires]:
    def where(*models: str) -> frozenset[Labels]:
        return frozenset(labels(model=model, version="3") for model in models)

    accuracy = Fires(where("fallen", "enough_labels"), where("hardly_fallen", "too_few_labels"))
    low = [name for name, one in MODELS.items() if one.macro_f1 < MACRO_F1 and one.total >= LEAST_LABELS]
    return {"AccuracyLow": accuracy, "MacroF1Low": Fires(where(*low), where("fair_f1", "low_f1_too_few"))}
