"""What all kinds of model but tables share: a schema that names the program's outputs, each a tensor."""

import numpy as np

from handlers.base import Array, BaseHandler, Item
from handlers.kinds import ImageSchema, SequenceSchema, TensorsSchema, TextSchema
from handlers.protocol import rows
from handlers.slots import DriftCounter
from handlers.tensors import NUMPY_DTYPES, Tensor


class NamedOutputs(BaseHandler):
    """Answers with the outputs as its schema has them, and counts rows only: such inputs have no columns."""

    schema: ImageSchema | SequenceSchema | TensorsSchema | TextSchema
    """Set by `load`, with `output_names`, and `classes` where the first output is their probabilities."""

    def outputs(self, arrays: list[Array]) -> list[Tensor]:
        tensors = []
        for spec, array in zip(self.schema.outputs, arrays, strict=True):
            # Rows of one request have one shape, whatever the rows beside it have.
            dense = np.stack(list(array)) if array.dtype == object else array
            values = np.ascontiguousarray(dense, dtype=NUMPY_DTYPES[spec.datatype])
            tensors.append(Tensor(spec.name, spec.datatype, values.shape, values.reshape(-1)))
        return tensors

    def encode_plain(self, arrays: list[Array], item: Item) -> bytes:
        if self.classes:
            return rows.encode_classes(self.classes, self.output_names, arrays, single=item.single)
        return rows.encode(self.output_names, arrays, single=item.single)

    def count(self, drift: DriftCounter, inputs: list[Array], outputs: list[Array]) -> None:  # noqa: ARG002
        drift.count_rows(len(inputs[0]))
