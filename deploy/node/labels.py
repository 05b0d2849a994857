"""Labels as clients send them, and what became of each."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import orjson

from deploy.node.blocks import pack_id
from handlers.errors import InvalidRequest, Words, shown

Outcome = Literal["joined", "repeated", "unknown", "refused"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

OTHER = "other"
"""The actual class of every label that is none of the model's classes."""
MAX_LABELS = 10_000
"""In one request."""
MAX_LABEL_CHARACTERS = 256
_FIELDS = ("prediction_id", "row", "label")
_ID = re.compile(r"[0-9]{10}\.[0-9]{6}-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}")


class TooManyLabels(Exception):
    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__(f"body: too many labels; found {found}; allowed: at most {MAX_LABELS} in one request")


@dataclass(frozen=True)
class Label:
    """What happened, for one row of a prediction."""

    tenth: int
    """When the prediction was asked for, in tenths of a second since 1970."""
    id: bytes
    """Packed."""
    row: int | None
    """None where the client left it out, which is right for a prediction of one row."""
    label: str


@dataclass(frozen=True)
class Result:
    """What became of one label, with words where it was not counted."""

    outcome: Outcome
    words: str = ""


JOINED, REPEATED = Result("joined"), Result("repeated")
UNKNOWN = Result(
    "unknown",
    "prediction_id: no such prediction is kept; it has expired, was made elsewhere, or its model has no classes",
)


def wrong_row(label: Label, rows: int) -> Result | None:
    """Whether the label names no row of its prediction, which has `rows` of them."""
    allowed = f"0 to {rows - 1}"
    if label.row is None and rows > 1:
        return Result("refused", f"row: missing, and the prediction has {rows} rows; allowed: {allowed}")
    if label.row is not None and label.row >= rows:
        return Result("refused", f"row: the prediction has no such row; found {label.row}; allowed: {allowed}")
    return None


def read(body: bytes) -> list[Label | Result]:
    """The labels of a request, each alone refused where it is wrong.

    Raises InvalidRequest for a body that is neither a label nor a list of them, and TooManyLabels.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("body", "not JSON", found=Words(error)) from None
    labels = [document] if isinstance(document, dict) else document
    if not isinstance(labels, list) or not labels:
        raise InvalidRequest("body", "wrong form", found=document, allowed="a label, or a list of at least one")
    if len(labels) > MAX_LABELS:
        raise TooManyLabels(len(labels))
    return [_read(label) for label in labels]


def _read(label: object) -> Label | Result:
    try:
        return _checked(label)
    except InvalidRequest as error:
        return Result("refused", str(error))


def _checked(label: object) -> Label:
    fields = ", ".join(_FIELDS)
    if not isinstance(label, dict):
        raise InvalidRequest("label", "wrong type", found=label, allowed=f"an object of {fields}")
    if unknown := [name for name in label if name not in _FIELDS]:
        raise InvalidRequest("label", f"unknown {shown(unknown[0])}", allowed=fields)
    if missing := [name for name in ("prediction_id", "label") if name not in label]:
        raise InvalidRequest("label", f"missing {missing[0]}", allowed=fields)
    made, row, text = label["prediction_id"], label.get("row"), label["label"]
    if not isinstance(made, str) or not _ID.fullmatch(made):
        raise InvalidRequest("prediction_id", "no id of a node", found=made, allowed="an x-shipway-prediction-id")
    # JSON's true is Python's 1.
    if "row" in label and (not isinstance(row, int) or isinstance(row, bool) or row < 0):
        raise InvalidRequest("row", "wrong value", found=row, allowed="0, 1, 2 and so on")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_LABEL_CHARACTERS:
        raise InvalidRequest("label", "wrong value", found=text, allowed=f"1 to {MAX_LABEL_CHARACTERS} characters")
    return Label(*pack_id(made), row, text)


def answer(results: Sequence[Result]) -> dict[str, Any]:
    """Counts by outcome, and what was wrong with those that were not counted."""
    counts = Counter(result.outcome for result in results)
    problems = [
        {"index": index, "outcome": result.outcome, "error": result.words}
        for index, result in enumerate(results)
        if result.words
    ]
    return {**{outcome: counts[outcome] for outcome in OUTCOMES}, "problems": problems}
