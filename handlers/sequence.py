"""Sequences: steps of features, as long as they are; rows of like length are computed together."""

from itertools import chain

import numpy as np
import numpy.typing as npt

from handlers.answer import Call
from handlers.base import Array, Item
from handlers.bucketing import by_length, in_groups
from handlers.errors import InvalidRequest, Words, listed, shown
from handlers.inputs import by_name, from_nested, like_first
from handlers.kinds import SequenceSchema
from handlers.named import NamedOutputs
from handlers.protocol import rows
from handlers.protocol.oip_json import parse
from handlers.tensors import InferRequest, Tensor

Steps = npt.NDArray[np.float32]
"""The steps of one row, [T, features]."""


class SequenceHandler(NamedOutputs):
    """Serves a program of sequences by its `schema.json`. Missing values are NaN, in JSON null."""

    schema: SequenceSchema
    max_rows = 256

    def load(self) -> None:
        self.schema = SequenceSchema.from_json((self.directory / "schema.json").read_bytes())
        self.output_names = self.schema.output_names
        self.numbers = ("steps", *(f"last {name}" for name in self.schema.features))
        self._pick = rows.picker((self.schema.input,))
        self._field = f"input {shown(self.schema.input)}"

    def read(self, request: InferRequest) -> tuple[list[Steps], int]:
        (tensor,), count = by_name(request, (self.schema.input,))
        if tensor.datatype in ("BYTES", "BOOL"):
            allowed = "FP32, or another number type"
            raise InvalidRequest(self._field, "wrong datatype", found=tensor.datatype, allowed=allowed)
        self._check_shape(tensor.shape[1:], head="rows, ")
        values = np.asarray(tensor.values).reshape(tensor.shape)
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below in words
            steps = list(values.astype(np.float32, copy=False))
        return rows.each([(row,) for row in steps], self._finite), count

    def read_plain(self, call: Call) -> tuple[list[Steps], int, bool]:
        call.check_content_type(rows.CONTENT_TYPES)
        found, single = self._pick(parse(call.body))
        return rows.each(found, self._steps), len(found), single

    def plain_tensors(self, data: list[Steps]) -> list[Tensor]:
        """The rows that are as long as the first."""
        (steps,) = like_first([data])
        return [Tensor(self.schema.input, "FP32", steps.shape, steps.reshape(-1))]

    def _steps(self, row: tuple[object]) -> Steps:
        steps = from_nested(self.schema.input, "FP32", row[0])
        self._check_shape(steps.shape)
        return self._finite((steps,))

    def _check_shape(self, shape: tuple[int, ...], head: str = "") -> None:
        """`shape` of one row; `head` is what stands before it in the client's."""
        schema = self.schema
        wanted = len(schema.features)
        if len(shape) != 2:
            words = Words(f"[{head}{', '.join(map(str, shape))}]")
            raise InvalidRequest(self._field, "wrong shape", found=words, allowed=f"[{head}steps, {wanted}]")
        steps, features = shape
        if not schema.min_steps <= steps <= schema.max_steps:
            problem = "too few steps" if steps < schema.min_steps else "too many steps"
            allowed = f"{schema.min_steps} to {schema.max_steps}"
            raise InvalidRequest(self._field, problem, found=steps, allowed=allowed)
        if features != wanted:
            allowed = f"{wanted}: {listed(schema.features)}"
            raise InvalidRequest(self._field, "wrong number of features", found=features, allowed=allowed)

    def _finite(self, row: tuple[Steps]) -> Steps:
        (steps,) = row
        if not (infinite := np.isinf(steps)).any():
            return steps
        step, feature = np.argwhere(infinite)[0]
        raise InvalidRequest(
            f"{self._field}, step {step}, {self.schema.features[feature]}",
            "wrong value",
            found=Words("a number that float32 cannot hold"),
            allowed="finite numbers; NaN, in JSON null, for a missing one",
        )

    def check(self, items: list[Item]) -> list[Array]:
        """`values`, float32 [n, T, features] with NaN behind the end of each row, and `lengths`, int64 [n]."""
        sequences: list[Steps] = list(chain.from_iterable(item.data for item in items))
        lengths = np.array([len(steps) for steps in sequences])
        values = np.full((len(sequences), lengths.max(), len(self.schema.features)), np.nan, dtype=np.float32)
        for row, steps in zip(values, sequences, strict=True):
            row[: len(steps)] = steps
        return [values, lengths]

    def run(self, inputs: list[Array]) -> list[Array]:
        values, lengths = inputs

        def outputs_of(group: Array) -> list[Array]:
            return self.execute([values[group, : lengths[group].max()], lengths[group]])

        return in_groups(by_length(lengths, self.schema.buckets, self.max_rows), outputs_of)

    def described(self, inputs: list[Array]) -> tuple[Array, None]:
        """The number of steps, and what the last of them says."""
        values, lengths = inputs
        last = values[np.arange(len(values)), lengths - 1]
        return np.concatenate((lengths[:, np.newaxis], last), axis=1, dtype=np.float32), None
