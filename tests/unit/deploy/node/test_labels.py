"""What clients may send to /feedback, and the words for what they may not."""

import json

import pytest

from deploy.node.labels import JOINED, MAX_LABELS, UNKNOWN, Label, Result, TooManyLabels, answer, read, wrong_row
from handlers.errors import InvalidRequest
from tests.unit.handlers.tiny import prediction_id

ID = prediction_id(1795000000.25)
GOOD = {"prediction_id": ID, "row": 2, "label": "late"}


def test_label_is_read() -> None:
    (label,) = read(json.dumps(GOOD).encode())
    assert isinstance(label, Label)
    assert (label.tenth, label.row, label.label) == (17950000002, 2, "late")
    assert label.id.hex() == "1795000000250000000000018f2a4c3d"


def test_row_may_be_left_out() -> None:
    (label,) = read(json.dumps({"prediction_id": ID, "label": "late"}).encode())
    assert isinstance(label, Label)
    assert label.row is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction_id": None}, "prediction_id: no id of a node; found null; allowed: an x-shipway-prediction-id"),
        ({"prediction_id": "order-7"}, "prediction_id: no id of a node; found 'order-7'"),
        ({"prediction_id": ID.upper()}, "prediction_id: no id of a node"),
        ({"prediction_id": ID + "\n"}, "prediction_id: no id of a node"),
        ({"row": -1}, "row: wrong value; found -1; allowed: 0, 1, 2 and so on"),
        ({"row": True}, "row: wrong value; found true"),
        ({"row": 1.0}, "row: wrong value; found 1.0"),
        ({"row": None}, "row: wrong value; found null"),
        ({"label": 1}, "label: wrong value; found 1; allowed: 1 to 256 characters"),
        ({"label": ""}, "label: wrong value; found ''"),
        ({"label": "x" * 257}, "label: wrong value; found 'xxx"),
        ({"lable": "late"}, "label: unknown 'lable'; allowed: prediction_id, row, label"),
    ],
)
def test_wrong_label_is_refused_alone(changes: dict[str, object], words: str) -> None:
    found = read(json.dumps([GOOD, {**GOOD, **changes}, GOOD]).encode())
    assert [type(each) for each in found] == [Label, Result, Label]
    assert isinstance(found[1], Result)
    assert found[1].outcome == "refused"
    assert found[1].words.startswith(words)
    assert len(found[1].words) < 250


@pytest.mark.parametrize("missing", ["prediction_id", "label"])
def test_missing_field_is_named(missing: str) -> None:
    (found,) = read(json.dumps({name: value for name, value in GOOD.items() if name != missing}).encode())
    assert found == Result("refused", f"label: missing {missing}; allowed: prediction_id, row, label")


def test_what_is_no_object_is_refused() -> None:
    assert [each.words for each in read(b"[3]") if isinstance(each, Result)] == [
        "label: wrong type; found 3; allowed: an object of prediction_id, row, label"
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: not JSON"),
        (b'{"prediction_id": NaN}', "body: not JSON"),
        (b'{"label": "\xff"}', "body: not JSON"),
        (b"3", "body: wrong form; found 3; allowed: a label, or a list of at least one"),
        (b"[]", "body: wrong form; found []"),
        (b"null", "body: wrong form; found null"),
        (b"[" * 5000, "body: not JSON"),
    ],
)
def test_malformed_body_is_refused_as_a_whole(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(body)
    assert str(raised.value).startswith(words)


def test_number_of_labels_is_limited() -> None:
    assert len(read(json.dumps([GOOD] * MAX_LABELS).encode())) == MAX_LABELS
    with pytest.raises(TooManyLabels, match="body: too many labels; found 10001; allowed: at most 10000 in one"):
        read(json.dumps([GOOD] * (MAX_LABELS + 1)).encode())


@pytest.mark.parametrize(
    ("row", "rows", "words"),
    [
        (None, 1, None),
        (0, 1, None),
        (1, 2, None),
        (None, 2, "row: missing, and the prediction has 2 rows; allowed: 0 to 1"),
        (2, 2, "row: the prediction has no such row; found 2; allowed: 0 to 1"),
        (10**30, 2, "row: the prediction has no such row; found 1"),
    ],
)
def test_row_must_be_one_of_the_prediction(row: int | None, rows: int, words: str | None) -> None:
    found = wrong_row(Label(0, b"", row, "late"), rows)
    assert (found is None) if words is None else (found is not None and found.words.startswith(words))


def test_answer_counts_outcomes_and_says_what_was_wrong() -> None:
    assert answer([JOINED, UNKNOWN, Result("refused", "why"), Result("repeated"), JOINED]) == {
        "joined": 2,
        "repeated": 1,
        "unknown": 1,
        "refused": 1,
        "problems": [
            {"index": 1, "outcome": "unknown", "error": UNKNOWN.words},
            {"index": 2, "outcome": "refused", "error": "why"},
        ],
    }
