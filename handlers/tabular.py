"""Tables: named columns in, the program's `numbers` and `codes` out, every value checked against the schema."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from handlers.answer import ROWS, Call
from handlers.base import Array, BaseHandler, Item
from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.measured import Features, Measured
from handlers.protocol import rows
from handlers.protocol.oip_json import parse
from handlers.schema import TableSchema
from handlers.tensors import InferRequest, Tensor, from_values


class TabularHandler(BaseHandler):
    """Serves a table model by its `schema.json`. Over the Open Inference Protocol each column is an input tensor."""

    def load(self) -> None:
        self.schema = TableSchema.from_json((self.directory / "schema.json").read_bytes())
        self.output_names = tuple(output.name for output in self.schema.outputs)
        self.classes = self.schema.outputs[0].classes
        self._pick = rows.picker(self.schema.names)

    def read_plain(self, call: Call) -> tuple[Any, int, bool]:
        call.check_content_type(rows.CONTENT_TYPES)
        found, single = self._pick(parse(call.body))
        return found, len(found), single

    def plain_tensors(self, data: list[tuple[Any, ...]]) -> list[Tensor]:
        numbers, categories = self.schema.numbers, self.schema.categories
        columns, shape = self._turned(data), (len(data),)
        return [
            *(from_values(column.name, "FP64", shape, columns[column.name]) for column in numbers),
            *(Tensor(column.name, "BYTES", shape, list(columns[column.name])) for column in categories),
        ]

    def check(self, items: list[Item]) -> list[Array]:
        if all(item.call.protocol == ROWS for item in items):
            return list(self.schema.encode(self._turned(chain.from_iterable(item.data for item in items))))
        tables = [self._turned(item.data) if item.call.protocol == ROWS else item.data for item in items]
        columns = {name: _merged([table[name] for table in tables]) for name in self.schema.names}
        return list(self.schema.encode(columns))

    def _turned(self, table: Iterable[tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """Rows as columns."""
        return dict(zip(self.schema.names, zip(*table, strict=True), strict=True))

    def read(self, request: InferRequest) -> tuple[dict[str, Any], int]:
        columns: dict[str, Any] = {}
        text = {column.name for column in self.schema.categories}
        count: int | None = None
        for tensor in request.inputs:
            field = f"input {shown(tensor.name)}"
            if tensor.name in columns:
                raise InvalidRequest(field, "the same column twice", allowed=listed(self.schema.names))
            if len(tensor.shape) > 2 or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
                raise InvalidRequest(field, "wrong shape", found=list(tensor.shape), allowed="[rows] or [rows, 1]")
            if tensor.name in self.schema.names:
                _check_datatype(tensor, text=tensor.name in text)
            count = tensor.shape[0] if count is None else count
            if tensor.shape[0] != count:
                raise InvalidRequest(
                    field, "not as many rows as the inputs before it", found=tensor.shape[0], allowed=f"{count}"
                )
            columns[tensor.name] = tensor.values
        if not count:
            raise InvalidRequest("inputs", "empty batch", found=Words("no rows"), allowed="at least one row")
        self.schema.check_names(columns)
        return columns, count

    def outputs(self, arrays: list[Array]) -> list[Tensor]:
        return [Tensor(name, "FP32", array.shape, array) for name, array in zip(self.output_names, arrays, strict=True)]

    def plain(self, arrays: list[Array]) -> list[dict[str, Any]]:
        return rows.objects(self.output_names, arrays)

    def probabilities(self, outputs: list[Array]) -> Array:
        both = np.empty((len(outputs[0]), 2), dtype=np.float32)  # `np.stack` takes three times as long
        both[:, 1] = outputs[0]
        np.subtract(1, outputs[0], out=both[:, 0])
        return both

    @property
    def features(self) -> Features:
        return Features(
            numbers=tuple(column.name for column in self.schema.numbers),
            categories={column.name: column.vocabulary for column in self.schema.categories},
            outputs=self.output_names,
        )

    def measure(self, inputs: list[Array], outputs: list[Array]) -> Measured:
        # `np.stack` costs as much as a third of the counting.
        columns = outputs[0][:, np.newaxis] if len(outputs) == 1 else np.stack(outputs, axis=1)
        return Measured(inputs[0], inputs[1], columns, self.probabilities(outputs) if self.classes else None)


def _merged(parts: list[Any]) -> Any:
    """One column of several items, which may have come as arrays or as lists."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return list(chain.from_iterable(part.tolist() if isinstance(part, np.ndarray) else part for part in parts))


def _check_datatype(tensor: Tensor, *, text: bool) -> None:
    field = f"input {shown(tensor.name)}"
    if text and tensor.datatype != "BYTES":
        raise InvalidRequest(field, "wrong datatype for a text column", found=tensor.datatype, allowed="BYTES")
    if not text and tensor.datatype in ("BYTES", "BOOL"):
        raise InvalidRequest(
            field, "wrong datatype for a number column", found=tensor.datatype, allowed="FP32, or another number type"
        )
