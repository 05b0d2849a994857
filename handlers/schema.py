"""The columns of a table model, and the only check between a client's columns and the program's tensors."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from handlers.errors import ArchiveUnusable, InvalidRequest, Words, listed, shown

Numbers = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

_NUMBER_TYPES = {int, float, type(None)}
_LISTS: set[type] = {list, tuple}


@dataclass(frozen=True)
class NumberColumn:
    """A float32 column. A missing value is NaN (`null` in JSON), allowed only where `nullable`."""

    name: str
    nullable: bool = False


@dataclass(frozen=True)
class CategoryColumn:
    """A text column. The code of a category is its index; `other`, where trained, has the code after the last."""

    name: str
    vocabulary: tuple[str, ...]
    other: bool = True
    codes: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", {name: code for code, name in enumerate(self.vocabulary)})


@dataclass(frozen=True)
class OutputColumn:
    name: str
    dtype: Literal["float32"] = "float32"
    classes: tuple[str, ...] = ()
    """Two names where it is the probability of the second: what the model predicts is the likelier one."""

    def __post_init__(self) -> None:
        if self.classes and len(set(self.classes)) != 2:
            raise ValueError(f"the output {self.name} has the classes {self.classes}; allowed are two, or none")


@dataclass(frozen=True)
class TableSchema:
    """`schema.json` of a version: what a row holds and how it becomes the program's two tensors.

    The program takes `numbers`, float32 of shape [rows, len(numbers)], and `codes`, int64 of shape
    [rows, len(categories)], in the order of the columns here.
    """

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]
    outputs: tuple[OutputColumn, ...]

    @classmethod
    def from_json(cls, text: bytes) -> "TableSchema":
        """Raises ArchiveUnusable for a file that is not a schema."""
        try:
            document = orjson.loads(text)
            columns = [_column(entry) for entry in document["columns"]]
            return cls(
                numbers=tuple(column for column in columns if isinstance(column, NumberColumn)),
                categories=tuple(column for column in columns if isinstance(column, CategoryColumn)),
                outputs=tuple(OutputColumn(c["name"], c["dtype"], tuple(c["classes"])) for c in document["outputs"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArchiveUnusable(f"schema.json cannot be read: {error!r}") from error

    def to_json(self) -> bytes:
        numbers: list[dict[str, Any]] = [
            {"name": c.name, "dtype": "float32", "nullable": c.nullable} for c in self.numbers
        ]
        categories = [
            {"name": c.name, "dtype": "string", "vocabulary": list(c.vocabulary), "other": c.other}
            for c in self.categories
        ]
        outputs = [{"name": c.name, "dtype": c.dtype, "classes": list(c.classes)} for c in self.outputs]
        document = {"kind": "table", "columns": numbers + categories, "outputs": outputs}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"

    def metadata(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Inputs and outputs in the words of the Open Inference Protocol: every column is a tensor [rows]."""
        text = {column.name for column in self.categories}
        inputs = [(name, "BYTES" if name in text else "FP32") for name in self.names]
        outputs = [(column.name, "FP32") for column in self.outputs]
        return _entries(inputs), _entries(outputs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns, numbers first."""
        return (*(c.name for c in self.numbers), *(c.name for c in self.categories))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _nullable(self) -> npt.NDArray[np.bool_]:
        return np.array([column.nullable for column in self.numbers], dtype=np.bool_)

    def encode(self, columns: Mapping[str, Sequence[object] | npt.NDArray[Any]]) -> tuple[Numbers, Codes]:
        """The program's tensors for columns of equal length, at least one row.

        Number columns are numpy arrays, or lists or tuples of int, float and None; category columns are lists or tuples
        of str or UTF-8 bytes. Raises InvalidRequest naming the column, what was found and what is allowed.
        """
        self.check_names(columns)
        rows = len(next(iter(columns.values())))
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below in words
            numbers = self._encode_numbers(rows, columns)
        self._check_finite(numbers)
        codes: Codes = np.empty((rows, len(self.categories)), dtype=np.int64)
        for position, category in enumerate(self.categories):
            codes[:, position] = _codes(category, columns[category.name])
        return numbers, codes

    def _encode_numbers(self, rows: int, columns: Mapping[str, Sequence[object] | npt.NDArray[Any]]) -> Numbers:
        values = [columns[column.name] for column in self.numbers]
        # numpy's cost is for each call more than for each value, so lists become one array at once. Where one of them
        # holds something else, the way column by column says which.
        if set(map(type, values)) <= _LISTS and set(map(type, chain.from_iterable(values))) <= _NUMBER_TYPES:
            with suppress(OverflowError):
                return np.array(values, dtype=np.float64).T.astype(np.float32, order="C")
        numbers: Numbers = np.empty((rows, len(values)), dtype=np.float32)
        for position, column in enumerate(self.numbers):
            numbers[:, position] = _numbers(column.name, values[position])
        return numbers

    def check_names(self, columns: Mapping[str, object]) -> None:
        """Raises InvalidRequest unless these are exactly the schema's columns."""
        if columns.keys() == self._known:
            return
        if missing := [name for name in self.names if name not in columns]:
            raise InvalidRequest("columns", f"missing {listed(missing)}", allowed=listed(self.names))
        unknown = [shown(name) for name in columns if name not in self.names]
        raise InvalidRequest("columns", f"unknown {listed(unknown)}", allowed=listed(self.names))

    def _check_finite(self, numbers: Numbers) -> None:
        """One pass over all values; the search for the culprit is made only when there is one."""
        if (np.isfinite(numbers) | (np.isnan(numbers) & self._nullable)).all():
            return
        for position, column in enumerate(self.numbers):
            values = numbers[:, position]
            bad = np.isinf(values) if column.nullable else ~np.isfinite(values)
            if bad.any():
                row = int(bad.argmax())
                found = Words("a missing value" if np.isnan(values[row]) else "a number that float32 cannot hold")
                allowed = "finite numbers or null" if column.nullable else "finite numbers"
                raise InvalidRequest(f"column {column.name!r}, row {row}", "wrong value", found=found, allowed=allowed)


def _entries(tensors: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in tensors]


def _column(entry: dict[str, Any]) -> NumberColumn | CategoryColumn:
    if entry["dtype"] == "float32":
        return NumberColumn(entry["name"], bool(entry["nullable"]))
    if entry["dtype"] == "string":
        return CategoryColumn(entry["name"], tuple(entry["vocabulary"]), bool(entry["other"]))
    raise ValueError(f"column {entry['name']} has dtype {entry['dtype']!r}; allowed are float32 and string")


def _numbers(name: str, values: Sequence[object] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    if not set(map(type, values)) <= _NUMBER_TYPES:
        row, value = next((r, v) for r, v in enumerate(values) if type(v) not in _NUMBER_TYPES)
        raise InvalidRequest(f"column {name!r}, row {row}", "wrong type", found=value, allowed="a number or null")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        raise InvalidRequest(f"column {name!r}", "a number is too large", allowed="float32 numbers") from None


def _codes(column: CategoryColumn, values: Sequence[object] | npt.NDArray[Any]) -> list[int]:
    other = len(column.vocabulary)
    texts: Any = (
        values if set(map(type, values)) == {str} else [_text(column.name, *each) for each in enumerate(values)]
    )
    codes = [column.codes.get(text, other) for text in texts]
    if not column.other and other in codes:
        row = codes.index(other)
        raise InvalidRequest(
            f"column {column.name!r}, row {row}",
            "unknown category",
            found=values[row],
            allowed=listed(column.vocabulary),
        )
    return codes


def _text(name: str, row: int, value: object) -> str:
    if type(value) is str:
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            value = Words("bytes that are not UTF-8")
    raise InvalidRequest(f"column {name!r}, row {row}", "wrong type", found=value, allowed="a string")
