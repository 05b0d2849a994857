"""The schema: its file, and encoding against a plain reference that looks at one value after the other."""

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.errors import ArchiveUnusable, InvalidRequest
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema

SCHEMA = TableSchema(
    (NumberColumn("delay"), NumberColumn("wind", nullable=True)),
    (CategoryColumn("carrier", ("AA", "Å", "")), CategoryColumn("origin", ("EWR", "JFK"), other=False)),
    (OutputColumn("probability"),),
)


def columns(rows: int = 2, **changed: Any) -> dict[str, Any]:
    good = {"delay": [1] * rows, "wind": [2.5] * rows, "carrier": ["AA"] * rows, "origin": ["JFK"] * rows}
    return {name: values for name, values in {**good, **changed}.items() if values is not ...}


def test_schema_survives_its_file() -> None:
    assert TableSchema.from_json(SCHEMA.to_json()) == SCHEMA
    assert SCHEMA.names == ("delay", "wind", "carrier", "origin")


GOOD = {"columns": [{"name": "a", "dtype": "float32", "nullable": False}], "outputs": []}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"columns": [], "outputs": [{}]}',
        b'{"columns": {"a": 1}, "outputs": []}',
        b'{"columns": [{"name": "a", "dtype": "float32"}], "outputs": []}',
        b'{"columns": [{"name": "a", "dtype": "string", "other": true}], "outputs": []}',
        b'{"columns": [{"name": "a", "dtype": "float64", "nullable": true}], "outputs": []}',
    ],
)
def test_file_that_is_no_schema_is_refused(document: bytes) -> None:
    TableSchema.from_json(orjson.dumps(GOOD))
    with pytest.raises(ArchiveUnusable, match=r"^schema\.json cannot be read: "):
        TableSchema.from_json(document)


class Refused(Exception):
    pass


def reference(schema: TableSchema, rows: list[dict[str, Any]]) -> tuple[list[list[float]], list[list[int]]]:
    """What encoding means, value by value. Refused where a client must be told."""
    numbers, codes = [], []
    for row in rows:
        numbers.append([plain_number(column, row[column.name]) for column in schema.numbers])
        codes.append([plain_code(column, row[column.name]) for column in schema.categories])
    return numbers, codes


def plain_number(column: NumberColumn, value: Any) -> float:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
        raise Refused
    with np.errstate(over="ignore"):
        single = float("nan") if value is None else float(np.float32(value))
    if math.isinf(single) or (math.isnan(single) and not column.nullable):
        raise Refused
    return single


def plain_code(column: CategoryColumn, value: Any) -> int:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise Refused from None
    if not isinstance(value, str):
        raise Refused
    if value in column.vocabulary:
        return column.vocabulary.index(value)
    if not column.other:
        raise Refused
    return len(column.vocabulary)


NUMBERS: st.SearchStrategy[Any] = st.one_of(
    st.integers(-5, 5), st.floats(), st.sampled_from([None, 3.4028235e38, 3.5e38, 2**64 - 1, -(2**63), math.nan])
)
ODD: st.SearchStrategy[Any] = st.sampled_from([True, "1.5", None, b"\xff", [1], {}, 7, "nan"])
TEXTS: st.SearchStrategy[Any] = st.sampled_from(["AA", "Å", "", "aa", "ZZ", b"AA", "Å".encode()])
ORIGINS: st.SearchStrategy[Any] = st.sampled_from(["EWR", "JFK", b"JFK"])


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that are mostly right, now and then with one value that is not."""
    row = st.fixed_dictionaries(
        {"delay": st.integers(-5, 5), "wind": NUMBERS, "carrier": TEXTS, "origin": ORIGINS},
    )
    rows = draw(st.lists(row, min_size=1, max_size=6))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(rows) - 1))
        rows[at][draw(st.sampled_from(SCHEMA.names))] = draw(ODD | NUMBERS)
    return rows


@given(tables())
def test_encoding_agrees_with_the_reference(rows: list[dict[str, Any]]) -> None:
    given_columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    try:
        numbers, codes = reference(SCHEMA, rows)
    except Refused:
        with pytest.raises(InvalidRequest) as refused:
            SCHEMA.encode(given_columns)
        assert refused.value.field.partition("'")[2].partition("'")[0] in SCHEMA.names
        assert refused.value.allowed
        return
    found = SCHEMA.encode(given_columns)
    assert [array.dtype for array in found] == [np.dtype(np.float32), np.dtype(np.int64)]
    np.testing.assert_array_equal(found[0], np.array(numbers, dtype=np.float32))
    np.testing.assert_array_equal(found[1], np.array(codes, dtype=np.int64))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "i1", "<i8", "u1", "<u8"])
def test_number_columns_may_be_arrays_of_any_number_type(dtype: str) -> None:
    values = np.array([1, 2], dtype=dtype)
    numbers, _ = SCHEMA.encode(columns(delay=values, wind=values))
    np.testing.assert_array_equal(numbers, np.array([[1, 1], [2, 2]], dtype=np.float32))


TOO_LARGE = "a number that float32 cannot hold"
HUGE = np.array([1.0, 1e39])
NO_NUMBER = np.array([1.0, np.nan])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"delay": ...}, "columns: missing delay; allowed: delay, wind, carrier, origin"),
        ({"gate\n": [1, 2]}, r"columns: unknown 'gate\n'; allowed: delay, wind, carrier, origin"),
        ({"delay": [1, "1.5"]}, "column 'delay', row 1: wrong type; found '1.5'; allowed: a number or null"),
        ({"delay": [True, 1]}, "column 'delay', row 0: wrong type; found true; allowed: a number or null"),
        ({"delay": [1, None]}, "column 'delay', row 1: wrong value; found a missing value; allowed: finite numbers"),
        ({"delay": NO_NUMBER}, "column 'delay', row 1: wrong value; found a missing value; allowed: finite numbers"),
        (
            {"delay": HUGE},
            f"column 'delay', row 1: wrong value; found {TOO_LARGE}; allowed: finite numbers",
        ),
        (
            {"wind": [1, -1e39]},
            f"column 'wind', row 1: wrong value; found {TOO_LARGE}; allowed: finite numbers or null",
        ),
        ({"wind": [1, 10**400]}, "column 'wind': a number is too large; allowed: float32 numbers"),
        ({"origin": ["JFK", "LGA"]}, "column 'origin', row 1: unknown category; found 'LGA'; allowed: EWR, JFK"),
        ({"origin": [b"LGA", "JFK"]}, "column 'origin', row 0: unknown category; found 'LGA'; allowed: EWR, JFK"),
        ({"carrier": ["AA", None]}, "column 'carrier', row 1: wrong type; found null; allowed: a string"),
        ({"carrier": ["AA", 7]}, "column 'carrier', row 1: wrong type; found 7; allowed: a string"),
        (
            {"carrier": ["AA", b"\xff"]},
            "column 'carrier', row 1: wrong type; found bytes that are not UTF-8; allowed: a string",
        ),
    ],
)
def test_error_names_the_column_what_was_found_and_what_is_allowed(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SCHEMA.encode(columns(**changed))
    assert str(refused.value) == message


def test_missing_number_is_kept_where_it_is_allowed() -> None:
    numbers, _ = SCHEMA.encode(columns(wind=[None, 1]))
    assert np.isnan(numbers[0, 1])


def test_unknown_category_takes_the_trained_code() -> None:
    _, codes = SCHEMA.encode(columns(carrier=["ZZ", "Å"]))
    assert codes[:, 0].tolist() == [3, 1]
