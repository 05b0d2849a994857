"""Packed predictions: each is found by its id, with the classes of its own rows."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.node.blocks import Block, first_id, key, pack, pack_id
from handlers.predictions import Predictions, Version
from tests.unit.handlers.tiny import prediction_id

VERSION = Version("flights", "1", ("on time", "late"))
KEY = key(VERSION)


def message(predictions: Sequence[tuple[str, Sequence[int]]]) -> Predictions:
    """One message of a worker: ids, and the classes of their rows."""
    return Predictions(
        "".join(made for made, _ in predictions).encode(),
        np.array([len(classes) for _, classes in predictions], dtype=np.uint32).tobytes(),
        np.array([one for _, classes in predictions for one in classes], dtype=np.uint16).tobytes(),
    )


Batch = list[tuple[int, list[int]]]
BATCHES: st.SearchStrategy[list[Batch]] = st.lists(
    st.lists(st.tuples(st.integers(0, 25), st.lists(st.integers(0, 65_535), min_size=1, max_size=4)), min_size=1),
    min_size=1,
    max_size=4,
)


@given(BATCHES)
def test_every_prediction_is_found_in_the_block_of_its_tenth(batches: list[Batch]) -> None:
    numbers = iter(range(10_000))
    named = [
        [(prediction_id(1795000000 + tick / 10 + 0.05, next(numbers)), classes) for tick, classes in batch]
        for batch in batches
    ]
    blocks = {block.tenth: block for block in pack(KEY, [message(batch) for batch in named])}
    assert sum(block.rows for block in blocks.values()) == sum(len(c) for batch in named for _, c in batch)
    for made, classes in (each for batch in named for each in batch):
        tenth, packed = pack_id(made)
        found = blocks[tenth].find(packed)
        assert found is not None
        assert found.tolist() == classes
        assert [other.find(packed) for other in blocks.values() if other.tenth != tenth] == [None] * (len(blocks) - 1)


def test_id_across_two_others_is_not_found() -> None:
    one, two = (pack_id(prediction_id(1795000000.0, number))[1] for number in (1, 2))
    block = Block(17950000000, KEY, one + two, b"", np.array([3, 4], "<u2").tobytes())
    assert block.find((one + two)[8:24]) is None
    shifted = Block(17950000000, KEY, b"\0" + one + one[:-1] + one, b"", bytes(6))
    assert shifted.find(one) is not None
    assert shifted.find(one[1:] + b"\0") is None


def test_packed_ids_are_sorted_by_time() -> None:
    tenth, packed = pack_id("1795000000.999999-ffffffff-ffff-4fff")
    assert tenth == 17950000009
    assert first_id(tenth) < packed < first_id(tenth + 1) < pack_id("1795000001.000000-00000000-0000-4001")[1]
    assert first_id(tenth + 1) == pack_id("1795000001.000000-00000000-0000-0000")[1]


@pytest.mark.parametrize("changed", [{"model": "boats"}, {"version": "2"}, {"classes": ("late", "on time")}])
def test_key_says_who_predicts_and_between_what(changed: dict[str, object]) -> None:
    assert len(KEY) == 8
    assert key(VERSION) == KEY
    assert key(Version(**{**vars(VERSION), **changed})) != KEY
