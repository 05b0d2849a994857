"""Any model whose inputs and outputs are tensors, as its signature in MLflow says: no code of its own is needed."""

from math import inf, prod
from typing import Any

import numpy as np

from handlers.answer import Call
from handlers.base import Array, Item
from handlers.bucketing import by_shape, in_calls, in_groups
from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.inputs import by_name, from_nested, joined, like_first, stacked
from handlers.kinds import FREE, TensorSpec, TensorsSchema
from handlers.measured import Values, values_of
from handlers.named import NamedOutputs
from handlers.protocol import rows
from handlers.protocol.oip_json import parse
from handlers.tensors import NUMPY_DTYPES, InferRequest, Tensor
from monitoring.rff import pooled

RAW = "application/octet-stream"
_LONE_INPUT_TYPES = (RAW, *rows.CONTENT_TYPES)
MAX_NAMED = 64
"""Values of a row's inputs that are counted one by one; of more their means, and what they look like together."""
MAX_VALUES = 1 << 22
"""Of one call's inputs: what a network makes of them in between may need a hundred times as much memory."""


class GenericHandler(NamedOutputs):
    """Serves the program with the tensors that its `schema.json` names.

    Rows of different requests share a call of the program where their shapes are the same.
    """

    schema: TensorsSchema

    def load(self) -> None:
        self.schema = TensorsSchema.from_json((self.directory / "schema.json").read_bytes())
        self.output_names = self.schema.output_names
        self._names = tuple(spec.name for spec in self.schema.inputs)
        self._inputs = [_Input(spec) for spec in self.schema.inputs]
        self._pick = rows.picker(self._names)
        size = values_of(*self.schema.inputs)
        self._columns = Values(self.schema.inputs, [size <= MAX_NAMED] * len(self._names))
        self._many = MAX_NAMED < size < inf
        self.numbers = self._columns.names

    def read(self, request: InferRequest) -> tuple[list[Array], int]:
        tensors, count = by_name(request, self._names)
        return [known.read(tensor) for known, tensor in zip(self._inputs, tensors, strict=True)], count

    def read_plain(self, call: Call) -> tuple[list[Array], int, bool]:
        """Objects of nested lists, one a row; for a model of one input also bare lists, or the rows' raw bytes."""
        alone = len(self._inputs) == 1
        call.check_content_type(_LONE_INPUT_TYPES if alone else rows.CONTENT_TYPES)
        if call.content_type.startswith(RAW):
            array = self._inputs[0].read_raw(call.body)
            return [array], len(array), False
        document = parse(call.body)
        if alone and not _has_objects(document):
            array, single = self._inputs[0].read_nested(document)
            return [array], len(array), single
        found, single = self._pick(document)
        columns = zip(*rows.each(found, self._read_row), strict=True)
        return list(map(stacked, columns)), len(found), single

    def plain_tensors(self, data: list[Array]) -> list[Tensor]:
        """The rows that have the first one's shapes."""
        columns = zip(self.schema.inputs, like_first([list(array) for array in data]), strict=True)
        return [Tensor(spec.name, spec.datatype, column.shape, column.reshape(-1)) for spec, column in columns]

    def _read_row(self, row: tuple[Any, ...]) -> list[Array]:
        return [known.read_row(value) for known, value in zip(self._inputs, row, strict=True)]

    def check(self, items: list[Item]) -> list[Array]:
        # All was checked as it was read: no value depends on another request.
        return [joined(parts) for parts in zip(*(item.data for item in items), strict=True)]

    def run(self, inputs: list[Array]) -> list[Array]:
        if all(array.dtype != object for array in inputs):
            return self._run_alike(inputs)
        groups = by_shape(inputs)
        return in_groups(groups, lambda rows: self._run_alike([np.stack(list(array[rows])) for array in inputs]))

    def _run_alike(self, inputs: list[Array]) -> list[Array]:
        values = sum(array[0].size for array in inputs)
        return in_calls(self.execute, inputs, max(1, MAX_VALUES // max(1, values)))

    def described(self, inputs: list[Array]) -> tuple[Array, Array | None]:
        """Every value, or means and all values in one row where they are many; of free shapes means alone."""
        count = len(inputs[0])
        numbers = self._columns(inputs, count)
        if not self._many:
            return numbers, None
        return numbers, pooled(np.concatenate([array.reshape(count, -1) for array in inputs], axis=1))


class _Input:
    """One input of the program: how it is read and what is refused."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._dtype = NUMPY_DTYPES[spec.datatype]
        self._row_bytes = prod(spec.shape) * self._dtype.itemsize
        # BOOL is no number, although numpy would make one of it.
        self._datatypes = [spec.datatype] + [
            datatype
            for datatype, dtype in NUMPY_DTYPES.items()
            if datatype != spec.datatype and dtype.kind != "b" and np.can_cast(dtype, self._dtype)
        ]

    def read(self, tensor: Tensor) -> Array:
        """The tensor's rows, [n, …]: its own bytes, if they are of the program's datatype."""
        spec = self._spec
        if tensor.datatype not in self._datatypes:
            raise self._refusal("wrong datatype", tensor.datatype, listed(self._datatypes))
        if tensor.shape[1:] != spec.shape:
            self._check_shape(tensor.shape[1:])
        values: Array = np.asarray(tensor.values)
        return values.reshape(tensor.shape).astype(self._dtype, copy=False)

    def read_raw(self, body: memoryview) -> Array:
        """Rows of raw values, little-endian, with nothing around them."""
        if FREE in self._spec.shape:
            raise self._refusal("raw bytes do not tell its shape", Words(f"{len(body)} bytes"), "application/json")
        if not len(body) or len(body) % self._row_bytes:
            allowed = (
                f"a multiple of {self._row_bytes} bytes: {self._spec.datatype} of shape {_words(self._spec.shape)}"
            )
            raise self._refusal("raw bytes do not fill its rows", Words(f"{len(body)} bytes"), allowed)
        return np.frombuffer(body, self._dtype).reshape(-1, *self._spec.shape)

    def read_row(self, nested: object) -> Array:
        array = from_nested(self._spec.name, self._spec.datatype, nested)
        self._check_shape(array.shape, rows=False)
        return array

    def read_nested(self, nested: object) -> tuple[Array, bool]:
        """Rows of lists without names, and whether it is one row by itself: their depth tells."""
        array = from_nested(self._spec.name, self._spec.datatype, nested)
        single = array.ndim <= len(self._spec.shape)
        rows = array[np.newaxis] if single else array
        self._check_shape(rows.shape[1:])
        if not len(rows):
            raise self._refusal("empty batch", Words("no rows"), "at least one row")
        return rows, single

    def _check_shape(self, shape: tuple[int, ...], *, rows: bool = True) -> None:
        """`shape` of one row; the message speaks of it with the rows or without, as the client wrote it."""
        wanted = self._spec.shape
        if len(shape) == len(wanted) and all(
            size == want or (want == FREE and size > 0) for size, want in zip(shape, wanted, strict=True)
        ):
            return
        head = ("rows",) if rows else ()
        raise self._refusal("wrong shape", Words(_words(shape, head)), _words(wanted, head))

    def _refusal(self, problem: str, found: object, allowed: str) -> InvalidRequest:
        return InvalidRequest(f"input {shown(self._spec.name)}", problem, found=found, allowed=allowed)


def _words(shape: tuple[int, ...], head: tuple[str, ...] = ()) -> str:
    return "[" + ", ".join([*head, *("any" if size == FREE else str(size) for size in shape)]) + "]"


def _has_objects(document: object) -> bool:
    return isinstance(document, dict) or (
        isinstance(document, list) and bool(document) and isinstance(document[0], dict)
    )
