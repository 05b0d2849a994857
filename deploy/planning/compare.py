"""Two versions' answers to the same requests, row by row. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from deploy.planning.rehearsal import Answer
from model_store.agreement import EMBEDDING, NUMBERS, cosines, differences, excesses

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
"""Each output's values as [rows, values of a row]."""

MAX_SHOWN_VALUES = 4


@dataclass(frozen=True)
class Reading:
    """How the answers of a version are read."""

    classes: tuple[str, ...] = ()
    """What its first output gives the probabilities of; of two classes perhaps only the second's."""
    embeds: bool = False
    """Whether its first output is an embedding, whose direction counts."""

    def decides(self, values: Array) -> bool:
        """Whether these values are the probabilities of the classes; a handler of the user's may answer otherwise."""
        return values.shape[1] == len(self.classes) or (values.shape[1] == 1 and len(self.classes) == 2)


@dataclass(frozen=True)
class Row:
    """One row that both versions were asked."""

    request: int
    """Its place among the requests."""
    row: int
    """Its place in the request."""
    changed: bool
    difference: float
    """The largest of any number; infinite where the candidate gave none."""
    before: str
    after: str


@dataclass(frozen=True)
class Compared:
    """All rows of one request."""

    rows: tuple[Row, ...]
    lost: str = ""
    """What the candidate said instead of an answer: it refused the request, or failed on it."""
    status: int = 200
    """The candidate's."""


def compare(request: int, old: Answer, new: Answer, before: Reading, after: Reading) -> Compared | None:
    """What changes; None where the champion itself does not answer, so that nothing can be lost."""
    if old[0] != 200:
        return None
    was = _outputs(old[1])
    if new[0] != 200:
        words = str(orjson.loads(new[1]).get("error", ""))
        shown = [_shown(was, row, before) for row in range(len(next(iter(was.values()))))]
        lost = [
            Row(request, row, changed=True, difference=np.inf, before=each, after="no answer")
            for row, each in enumerate(shown)
        ]
        return Compared(tuple(lost), words, new[0])
    now = _outputs(new[1])
    changed, difference = _differences(was, now, before, after)
    return Compared(
        tuple(
            Row(request, row, bool(changed[row]), float(difference[row]), *shown)
            for row, shown in enumerate(_both(was, now, before, after))
        )
    )


def _both(was: Outputs, now: Outputs, before: Reading, after: Reading) -> Iterator[tuple[str, str]]:
    for row in range(len(next(iter(was.values())))):
        yield _shown(was, row, before), _shown(now, row, after)


def _outputs(body: bytes) -> Outputs:
    found = {}
    for output in orjson.loads(body)["outputs"]:
        text = output["datatype"] == "BYTES"
        values = np.asarray(output["data"], dtype=object if text else np.float64)
        found[output["name"]] = values.reshape(output["shape"][0], -1)
    return found


def _differences(was: Outputs, now: Outputs, before: Reading, after: Reading) -> tuple[Array, Array]:
    """Of each row whether it changed, and by how much a number did."""
    rows = len(next(iter(was.values())))
    changed, difference = np.zeros(rows, dtype=bool), np.zeros(rows)
    first = next(iter(was))
    for name, values in was.items():
        other = now.get(name)
        if other is None or other.shape != values.shape or (other.dtype == object) != (values.dtype == object):
            changed[:] = True
            difference[:] = np.inf
        elif values.dtype == object:
            changed |= (values != other).any(axis=1)
        else:
            off = differences(other, values)
            difference = np.maximum(difference, off.max(axis=1, initial=0.0))
            if name == first and before.decides(values) and after.decides(other):
                changed |= _chosen(values, before) != _chosen(other, after)
            elif name == first and before.embeds:
                changed |= cosines(values, other) < (EMBEDDING.min_cosine or 0.0)
            else:
                changed |= (excesses(off, values, NUMBERS) > 1).any(axis=1)
    # A number that is none belongs to no class and has no direction, so nothing above has called it a change.
    return changed | np.isinf(difference), difference


def _chosen(probabilities: Array, reading: Reading) -> Array:
    """The likeliest class of each row, by name, as two versions may count them differently."""
    names = np.asarray(reading.classes, dtype=object)
    second_alone = probabilities.shape[1] == 1 and len(names) == 2
    at = (probabilities[:, 0] > 0.5).astype(int) if second_alone else probabilities.argmax(axis=1)
    chosen: Array = names[at]
    return chosen


def _shown(outputs: Outputs, row: int, reading: Reading) -> str:
    """A row's answer for a person."""
    first = next(iter(outputs.values()))
    if reading.decides(first):
        most = first[row].max() if first.shape[1] > 1 else first[row, 0]
        of = "" if first.shape[1] > 1 else f" of {reading.classes[1]}"
        return f"{_chosen(first, reading)[row]} ({most:.3f}{of})"
    words = (f"{value:.6g}" if isinstance(value, float) else repr(value) for value in first[row, :MAX_SHOWN_VALUES])
    return ", ".join(words) + (", …" if first.shape[1] > MAX_SHOWN_VALUES else "")
