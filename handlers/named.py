"""What all kinds of model but tables share: a schema that names the program's outputs, each a tensor."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np

from handlers.base import Array, BaseHandler
from handlers.kinds import ImageSchema, SequenceSchema, TensorsSchema, TextSchema
from handlers.measured import Features, Measured, Values, few, no_codes
from handlers.protocol import rows
from handlers.tensors import NUMPY_DTYPES, Tensor
from monitoring.rff import pooled


class NamedOutputs(BaseHandler):
    """Answers with the outputs as its schema has them, and counts them beside what `described` says of the inputs."""

    schema: ImageSchema | SequenceSchema | TensorsSchema | TextSchema
    """Set by `load`, with `output_names`, and `classes` where the first output is their probabilities."""
    numbers: tuple[str, ...]
    """What the numbers of `described` are called; set by `load` too."""
    embeds = False
    """Whether the first output is an embedding: its values mean something together, and none by itself."""

    def outputs(self, arrays: list[Array]) -> list[Tensor]:
        tensors = []
        for spec, array in zip(self.schema.outputs, arrays, strict=True):
            # Rows of one request have one shape, whatever the rows beside it have.
            dense = np.stack(list(array)) if array.dtype == object else array
            values = np.ascontiguousarray(dense, dtype=NUMPY_DTYPES[spec.datatype])
            tensors.append(Tensor(spec.name, spec.datatype, values.shape, values.reshape(-1)))
        return tensors

    def plain(self, arrays: list[Array]) -> list[dict[str, Any]]:
        if self.classes:
            return rows.class_objects(self.classes, self.output_names, arrays)
        return rows.objects(self.output_names, arrays)

    @property
    def features(self) -> Features:
        return Features(numbers=self.numbers, outputs=self._values.names)

    def measure(self, inputs: list[Array], outputs: list[Array]) -> Measured:
        numbers, vectors = self.described(inputs)
        count = len(numbers)
        return Measured(
            numbers,
            no_codes(count),
            self._values(outputs[self._apart :], count),
            self.probabilities(outputs) if self.classes else None,
            pooled(outputs[0].reshape(count, -1)) if self.embeds else vectors,
        )

    @property
    def _apart(self) -> int:
        """The first output is not counted by its values where it is probabilities or an embedding."""
        return int(bool(self.classes or self.embeds))

    @cached_property
    def _values(self) -> Values:
        specs = self.schema.outputs[self._apart :]
        return Values(specs, [few(spec) for spec in specs])

    @abstractmethod
    def described(self, inputs: list[Array]) -> tuple[Array, Array | None]:
        """Of the inputs of n rows: float32 [n, numbers], and of inputs like images what they look like, [n, d]."""
