"""Which changes of a schema break clients: each rule by an example that does and one that does not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.rollout.compatibility import Changes, breaking_changes, compare_schemas
from deploy.rollout.record import Release
from handlers.kinds import FREE, ImageSchema, Schema, SequenceSchema, TensorSpec, TensorsSchema, TextSchema
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.archive import archive_name, write
from model_store.errors import ArchiveMissing, ArchiveRefused

WIND = NumberColumn("wind", nullable=True)
CARRIER = CategoryColumn("carrier", ("AA", "UA"))
ORIGIN = CategoryColumn("origin", ("EWR", "JFK"), other=False)
LATE = OutputColumn("late", classes=("no", "yes"))
TABLE = TableSchema((NumberColumn("delay"), WIND), (CARRIER, ORIGIN), (LATE,))

SCORES = TensorSpec(name="scores", datatype="FP32", shape=(3,))
TENSORS = TensorsSchema(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(4,)), TensorSpec(name="y", datatype="INT64", shape=(FREE,))),
    outputs=(SCORES, TensorSpec(name="size", datatype="FP32", shape=())),
)
TEXT = TextSchema(max_tokens=64, buckets=(64,), classes=("a", "b", "c"), outputs=(SCORES,))
IMAGE = ImageSchema(channels=1, height=8, width=8, classes=("a", "b", "c"), outputs=(SCORES,))
SEQUENCE = SequenceSchema(features=("rain", "wind"), min_steps=2, max_steps=8, buckets=(8,), outputs=(SCORES,))

ALL = {"table": TABLE, "tensors": TENSORS, "text": TEXT, "image": IMAGE, "sequence": SEQUENCE}


def table(**changed: Any) -> TableSchema:
    return replace(TABLE, **changed)


def tensors(x: Any = None, **changed: Any) -> TensorsSchema:
    inputs = (TENSORS.inputs[0].model_copy(update=x or {}), TENSORS.inputs[1])
    return TENSORS.model_copy(update={"inputs": inputs, **changed})


@pytest.mark.parametrize("schema", ALL.values(), ids=ALL)
def test_same_schema_changes_nothing(schema: Schema) -> None:
    assert compare_schemas(schema, schema) == Changes()


BREAKING: dict[str, tuple[Schema, Schema, str]] = {
    "column removed": (TABLE, table(numbers=TABLE.numbers[:1]), "input wind is removed: requests with it are refused"),
    "column added": (table(numbers=TABLE.numbers[:1]), TABLE, "input wind is added: requests without it are refused"),
    "column must be there": (
        TABLE,
        table(numbers=(TABLE.numbers[0], NumberColumn("wind"))),
        "column wind may no longer be missing: requests with null are refused",
    ),
    "number becomes text": (
        TABLE,
        table(numbers=TABLE.numbers[1:], categories=(*TABLE.categories, CategoryColumn("delay", ("1",)))),
        "input delay changes its datatype from FP32 to BYTES",
    ),
    "category refused": (
        TABLE,
        table(categories=(CARRIER, CategoryColumn("origin", ("EWR",), other=False))),
        "column origin refuses from now on: JFK",
    ),
    "unknown refused": (
        TABLE,
        table(categories=(CategoryColumn("carrier", ("AA", "UA"), other=False), ORIGIN)),
        "column carrier takes no unknown categories any more",
    ),
    "classes reordered": (
        TABLE,
        table(outputs=(OutputColumn("late", classes=("yes", "no")),)),
        "the classes of output late change from no, yes to yes, no",
    ),
    "classes gone": (
        TABLE,
        table(outputs=(OutputColumn("late"),)),
        "the classes of output late change from no, yes to none",
    ),
    "output renamed": (TABLE, table(outputs=(replace(LATE, name="delayed"),)), "output late is removed"),
    "other kind": (
        TABLE,
        TENSORS,
        "the kind of model changes from table to tensors, which reads requests otherwise",
    ),
    "input's datatype": (
        TENSORS,
        tensors({"datatype": "FP64"}),
        "input x changes its datatype from FP32 to FP64",
    ),
    "input's size": (TENSORS, tensors({"shape": (5,)}), "input x changes its shape from [-1, 4] to [-1, 5]"),
    "free axis fixed": (
        tensors({"shape": (FREE,)}),
        TENSORS,
        "input x changes its shape from [-1, -1] to [-1, 4]",
    ),
    "outputs reordered": (
        TENSORS,
        tensors(outputs=TENSORS.outputs[::-1]),
        "the order of the outputs changes from scores, size to size, scores",
    ),
    "output put first": (
        TENSORS,
        tensors(outputs=(TensorSpec(name="new", datatype="FP32", shape=()), *TENSORS.outputs)),
        "a new output stands before scores, size: clients that count outputs get another",
    ),
    "output's shape": (
        TENSORS,
        tensors(outputs=(SCORES.model_copy(update={"shape": (FREE,)}), TENSORS.outputs[1])),
        "output scores changes its shape from [-1, 3] to [-1, -1]",
    ),
    "text's classes": (
        TEXT,
        TEXT.model_copy(update={"classes": ("a", "c", "b")}),
        "the classes of output scores change from a, b, c to a, c, b",
    ),
    "image's size": (
        IMAGE,
        IMAGE.model_copy(update={"height": 9}),
        "input image changes its shape from [-1, 1, 8, 8] to [-1, 1, 9, 8]",
    ),
    "features of a step": (
        SEQUENCE,
        SEQUENCE.model_copy(update={"features": ("wind", "rain")}),
        "the features of a step change from rain, wind to wind, rain",
    ),
    "fewer steps": (
        SEQUENCE,
        SEQUENCE.model_copy(update={"max_steps": 6}),
        "sequences may have 2 to 6 steps; they may have had 2 to 8",
    ),
}


@pytest.mark.parametrize(("old", "new", "words"), BREAKING.values(), ids=BREAKING)
def test_change_breaks_clients(old: Schema, new: Schema, words: str) -> None:
    assert words in compare_schemas(old, new).breaking


COMPATIBLE: dict[str, tuple[Schema, Schema, str]] = {
    "column may be missing": (
        TABLE,
        table(numbers=(NumberColumn("delay", nullable=True), WIND)),
        "column delay may be missing now",
    ),
    "category becomes other": (
        TABLE,
        table(categories=(CategoryColumn("carrier", ("UA",)), ORIGIN)),
        "column carrier takes as unknown from now on: AA",
    ),
    "more categories": (
        TABLE,
        table(categories=(CARRIER, CategoryColumn("origin", ("JFK", "EWR", "LGA"), other=False))),
        "column origin knows more categories: LGA",
    ),
    "output added": (TABLE, table(outputs=(LATE, OutputColumn("minutes"))), "output minutes is added"),
    "axis freed": (
        TENSORS,
        tensors({"shape": (FREE,)}),
        "input x changes its shape from [-1, 4] to [-1, -1]",
    ),
    "shorter texts": (
        TEXT,
        TEXT.model_copy(update={"max_tokens": 32}),
        "texts are cut at 32 tokens; they were cut at 64",
    ),
    "more steps": (
        SEQUENCE,
        SEQUENCE.model_copy(update={"min_steps": 1}),
        "sequences may have 1 to 8 steps; they may have had 2 to 8",
    ),
}


@pytest.mark.parametrize(("old", "new", "words"), COMPATIBLE.values(), ids=COMPATIBLE)
def test_change_is_told_and_breaks_nobody(old: Schema, new: Schema, words: str) -> None:
    assert compare_schemas(old, new) == Changes(compatible=(words,))


def release(directory: Path, version: int, schema: bytes) -> Release:
    digest = write(directory / "new.mar", {"schema.json": schema})
    (directory / "new.mar").rename(directory / archive_name("flights", version, digest))
    return Release(version=version, digest=digest)


def test_archives_of_two_releases_are_compared(tmp_path: Path) -> None:
    first = release(tmp_path, 1, TABLE.to_json())
    second = release(tmp_path, 2, table(numbers=TABLE.numbers[:1]).to_json())
    assert breaking_changes(tmp_path, "flights", first, first) == ()
    (words,) = breaking_changes(tmp_path, "flights", first, second)
    assert words.startswith("input wind is removed")


def test_archive_that_is_not_there_altered_or_unreadable_is_not_compared(tmp_path: Path) -> None:
    first, broken = release(tmp_path, 1, TABLE.to_json()), release(tmp_path, 2, b"{}")
    with pytest.raises(ArchiveMissing):
        breaking_changes(tmp_path, "flights", first, Release(version=3, digest=first.digest))
    with pytest.raises(ArchiveRefused, match="schema cannot be read"):
        breaking_changes(tmp_path, "flights", first, broken)
    with (tmp_path / archive_name("flights", 1, first.digest)).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArchiveRefused, match="altered"):
        breaking_changes(tmp_path, "flights", first, first)
