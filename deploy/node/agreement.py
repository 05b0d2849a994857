"""Whether a version that gets copies of requests predicts what users are told: joined by the prediction's id.

Both predictions come from workers, in any order. What waits for its other half is bounded: the oldest go first, and
are counted as nothing, for nobody knows what the other version would have said.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, TypeAdapter

from handlers.answer import ID_CHARACTERS
from handlers.predictions import SURE_UNIT, Predictions, Version
from model_store.files import write_atomically
from monitoring import names

logger = logging.getLogger(__name__)

WAITING_ROWS = 200_000
"""Of one model and one side: more than a minute of a busy node."""
KEPT = 100
"""Disagreements of one model."""
OUTCOMES = ("agree", "disagree")


class Disagreement(BaseModel):
    """One request that two versions answered differently. Inputs are not kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction_id: str
    answered_by: int
    copied_to: int
    answered: tuple[str, ...]
    """The classes of the rows that differ, as the user was told."""
    copied: tuple[str, ...]
    """And as the other version predicts them."""
    rows: int
    """Of the whole request."""
    sure: float
    """How likely the other version found its class in the row where it was surest, between 0 and 1."""


_Document = TypeAdapter(dict[str, tuple[Disagreement, ...]])


def read_disagreements(path: Path, model: str) -> tuple[Disagreement, ...]:
    """The worst ones, worst first: those of which the other version was surest, then the newest. None without a file.

    Raises OSError and ValueError for a file that cannot be read.
    """
    try:
        return _Document.validate_json(path.read_bytes()).get(model, ())
    except FileNotFoundError:
        return ()


@dataclass(frozen=True)
class _Prediction:
    version: Version
    classes: memoryview
    """Of its rows, as indexes into the version's."""
    sure: bytes

    def names(self) -> list[str]:
        return [self.version.classes[each] for each in self.classes]


class _Waiting:
    """Predictions without their other half, the oldest first."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[bytes, _Prediction] = OrderedDict()
        self._rows = 0

    def add(self, made: bytes, prediction: _Prediction) -> None:
        self.take(made)  # of a version that said so and then lost the answer
        self._by_id[made] = prediction
        self._rows += len(prediction.classes)
        while self._rows > WAITING_ROWS:
            _, oldest = self._by_id.popitem(last=False)
            self._rows -= len(oldest.classes)

    def take(self, made: bytes) -> _Prediction | None:
        found = self._by_id.pop(made, None)
        if found is not None:
            self._rows -= len(found.classes)
        return found


@dataclass
class _Model:
    """One model of which a version gets copies."""

    version: str
    answered: _Waiting = field(default_factory=_Waiting)
    copied: _Waiting = field(default_factory=_Waiting)


class Agreement(Collector):
    """All of it for one node. Also the collector of its metric."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._counts = Counter[tuple[str, str, str]]()
        self._worst: dict[str, list[Disagreement]] = {}
        self._changed = True
        """Since the file was written; at the start it may be another process's."""

    def watch(self, versions: set[tuple[str, int]]) -> None:
        """These versions get copies now, one of a model, and no other does."""
        found = {model: _Model(str(version)) for model, version in versions}
        for model, new in found.items():
            if (old := self._models.get(model)) is not None and old.version == new.version:
                found[model] = old
            elif self._worst.pop(model, None):
                self._changed = True  # nothing of the version before stays in the file
            for outcome in OUTCOMES:  # from the start, as Prometheus counts no increase from nothing
                self._counts[model, new.version, outcome] += 0
        self._models = found

    def answered(self, version: Version, predictions: Predictions) -> None:
        """What users are told. It costs nothing while nothing is copied."""
        model = self._models.get(version.model)
        if model is None or version.version == model.version:
            return
        for made, prediction in _each(version, predictions):
            if (copied := model.copied.take(made)) is not None:
                self._compare(made, prediction, copied)
            else:
                model.answered.add(made, prediction)

    def copied(self, version: Version, predictions: Predictions) -> None:
        """What a version predicts for copies of requests."""
        model = self._models.get(version.model)
        if model is None or version.version != model.version:
            return  # the last ones, after the copying has ended
        for made, prediction in _each(version, predictions):
            if (answered := model.answered.take(made)) is not None:
                self._compare(made, answered, prediction)
            else:
                model.copied.add(made, prediction)

    def _compare(self, made: bytes, answered: _Prediction, copied: _Prediction) -> None:
        rows = len(answered.classes)
        if len(copied.classes) != rows:
            logger.error("%s and its copy were of %s and %s rows", made.decode(), rows, len(copied.classes))
            return
        triples = zip(answered.names(), copied.names(), copied.sure, strict=True)
        differing = [each for each in triples if each[0] != each[1]]
        name = (copied.version.model, copied.version.version)
        self._counts[*name, "agree"] += rows - len(differing)
        self._counts[*name, "disagree"] += len(differing)
        if differing:
            told, predicted, sure = zip(*differing, strict=True)
            self._keep(
                copied.version.model,
                Disagreement(
                    prediction_id=made.decode(),
                    answered_by=int(answered.version.version),
                    copied_to=int(copied.version.version),
                    answered=told,
                    copied=predicted,
                    rows=rows,
                    sure=max(sure) / SURE_UNIT,
                ),
            )

    def _keep(self, model: str, found: Disagreement) -> None:
        worst = self._worst.setdefault(model, [])
        worst.append(found)
        # An id begins with its time.
        worst.sort(key=lambda each: (each.sure, each.prediction_id), reverse=True)
        del worst[KEPT:]
        self._changed = True

    def write(self, path: Path) -> None:
        """The worst disagreements, for their owner alone, if there are new ones. Raises OSError."""
        if self._changed:
            write_atomically(path, _Document.dump_json({m: tuple(each) for m, each in self._worst.items()}), 0o600)
            self._changed = False

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(names.SHADOW_ROWS.name, names.SHADOW_ROWS.help, labels=names.SHADOW_ROWS.labels)
        for labels, rows in sorted(self._counts.items()):
            family.add_metric(labels, rows)
        yield family


def _each(version: Version, predictions: Predictions) -> Iterator[tuple[bytes, _Prediction]]:
    """Every prediction of a message with its id."""
    classes, start = memoryview(predictions.classes).cast("H"), 0
    for number, rows in enumerate(memoryview(predictions.rows).cast("I")):
        made = predictions.ids[number * ID_CHARACTERS : (number + 1) * ID_CHARACTERS]
        here = slice(start, start + rows)
        yield made, _Prediction(version, classes[here], predictions.sure[here])
        start += rows
