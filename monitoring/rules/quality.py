"""Quality from labels that came back within a day, under the version that predicted; scikit-learn's definitions."""

from collections.abc import Iterator

from monitoring.config import Config
from monitoring.names import CONFIDENCE_SUM, FEEDBACK, REFERENCE_ACCURACY
from monitoring.rules.rule import SAMPLED, VERSION, Alert, Group, Record, increase, total

CLASS = f"{VERSION}, class"
CONFUSION = "shipway_quality:confusion:1d"
LABELLED = "shipway_quality:labelled:1d"
ACCURACY = "shipway_quality:accuracy:1d"
PREDICTED, ACTUAL, CORRECT = (f"shipway_quality:{which}:1d" for which in ("predicted", "actual", "correct"))


def quality(config: Config) -> Group:
    return Group("shipway-quality", (*_counts(), *_scores(config), *_alerts(config)))


def _counts() -> Iterator[Record]:
    """Rows by class. PromQL cannot compare two labels of a series: a copy of each becomes the label `class`.

    Where both copies are the same series, predicted and actual class are equal. A class that is only one of the two
    counts 0 in the other.
    """
    labels = f"shipway_quality:labels:{SAMPLED}"
    by_predicted, by_actual = (
        f'label_replace({CONFUSION}, "class", "$1", "{label}", "(.*)")' for label in ("predicted", "actual")
    )
    yield Record(labels, increase(FEEDBACK, SAMPLED, by=f"{VERSION}, predicted, actual"))
    yield Record(CONFUSION, total(labels, "1d"))
    yield Record(LABELLED, f"sum by ({VERSION}) ({CONFUSION}) > 0")
    yield Record(PREDICTED, f"sum by ({CLASS}) (\n  {by_predicted}\n  or 0 * {by_actual}\n)")
    yield Record(ACTUAL, f"sum by ({CLASS}) (\n  {by_actual}\n  or 0 * {by_predicted}\n)")
    yield Record(CORRECT, f"sum by ({CLASS}) (\n  {by_predicted}\n  and {by_actual}\n)\nor 0 * {PREDICTED}")


def _scores(config: Config) -> Iterator[Record]:
    yield Record(ACCURACY, f"sum by ({VERSION}) ({CORRECT}) / {LABELLED}")
    for sign, which in (("-", "low"), ("+", "high")):
        yield Record(f"shipway_quality:accuracy_{which}:1d", _wilson(sign, config.quality.sigmas))
    yield Record("shipway_quality:precision:1d", f"{CORRECT} / ({PREDICTED} > 0)")
    yield Record("shipway_quality:recall:1d", f"{CORRECT} / ({ACTUAL} > 0)")
    yield Record("shipway_quality:f1:1d", f"2 * {CORRECT} / ({PREDICTED} + {ACTUAL} > 0)")
    yield Record("shipway_quality:macro_f1:1d", f"avg by ({VERSION}) (shipway_quality:f1:1d)")
    # The mean confidence of a calibrated model is the accuracy to expect, with no label at all.
    confidence, rows = (
        f"shipway_quality:confidence:{SAMPLED}",
        f"({total(f'shipway_version:rows:{SAMPLED}', '1d')} > 0)",
    )
    yield Record(confidence, increase(CONFIDENCE_SUM, SAMPLED, by=VERSION))
    yield Record("shipway_quality:expected_accuracy:1d", f"{total(confidence, '1d')}\n/ {rows}")
    yield Record("shipway_quality:label_coverage:1d", f"{LABELLED}\n/ {rows}")


def _wilson(sign: str, sigmas: float) -> str:
    """One bound of Wilson's score interval (1927) at `sigmas` standard deviations."""
    half, quarter = f"{sigmas**2 / 2:g}", f"{sigmas**2 / 4:g}"
    return f"""\
(
  {ACCURACY} + {half} / {LABELLED}
  {sign} {sigmas:g} * sqrt({ACCURACY} * (1 - {ACCURACY}) / {LABELLED} + {quarter} / {LABELLED} ^ 2)
)
/ (1 + {sigmas**2:g} / {LABELLED})"""


def _alerts(config: Config) -> Iterator[Alert]:
    limits = config.quality
    enough = f"and {LABELLED} >= {limits.labels}"
    yield Alert(
        "AccuracyLow",
        f"{ACCURACY}\nand shipway_quality:accuracy_high:1d < "
        f"max by ({VERSION}) ({REFERENCE_ACCURACY.name}) - {limits.accuracy_drop:g}\n{enough}",
        "15m",
        "page",
        "{{ $labels.model }} version {{ $labels.version }} is right less often than when it was registered",
        "Of the rows with a label in the last day {{ humanizePercentage $value }} were right, and chance does not "
        f"explain what is missing; {limits.accuracy_drop:.1%} less than at registration is allowed.",
    )
    yield Alert(
        "MacroF1Low",
        f"shipway_quality:macro_f1:1d < {limits.macro_f1:g}\n{enough}",
        "15m",
        "ticket",
        "{{ $labels.model }} version {{ $labels.version }} misses whole classes",
        'The mean F1 of its classes over the labels of the last day is {{ printf "%.3f" $value }}; '
        f"{limits.macro_f1:g} is wanted.",
    )
