"""Words for a client: what was found is shown in JSON's terms, briefly, whatever it was."""

import inspect
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers import errors
from handlers.errors import MAX_LISTED, MAX_SHOWN_CHARACTERS, HandlerError, InvalidRequest, Words, listed, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("a\nb", r"'a\nb'"),
        (b"ZZ", "'ZZ'"),
        (b"\xff", "'\ufffd'"),
        (Words("3 bytes"), "3 bytes"),
        ([2, None, "x"], "[2, null, 'x']"),
        ((2, 3), "[2, 3]"),
        ({"a": [{"b": [1]}]}, "{'a': [{'b': […]}]}"),
        ([[[[1]]]], "[[[[…]]]]"),
    ],
)
def test_value_is_shown_in_the_clients_terms(value: object, text: str) -> None:
    assert shown(value) == text


@given(JSON)
def test_any_json_value_is_one_short_line(value: object) -> None:
    text = shown(value)
    assert len(text) <= MAX_SHOWN_CHARACTERS + 1
    assert text.splitlines() in ([text], [])


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [nested(100_000), [1] * 10**6, "x" * 10**7, b"x" * 10**7, dict.fromkeys(map(str, range(10**5)), [1] * 100)],
    ids=["deep", "long list", "long text", "long bytes", "long object"],
)
def test_large_value_costs_no_more_than_a_small_one(value: object) -> None:
    started = time.perf_counter()
    assert len(shown(value)) <= MAX_SHOWN_CHARACTERS + 1
    assert time.perf_counter() - started < 0.05


def test_message_is_built_from_facts() -> None:
    error = InvalidRequest("column 'a'", "wrong type", found="1.5", allowed="a number")
    assert str(error) == "column 'a': wrong type; found '1.5'; allowed: a number"
    assert (error.field, error.problem, error.found, error.allowed) == ("column 'a'", "wrong type", "1.5", "a number")


def test_null_was_found_and_nothing_was_not() -> None:
    assert str(InvalidRequest("id", "wrong type", found=None)) == "id: wrong type; found null"
    assert str(InvalidRequest("id", "wrong type")) == "id: wrong type"


def test_long_lists_of_names_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    names = [str(number) for number in range(MAX_LISTED + 3)]
    assert listed(names).endswith(f"{MAX_LISTED - 1} and 3 more")


def test_tree_at_the_top_of_the_file_is_the_tree() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
    assert all(issubclass(c, HandlerError) for c in classes)
    assert errors.__doc__ is not None
    assert {c.__name__ for c in classes} == {word for word in errors.__doc__.split() if hasattr(errors, word)}
