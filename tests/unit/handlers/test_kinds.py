"""The schemas of all kinds: written and read back, told to clients, and refused in words where they cannot be."""

from typing import Any

import orjson
import pytest

from handlers.errors import ArchiveUnusable
from handlers.kinds import ImageSchema, Schema, SequenceSchema, TensorSpec, TensorsSchema, TextSchema, read_schema
from tests.unit.handlers import tiny

TWO = TensorSpec(name="probabilities", datatype="FP32", shape=(2,))
IMAGE = ImageSchema(channels=3, height=4, width=5, classes=("cat", "dog"), outputs=(TWO,))
TEXT = TextSchema(max_tokens=8, buckets=(4, 8), classes=("good", "bad"), outputs=(TWO,))
SEQUENCE = SequenceSchema(features=("temp", "wind"), min_steps=2, max_steps=6, buckets=(3, 6), outputs=(TWO,))
TENSORS = TensorsSchema(
    inputs=(
        TensorSpec(name="x", datatype="FP16", shape=(-1, 3)),
        TensorSpec(name="mask", datatype="BOOL", shape=()),
    ),
    outputs=(TWO,),
)
OUTPUT = {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}


@pytest.mark.parametrize("schema", [IMAGE, TEXT, SEQUENCE, TENSORS, tiny.SCHEMA])
def test_schema_of_any_kind_is_read_back(schema: Schema) -> None:
    assert read_schema(schema.to_json()) == schema


@pytest.mark.parametrize(
    ("schema", "inputs"),
    [
        (IMAGE, [{"name": "image", "datatype": "UINT8", "shape": [-1, 3, 4, 5]}]),
        (TEXT, [{"name": "text", "datatype": "BYTES", "shape": [-1]}]),
        (SEQUENCE, [{"name": "history", "datatype": "FP32", "shape": [-1, -1, 2]}]),
        (
            TENSORS,
            [
                {"name": "x", "datatype": "FP16", "shape": [-1, -1, 3]},
                {"name": "mask", "datatype": "BOOL", "shape": [-1]},
            ],
        ),
    ],
)
def test_metadata_is_what_clients_send_and_get(schema: Schema, inputs: list[dict[str, Any]]) -> None:
    assert schema.metadata() == (inputs, [OUTPUT])


def test_metadata_of_a_table_is_a_tensor_for_each_column() -> None:
    inputs, outputs = tiny.SCHEMA.metadata()
    assert [(each["name"], each["datatype"]) for each in inputs] == [
        ("delay", "FP32"),
        ("wind", "FP32"),
        ("carrier", "BYTES"),
        ("origin", "BYTES"),
    ]
    assert outputs == [{"name": "probability", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize(
    ("schema", "changed", "words"),
    [
        (IMAGE, {"channels": 4}, "schema.json: channels: Input should be 1 or 3; found 4"),
        (IMAGE, {"height": 0}, "schema.json: height: Input should be greater than 0; found 0"),
        (IMAGE, {"classes": ["cat"]}, r"1 classes, but probabilities is \[2\]"),
        (IMAGE, {"outputs": []}, "schema.json: outputs: "),
        (IMAGE, {"colour": 1}, "schema.json: colour: Extra inputs are not permitted; found 1"),
        (IMAGE, {"kind": "picture"}, "it must be an object with a kind: table, image, text, sequence, tensors"),
        (TEXT, {"buckets": [8, 4]}, "schema.json: buckets: .*buckets must rise"),
        (TEXT, {"max_tokens": 9}, "the last bucket must hold 9 tokens"),
        (TEXT, {"classes": ["good", "bad", "ugly"]}, "3 classes, but probabilities is"),
        (SEQUENCE, {"min_steps": 7}, "7 to 6 steps do not fit the last bucket"),
        (SEQUENCE, {"features": []}, "schema.json: features: "),
        (TENSORS, {"inputs": [{"name": "x", "datatype": "BYTES", "shape": []}]}, "a program has no tensors of BYTES"),
        (TENSORS, {"inputs": [{"name": "x", "datatype": "BF16", "shape": []}]}, "a program has no tensors of BF16"),
        (TENSORS, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}, "schema.json: inputs.0.shape.0: "),
        (
            TENSORS,
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 0]}]},
            "schema.json: inputs.0.shape.1: .*at least one value",
        ),
        (TENSORS, {"inputs": [{"name": "x", "datatype": "FP32", "shape": []}] * 2}, "two inputs have the same name"),
    ],
)
def test_wrong_schema_is_refused_in_words(schema: Any, changed: dict[str, Any], words: str) -> None:
    text = orjson.dumps({**orjson.loads(schema.to_json()), **changed})
    with pytest.raises(ArchiveUnusable, match=words):
        read_schema(text)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"3", b'{"kind": []}'])
def test_what_is_no_schema_is_refused(text: bytes) -> None:
    with pytest.raises(ArchiveUnusable, match=r"schema\.json cannot be read"):
        read_schema(text)


def test_schema_of_another_kind_is_refused_by_a_handler() -> None:
    with pytest.raises(ArchiveUnusable, match=r"schema\.json: kind: Input should be 'image'; found 'text'"):
        ImageSchema.from_json(TEXT.to_json())
