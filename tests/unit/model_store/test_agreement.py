"""What counts as near enough, for classes, embeddings and other numbers."""

import json

import numpy as np
import pytest

from model_store.agreement import CLASSES, EMBEDDING, NUMBERS, Tolerance, compare, tolerance_of


def schema(kind: str, **fields: object) -> bytes:
    return json.dumps({"kind": kind, **fields}).encode()


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (schema("image", classes=["a", "b"]), CLASSES),
        (schema("text", classes=["a", "b"]), CLASSES),
        (schema("text", classes=None), EMBEDDING),
        (schema("table"), NUMBERS),
        (schema("sequence"), NUMBERS),
    ],
)
def test_the_tolerance_follows_the_kind(described: bytes, expected: Tolerance) -> None:
    assert tolerance_of(described) == expected


def test_a_difference_that_is_asked_for_takes_the_place_of_the_default() -> None:
    assert tolerance_of(schema("table"), 0.5) == Tolerance(max_difference=0.5)
    assert tolerance_of(schema("image", classes=["a"]), 0.2) == Tolerance(max_difference=0.2, min_top1=0.99)
    assert tolerance_of(schema("text"), 0.2) == Tolerance(max_difference=0.2, min_cosine=0.999)


def test_classes_must_stay_and_probabilities_may_move_a_little() -> None:
    expected = np.tile([0.6, 0.4], (100, 1))
    near = expected + np.array([-0.04, 0.04])
    assert compare([near], [expected], CLASSES).within(CLASSES)
    assert not compare([expected + np.array([-0.06, 0.06])], [expected], CLASSES).within(CLASSES)
    close = np.tile([0.51, 0.49], (100, 1))
    swapped = close.copy()
    swapped[:1] = [0.49, 0.51]
    assert compare([swapped], [close], CLASSES).within(CLASSES)
    swapped[:2] = [0.49, 0.51]
    found = compare([swapped], [close], CLASSES)
    assert found.top1 == 0.98
    assert not found.within(CLASSES)


def test_one_row_that_points_elsewhere_is_too_much_for_embeddings() -> None:
    expected = np.eye(4)
    turned = expected.copy()
    turned[2, 3] = 0.04
    assert compare([turned], [expected], EMBEDDING).within(EMBEDDING)
    turned[2, 3] = 0.05
    assert not compare([turned], [expected], EMBEDDING).within(EMBEDDING)


@pytest.mark.parametrize(("found", "right"), [(1009.0, True), (1011.0, False), (np.nan, False), (np.inf, False)])
def test_numbers_may_be_off_by_a_share_of_themselves(found: float, *, right: bool) -> None:
    assert compare([np.array([[found]])], [np.array([[1000.0]])], NUMBERS).within(NUMBERS) is right


def test_every_output_counts() -> None:
    first, second = np.array([[1.0]]), np.array([[2.0]])
    assert not compare([first, second + 1], [first, second], NUMBERS).within(NUMBERS)
    assert compare([first, second], [first, second], NUMBERS).difference == 0


def test_the_same_missing_values_are_no_difference() -> None:
    values = np.array([[np.nan, np.inf, 1.0]])
    assert compare([values], [values], NUMBERS).difference == 0
