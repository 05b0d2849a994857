"""What is counted of a classifier's probabilities, against scipy, and alike alone and in any company."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from monitoring.prediction import predicted

CLASSES = (2, 3, 10, 40)


@pytest.mark.parametrize("classes", CLASSES)
def test_class_confidence_and_entropy_agree_with_scipy(classes: int) -> None:
    likely = np.random.default_rng(classes).dirichlet(np.ones(classes), 200).astype(np.float32)
    likely[0] = 0
    likely[0, 1] = 1
    found, numbers = predicted(likely)
    assert found.shape == (200, 1)
    assert numbers.shape == (200, 2)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0], likely.argmax(axis=1))
    np.testing.assert_array_equal(numbers[:, 0], likely.max(axis=1))
    np.testing.assert_allclose(numbers[:, 1], entropy(likely, axis=1), rtol=1e-5, atol=1e-6)


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_row_is_the_same_alone_and_among_others(rows: list[list[float]]) -> None:
    likely = np.array(rows, dtype=np.float32)
    together = predicted(likely)
    alone = [predicted(likely[at : at + 1]) for at in range(len(rows))]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_row_with_nan_is_missing(classes: int, rows: int) -> None:
    likely = np.full((rows, classes), 1 / classes, dtype=np.float32)
    likely[0, 1] = np.nan
    found, numbers = predicted(likely)
    assert found[0] == classes + 1
    assert np.isnan(numbers[0]).all()
    assert not np.isnan(numbers[1:]).any()
