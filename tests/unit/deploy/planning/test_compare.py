"""Row by row: what is a change, and what is none."""

from typing import Any

import numpy as np
import orjson
import pytest

from deploy.planning.compare import Compared, Reading, compare
from deploy.planning.rehearsal import Answer

LATE = Reading(("no", "yes"))
NUMBERS = Reading()


def answer(datatype: str = "FP32", **outputs: Any) -> Answer:
    described = [
        {"name": name, "datatype": datatype, "shape": np.shape(values), "data": np.ravel(values).tolist()}
        for name, values in outputs.items()
    ]
    return 200, orjson.dumps({"outputs": described})


def changed(old: Answer, new: Answer, before: Reading = NUMBERS, after: Reading | None = None) -> list[bool]:
    found = compare(7, old, new, before, after or before)
    assert found is not None
    assert {row.request for row in found.rows} == {7}
    return [row.changed for row in found.rows]


def test_probability_of_the_second_class_decides() -> None:
    assert changed(answer(late=[0.1, 0.4, 0.9]), answer(late=[0.49, 0.6, 0.4]), LATE) == [False, True, True]


def test_likeliest_class_decides_by_its_name() -> None:
    old, new = answer(p=[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]), answer(p=[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    same, turned = Reading(("a", "b", "c")), Reading(("c", "b", "a"))
    assert changed(old, new, same) == [True, False]
    assert changed(old, new, same, turned) == [False, True]


def test_output_that_is_not_the_classes_is_compared_as_numbers() -> None:
    three = Reading(("a", "b", "c"))
    assert changed(answer(p=[[0.1, 0.9]] * 2), answer(p=[[0.1, 0.9], [0.9, 0.1]]), three) == [False, True]


def test_numbers_may_move_within_the_tolerance() -> None:
    # 1% of the value and 0.001.
    assert changed(answer(y=[100.0, 100.0, 0.0, 0.0]), answer(y=[101.0, 101.1, 0.0009, 0.0011])) == [
        *(False, True, False, True)
    ]


def test_missing_number_stays_missing() -> None:
    old, new = answer(y=[np.nan, np.nan, 1.0]), answer(y=[np.nan, 1.0, np.nan])
    assert changed(old, new) == [False, True, True]


def test_direction_of_an_embedding_decides() -> None:
    old, new = answer(e=[[1.0, 0.0], [1.0, 0.0]]), answer(e=[[3.0, 0.0], [0.99, 0.14]])
    assert changed(old, new, Reading(embeds=True)) == [False, True]


@pytest.mark.parametrize(
    ("old", "new", "reading"),
    [
        (answer(late=[0.1, 0.9]), answer(late=[np.nan, 0.9]), LATE),
        (answer(p=[[0.9, 0.1], [0.1, 0.9]]), answer(p=[[np.nan, 0.1], [0.1, 0.9]]), LATE),
        (answer(e=[[1.0, 0.0]] * 2), answer(e=[[np.nan, 0.0], [1.0, 0.0]]), Reading(embeds=True)),
    ],
)
def test_candidate_that_answers_no_number_changes_classes_and_embeddings_too(
    old: Answer, new: Answer, reading: Reading
) -> None:
    assert changed(old, new, reading) == [True, False]


def test_second_output_of_a_classifier_is_compared_as_numbers() -> None:
    old, new = answer(late=[0.1, 0.1], minutes=[5.0, 5.0]), answer(late=[0.2, 0.2], minutes=[5.0, 6.0])
    assert changed(old, new, LATE) == [False, True]


def test_text_is_the_same_or_not() -> None:
    assert changed(answer("BYTES", t=["a", "b"]), answer("BYTES", t=["a", "c"])) == [False, True]


@pytest.mark.parametrize("new", [answer(z=[1.0, 1.0]), answer(y=[[1.0, 2.0]] * 2), answer("BYTES", y=["1", "1"])])
def test_output_that_is_gone_or_of_another_form_changes_every_row(new: Answer) -> None:
    assert changed(answer(y=[1.0, 1.0]), new) == [True, True]


def test_what_the_candidate_does_not_answer_is_lost() -> None:
    found = compare(0, answer(late=[0.1, 0.8]), (400, b'{"error": "column wind: unknown"}'), LATE, LATE)
    assert found is not None
    assert (found.lost, found.status) == ("column wind: unknown", 400)
    assert [(row.changed, row.before, row.after) for row in found.rows] == [
        (True, "no (0.100 of yes)", "no answer"),
        (True, "yes (0.800 of yes)", "no answer"),
    ]


def test_what_the_champion_does_not_answer_is_left_out() -> None:
    assert compare(0, (400, b'{"error": "no"}'), answer(y=[1.0]), Reading(), Reading()) is None


def test_difference_is_the_largest_of_a_rows_numbers() -> None:
    found = compare(0, answer(p=[[0.2, 0.8]], y=[1.0]), answer(p=[[0.3, 0.7]], y=[1.5]), LATE, LATE)
    assert isinstance(found, Compared)
    assert found.rows[0].difference == pytest.approx(0.5)
    assert found.rows[0].after == "yes (0.700)"
