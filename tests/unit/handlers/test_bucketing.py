"""Every row is in one group, with rows that fit it, and comes back to its own place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from handlers.bucketing import CALL_LENGTHS, by_length, by_shape, in_calls, in_groups
from handlers.inputs import Array, ragged

BUCKETS = (4, 8, 16)
LONG_BUCKETS = (40, 80, 160)


@given(lengths=st.lists(st.integers(1, 160), min_size=1, max_size=40), max_rows=st.integers(1, 8))
def test_rows_of_a_group_fill_one_bucket_or_cost_less_together(lengths: list[int], max_rows: int) -> None:
    groups = by_length(np.array(lengths), LONG_BUCKETS, max_rows)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(group) <= max_rows for group in groups)
    found = by_length(np.array(lengths), LONG_BUCKETS, len(lengths))
    for group in found:
        apart: dict[int, list[int]] = {}
        for row in group:
            apart.setdefault(int(np.searchsorted(LONG_BUCKETS, lengths[row])), []).append(lengths[row])
        padded = len(group) * max(lengths[row] for row in group)
        alone = sum(len(part) * max(part) for part in apart.values())
        assert padded < alone + CALL_LENGTHS * (len(apart) - 1) or len(apart) == 1


def test_far_lengths_have_calls_of_their_own() -> None:
    found = by_length(np.array([150, 3, 10, 155, 12]), LONG_BUCKETS, 64)
    assert [group.tolist() for group in found] == [[1, 2, 4], [0, 3]]
    assert [group.tolist() for group in by_length(np.array([41, 40]), LONG_BUCKETS, 64)] == [[1, 0]]


@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=40), max_rows=st.integers(1, 8))
def test_outputs_come_back_in_the_order_of_the_rows(lengths: list[int], max_rows: int) -> None:
    values = np.array(lengths)

    def outputs_of(rows: Array) -> list[Array]:
        return [rows * 2, np.stack([rows, values[rows]], axis=1)]

    doubled, both = in_groups(by_length(values, BUCKETS, max_rows), outputs_of)
    assert doubled.tolist() == [2 * row for row in range(len(lengths))]
    assert both.tolist() == [[row, length] for row, length in enumerate(lengths)]


def test_rows_of_a_shape_in_every_input_are_one_group() -> None:
    first = ragged([np.zeros(size) for size in (2, 3, 2, 3, 2)])
    second = ragged([np.zeros((size, 1)) for size in (1, 1, 1, 1, 4)])
    groups = by_shape([first, np.zeros((5, 2)), second])
    assert [rows.tolist() for rows in groups] == [[0, 2], [1, 3], [4]]


@given(rows=st.integers(1, 20), max_rows=st.integers(1, 8))
def test_calls_are_bounded_and_lose_no_row(rows: int, max_rows: int) -> None:
    seen: list[int] = []

    def execute(inputs: list[Array]) -> list[Array]:
        seen.append(len(inputs[0]))
        return [inputs[0] + inputs[1]]

    (found,) = in_calls(execute, [np.arange(rows), np.arange(rows)], max_rows)
    assert found.tolist() == [2 * row for row in range(rows)]
    assert max(seen) <= max_rows
    assert len(seen) == -(-rows // max_rows)
