"""Plain JSON rows: every row has exactly the known columns, whatever their order."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import InvalidRequest, RequestRefused
from handlers.protocol.oip_json import parse
from handlers.protocol.rows import class_objects, each, encode, objects, picker

COLUMNS = ("delay", "carrier")
pick = picker(COLUMNS)


def decode(body: memoryview) -> tuple[list[tuple[Any, ...]], bool]:
    return pick(parse(body))


def test_one_object_is_one_row() -> None:
    assert decode(memoryview(b'{"carrier": "UA", "delay": 1}')) == ([(1, "UA")], True)


def test_table_of_one_column_has_rows_too() -> None:
    assert picker(("delay",))([{"delay": 1}, {"delay": 2}]) == ([(1,), (2,)], False)


def test_list_of_objects_has_its_rows_in_the_order_of_the_columns() -> None:
    body = b'[{"delay": 1, "carrier": "UA"}, {"carrier": null, "delay": "x"}]'
    assert decode(memoryview(body)) == ([(1, "UA"), ("x", None)], False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "body: not JSON: "),
        ('{"delay": NaN, "carrier": "UA"}', "body: not JSON: "),
        ('{"delay": Infinity, "carrier": "UA"}', "body: not JSON: "),
        ("[]", "body: empty batch; found no rows; allowed: at least one row"),
        ("null", "row 0: wrong type; found null; allowed: an object of delay, carrier"),
        ('"x"', "row 0: wrong type; found 'x'; allowed: an object of delay, carrier"),
        ('[{"delay": 1, "carrier": ""}, 3]', "row 1: wrong type; found 3; allowed: an object of delay, carrier"),
        ("[" * 500 + "]" * 500, "row 0: wrong type; found [[[[…]]]]; allowed: an object of delay, carrier"),
        ('[{"delay": 1}]', "row 0: missing carrier; allowed: delay, carrier"),
        ("{}", "row 0: missing delay, carrier; allowed: delay, carrier"),
        ('{"delay": 1, "Carrier": ""}', "row 0: missing carrier; allowed: delay, carrier"),
        ('{"delay": 1, "carrier": "", "gate\\n": 1}', r"row 0: unknown 'gate\n'; allowed: delay, carrier"),
    ],
)
def test_wrong_rows_are_refused_in_words(body: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(memoryview(body.encode()))
    assert str(refused.value).startswith(words)


@given(st.binary() | st.text(alphabet='[]{}",:0129.eE-ntfua ').map(str.encode))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    try:
        rows, _ = decode(memoryview(body))
    except RequestRefused:
        return
    assert {len(row) for row in rows} == {len(COLUMNS)}


NAMES = ("probability", "delay")
OUTPUTS = (np.array([0.1, np.nan], dtype=np.float32), np.array([3, 4], dtype=np.float32))


def test_answer_is_one_object_a_row() -> None:
    body = encode(objects(NAMES, OUTPUTS), single=False)
    assert orjson.loads(body) == [{"probability": 0.1, "delay": 3.0}, {"probability": None, "delay": 4.0}]


def test_float32_is_written_with_its_own_digits() -> None:
    assert b'"probability":0.1,' in encode(objects(NAMES, OUTPUTS), single=False)


def test_single_row_is_answered_with_the_object() -> None:
    assert orjson.loads(encode(objects(NAMES[1:], OUTPUTS[1:]), single=True)) == {"delay": 3.0}


def test_refused_row_is_named() -> None:
    def read(row: tuple[Any, ...]) -> Any:
        if row[0] == 3:
            raise InvalidRequest("input 'x'", "wrong", found=3, allowed="2")
        return row[0]

    assert each([(1,), (2,)], read) == [1, 2]
    with pytest.raises(InvalidRequest, match=r"^row 1, input 'x': wrong; found 3; allowed: 2$"):
        each([(1,), (3,)], read)


def test_classes_are_answered_by_name() -> None:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    features = np.array([[1, 2, 3], [4, 5, 6]], np.int64).T.copy().T  # not in one piece by row
    found = class_objects(("cat", "dog"), ("probabilities", "features"), (probabilities, features))
    assert orjson.loads(encode(found, single=False)) == [
        {"class": "dog", "probabilities": {"cat": 0.25, "dog": 0.75}, "features": [1, 2, 3]},
        {"class": "cat", "probabilities": {"cat": 0.5, "dog": 0.5}, "features": [4, 5, 6]},
    ]
