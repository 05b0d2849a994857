"""Comparing golden outputs: within tolerance or refused, naming output, row, what was expected and what came."""

from typing import Any

import orjson
import pytest

from deploy.errors import GoldenFailed
from deploy.node.golden import GoldenSet, _compare

GOLDEN: dict[str, Any] = {
    "request": {},
    "rtol": 1e-4,
    "atol": 1e-5,
    "response": {"outputs": [{"name": "probability", "datatype": "FP32", "shape": [3], "data": [0.5, 0.25, None]}]},
}


def answer(*data: float | None, name: str = "probability") -> bytes:
    return orjson.dumps({"outputs": [{"name": name, "data": data}]})


@pytest.mark.parametrize("first", [0.5, 0.50004, 0.49996])
def test_outputs_within_tolerance_pass(first: float) -> None:
    _compare(GoldenSet.from_json(orjson.dumps(GOLDEN)), 200, answer(first, 0.25, None))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, answer(0.5, 0.26, None), "output probability, value 1: expected 0.25, this hardware gives 0.26 (1 of 3"),
        (200, answer(0.5, None, None), "output probability, value 1: expected 0.25, this hardware gives nan"),
        (200, answer(0.5, 0.25, 0.1), "output probability, value 2: expected nan, this hardware gives 0.1"),
        (200, answer(0.5, 0.25), "output probability has 2 values; expected 3"),
        (200, answer(0.5, 0.25, None, name="other"), "output probability has 0 values; expected 3"),
        (200, b'{"error": "refused"}', 'the version answered 200: {"error": "refused"}'),
        (503, answer(0.5, 0.25, None), "the version answered 503"),
        (500, b"<html>", "the version answered 500: <html>"),
    ],
)
def test_other_outputs_are_refused_in_words(status: int, body: bytes, words: str) -> None:
    with pytest.raises(GoldenFailed) as refused:
        _compare(GoldenSet.from_json(orjson.dumps(GOLDEN)), status, body)
    assert str(refused.value).startswith(words)
