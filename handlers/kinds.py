"""What a version's `schema.json` says of its inputs and outputs, for every kind of model. Tables have `schema.py`.

Shapes here are those of one row: the first axis of every tensor is the rows, and stands in no schema.
"""

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic import model_validator as validator

from handlers.errors import ArchiveUnusable, shown
from handlers.schema import TableSchema
from handlers.tensors import NUMPY_DTYPES

Entry = dict[str, Any]
"""A tensor in the words of the Open Inference Protocol: name, datatype, and shape with -1 for the rows."""

FREE = -1
"""An axis that may have any size."""


def _datatype(name: str) -> str:
    # No program takes text, and numpy cannot hold BF16.
    if name not in NUMPY_DTYPES or name == "BF16":
        raise ValueError(f"a program has no tensors of {name}")
    return name


def _axis(size: int) -> int:
    if size != FREE and size < 1:
        raise ValueError(f"an axis has at least one value, or is {FREE} for any number of them")
    return size


def _rising(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not sizes or list(sizes) != sorted(set(sizes)):
        raise ValueError("buckets must rise")
    return sizes


Buckets = Annotated[tuple[PositiveInt, ...], AfterValidator(_rising)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """One tensor of the program."""

    name: str = Field(min_length=1)
    datatype: Annotated[str, AfterValidator(_datatype)]
    shape: tuple[Annotated[int, AfterValidator(_axis)], ...]
    """Of one row; -1 for an axis that may have any size."""

    def entry(self) -> Entry:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}


class _Schema(_Part):
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises ArchiveUnusable for a file that is no schema of this kind."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ArchiveUnusable(f"schema.json: {where}: {first['msg']}; found {shown(first['input'])}") from error

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.outputs)

    def to_json(self) -> bytes:
        """`schema.json`, the same bytes for the same schema."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_INDENT_2) + b"\n"

    def metadata(self) -> tuple[list[Entry], list[Entry]]:
        """Inputs and outputs as clients send and get them."""
        return self._inputs(), [output.entry() for output in self.outputs]

    def _inputs(self) -> list[Entry]:
        raise NotImplementedError

    def _check_classes(self, classes: tuple[str, ...]) -> None:
        if self.outputs[0].shape != (len(classes),):
            raise ValueError(f"{len(classes)} classes, but {self.outputs[0].name} is {list(self.outputs[0].shape)}")


class ImageSchema(_Schema):
    """The program takes uint8 [n, channels, height, width]; its first output is the probability of every class."""

    kind: Literal["image"] = "image"
    input: str = "image"
    channels: Literal[1, 3]
    height: PositiveInt
    width: PositiveInt
    classes: tuple[str, ...]

    @validator(mode="after")
    def _fits(self) -> Self:
        self._check_classes(self.classes)
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def _inputs(self) -> list[Entry]:
        return [{"name": self.input, "datatype": "UINT8", "shape": [-1, *self.shape]}]


class TextSchema(_Schema):
    """The program takes input_ids and attention_mask, int64 [n, L], for any L of at most `max_tokens`.

    Where there are `classes`, its first output is the probability of every one.
    """

    kind: Literal["text"] = "text"
    input: str = "text"
    max_tokens: PositiveInt
    """Longer texts are cut."""
    buckets: Buckets
    """Texts that fill the same bucket are computed together."""
    classes: tuple[str, ...] | None = None

    @validator(mode="after")
    def _fits(self) -> Self:
        if self.buckets[-1] < self.max_tokens:
            raise ValueError(f"the last bucket must hold {self.max_tokens} tokens")
        if self.classes is not None:
            self._check_classes(self.classes)
        return self

    def _inputs(self) -> list[Entry]:
        return [{"name": self.input, "datatype": "BYTES", "shape": [-1]}]


class SequenceSchema(_Schema):
    """The program takes values, float32 [n, T, len(features)], and lengths, int64 [n].

    Missing values are NaN, and so are the steps behind a row's length; the program fills them.
    """

    kind: Literal["sequence"] = "sequence"
    input: str = "history"
    features: tuple[str, ...] = Field(min_length=1)
    min_steps: PositiveInt
    max_steps: PositiveInt
    buckets: Buckets
    """Rows that fill the same bucket are computed together."""

    @validator(mode="after")
    def _fits(self) -> Self:
        if not self.min_steps <= self.max_steps <= self.buckets[-1]:
            raise ValueError(f"{self.min_steps} to {self.max_steps} steps do not fit the last bucket")
        return self

    def _inputs(self) -> list[Entry]:
        return [{"name": self.input, "datatype": "FP32", "shape": [-1, FREE, len(self.features)]}]


class TensorsSchema(_Schema):
    """The program takes these inputs in this order."""

    kind: Literal["tensors"] = "tensors"
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)

    @validator(mode="after")
    def _fits(self) -> Self:
        if len({spec.name for spec in self.inputs}) != len(self.inputs):
            raise ValueError("two inputs have the same name")
        return self

    def _inputs(self) -> list[Entry]:
        return [spec.entry() for spec in self.inputs]


Schema = TableSchema | ImageSchema | TextSchema | SequenceSchema | TensorsSchema

_KINDS: dict[str, type[Schema]] = {
    "table": TableSchema,
    "image": ImageSchema,
    "text": TextSchema,
    "sequence": SequenceSchema,
    "tensors": TensorsSchema,
}


def read_schema(text: bytes) -> Schema:
    """The schema in a `schema.json`, of whatever kind. Raises ArchiveUnusable for a file that is none."""
    try:
        kind = orjson.loads(text)["kind"]
        schema = _KINDS[kind]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ArchiveUnusable(
            f"schema.json cannot be read: {error!r}; it must be an object with a kind: {', '.join(_KINDS)}"
        ) from error
    return schema.from_json(text)
