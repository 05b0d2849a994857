"""What moved, in words: the sentences that a person reads."""

import numpy as np
import pytest

from monitoring.words import bin_words, is_ordered, percent, what_moved

DECILES = (*(f"{place:02d}" for place in range(10)), "missing")
EDGES = tuple(float(edge) for edge in range(-15, 75, 10))
REFERENCE = np.array([500.0] * 10 + [0.0])


def moved(live: list[int], edges: tuple[float, ...] | None = EDGES, reference: list[int] | None = None) -> str:
    before = REFERENCE if reference is None else np.array(reference)
    return what_moved(DECILES, before, np.array(live, dtype=float), ordered=True, edges=edges)


@pytest.mark.parametrize(
    ("live", "edges", "expected"),
    [
        ([7] * 9 + [28, 4], EDGES, "values of 65 or more went from 10% to 31%; missing from 0% to 4.2%"),
        ([30, 30, *[5] * 8, 0], EDGES, "values below -5 went from 20% to 60%"),
        ([5, 5, 5, 5, 30, 30, 5, 5, 5, 5, 0], EDGES, "values between 15 and 35 went from 20% to 60%"),
        ([10] * 10 + [25], EDGES, "missing went from 0% to 20%"),
        ([10] * 10 + [0], EDGES, "nothing by a percentage point"),
        ([7] * 9 + [28, 0], None, "the profile's highest 10% went from 10% to 31%"),
        ([30, 30, *[5] * 8, 0], None, "the profile's lowest 20% went from 20% to 60%"),
        ([5, 5, 5, 5, 30, 30, 5, 5, 5, 5, 0], None, "the profile's values between 40% and 60% went from 20% to 60%"),
        ([0] * 11, EDGES, "no rows to compare"),
    ],
)
def test_a_number_says_which_values_became_more(
    live: list[int], edges: tuple[float, ...] | None, expected: str
) -> None:
    assert moved(live, edges) == expected


def test_values_that_are_no_longer_missing_move_no_value() -> None:
    assert moved([10] * 10 + [0], reference=[70] * 10 + [300]) == "missing went from 30% to 0%"


def test_a_category_says_which_ones_changed_most() -> None:
    labels = ("AA", "B6", "UA", "other", "missing")
    before, live = np.array([30.0, 54, 16, 0, 0]), np.array([38.0, 54, 2, 6, 0])
    assert what_moved(labels, before, live, ordered=False, edges=None) == (
        "UA went from 16% to 2%; AA from 30% to 38%; categories that the profile does not know from 0% to 6%"
    )


def test_only_categories_and_the_predicted_class_have_no_order() -> None:
    assert [is_ordered("delay", "number"), is_ordered("output", "output"), is_ordered("entropy", "prediction")] == [
        True,
        True,
        True,
    ]
    assert [is_ordered("carrier", "category"), is_ordered("class", "prediction")] == [False, False]


def test_bins_have_short_names_for_an_axis() -> None:
    labels = ("00", "01", "02", "missing")
    assert bin_words(labels, ordered=True, edges=(0.5, 12345.6)) == ("< 0.5", "0.5 to 12346", "≥ 12346", "missing")
    assert bin_words(labels, ordered=True, edges=None) == ("1", "2", "3", "missing")
    assert bin_words(("AA", "other", "missing"), ordered=False, edges=None) == ("AA", "other", "missing")


def test_percentages_have_a_decimal_where_it_matters() -> None:
    assert [percent(share) for share in (0, 0.0004, 0.043, 0.05, 0.314, 1)] == [
        "0%",
        "<0.1%",
        "4.3%",
        "5%",
        "31%",
        "100%",
    ]
