"""What every kind of handler measures of a batch: names and columns that belong together."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from handlers.base import BaseHandler
from handlers.generic import GenericHandler
from handlers.image import SMALL, ImageHandler, averaging
from handlers.inputs import ragged
from handlers.kinds import ImageSchema, SequenceSchema, TensorSpec, TensorsSchema, TextSchema
from handlers.measured import Measured
from handlers.sequence import SequenceHandler
from handlers.tabular import TabularHandler
from handlers.text import TOKENIZER, TextHandler
from monitoring.rff import MAX_VALUES
from tests.unit.handlers import tiny

Array = npt.NDArray[Any]


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def loaded(handler: BaseHandler, schema: Any, tmp_path: Any) -> BaseHandler:
    (tmp_path / "schema.json").write_bytes(schema.to_json())
    handler.directory = tmp_path
    handler.load()
    return handler


def check(handler: BaseHandler, inputs: list[Array], outputs: list[Array]) -> Measured:
    """What is measured, as wide as its names say, and of each row the same as of this row alone."""
    measured, features, rows = handler.measure(inputs, outputs), handler.features, len(inputs[0])
    assert measured.numbers.shape == (rows, len(features.numbers))
    assert measured.codes.shape == (rows, len(features.categories))
    assert measured.outputs.shape == (rows, len(features.outputs))
    assert measured.numbers.dtype == measured.outputs.dtype == np.float32
    assert (measured.probabilities is not None) == bool(handler.classes)
    for row in range(rows):
        alone = handler.measure([each[row : row + 1] for each in inputs], [each[row : row + 1] for each in outputs])
        for field in ("numbers", "codes", "outputs", "probabilities", "vectors"):
            together = getattr(measured, field)
            if together is not None:
                np.testing.assert_array_equal(getattr(alone, field)[0], together[row])
    return measured


def test_a_table_has_its_columns_and_two_classes_where_it_decides(tmp_path: Any) -> None:
    handler = loaded(TabularHandler(), tiny.SCHEMA, tmp_path)
    numbers, codes = np.ones((3, 2), np.float32), np.ones((3, 2), np.int64)
    likely = np.array([0.25, 1, np.nan], np.float32)
    measured = check(handler, [numbers, codes], [likely])
    assert handler.features.numbers == ("delay", "wind")
    assert list(handler.features.categories) == ["carrier", "origin"]
    assert handler.features.outputs == ("probability",)
    np.testing.assert_array_equal(measured.outputs[:, 0], likely)
    handler.classes = ("on time", "late")
    np.testing.assert_array_equal(
        check(handler, [numbers, codes], [likely]).probabilities, [[0.75, 0.25], [0, 1], [np.nan, np.nan]]
    )


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (24, 40, 3)])
def test_a_picture_has_brightness_and_a_small_grey_one(
    height: int, width: int, channels: Literal[1, 3], tmp_path: Any
) -> None:
    probabilities = spec("probabilities", 2)
    outputs = (probabilities, spec("depth"))
    schema = ImageSchema(channels=channels, height=height, width=width, classes=("a", "b"), outputs=outputs)
    handler = loaded(ImageHandler(), schema, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, channels, height, width)).astype(np.uint8)
    measured = check(handler, [images], [np.full((3, 2), 0.5, np.float32), np.arange(3, dtype=np.float32)])
    assert (handler.features.numbers, handler.features.outputs) == (("brightness",), ("depth",))
    np.testing.assert_allclose(measured.numbers[:, 0], images.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert measured.vectors is not None
    assert measured.vectors.shape == (3, min(height, SMALL) * min(width, SMALL))
    if height == 8:
        np.testing.assert_array_equal(measured.vectors, images.reshape(3, -1))


@pytest.mark.parametrize("pixels", [1, 8, 16, 17, 40, 224])
def test_averages_share_a_pixel_on_a_border_and_leave_the_mean(pixels: int) -> None:
    weights = averaging(pixels)
    assert weights.shape == (min(pixels, SMALL), pixels)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=0), len(weights) / pixels, rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "classes", "counted", "embeds"),
    [
        ((spec("probabilities", 2),), ("a", "b"), (), False),
        ((spec("embedding", 40), spec("length")), None, ("length",), True),
        ((spec("score"),), None, ("score",), False),
    ],
)
def test_a_text_has_its_tokens_and_a_vector_where_it_becomes_one(
    outputs: Sequence[TensorSpec],
    classes: tuple[str, ...] | None,
    counted: tuple[str, ...],
    embeds: bool,
    tmp_path: Any,
) -> None:
    schema = TextSchema(max_tokens=9, buckets=(9,), classes=classes, outputs=tuple(outputs))
    (tmp_path / TOKENIZER).write_bytes(Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).to_str().encode())
    handler = loaded(TextHandler(), schema, tmp_path)
    mask = np.tri(3, 5, 1, dtype=np.int64)
    made = [np.random.default_rng(1).random((3, *one.shape)).astype(np.float32) for one in outputs]
    measured = check(handler, [mask, mask], made)
    assert measured.numbers.tolist() == [[2], [3], [4]]
    assert handler.features.outputs == counted
    assert (measured.vectors is not None) == embeds
    if measured.vectors is not None:
        np.testing.assert_array_equal(measured.vectors, made[0])


def test_a_sequence_has_its_steps_and_what_the_last_one_says(tmp_path: Any) -> None:
    outputs = (spec("next", 24), spec("sure"))
    schema = SequenceSchema(features=("temp", "wind"), min_steps=1, max_steps=4, buckets=(4,), outputs=outputs)
    handler = loaded(SequenceHandler(), schema, tmp_path)
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    lengths = np.array([4, 2, 1])
    values[1, 2:], values[2, 1:], values[2, 0, 1] = np.nan, np.nan, np.nan
    forecast = np.arange(72, dtype=np.float32).reshape(3, 24)
    measured = check(handler, [values, lengths], [forecast, np.ones(3, np.float32)])
    assert handler.features.numbers == ("steps", "last temp", "last wind")
    np.testing.assert_array_equal(measured.numbers, [[4, 6, 7], [2, 10, 11], [1, 16, np.nan]])
    assert handler.features.outputs == ("next mean", "sure")
    np.testing.assert_array_equal(measured.outputs[:, 0], forecast.mean(axis=1))


def tensors(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tmp_path: Any) -> BaseHandler:
    return loaded(GenericHandler(), TensorsSchema(inputs=tuple(inputs), outputs=tuple(outputs)), tmp_path)


def test_tensors_of_few_values_have_each_of_them_by_name(tmp_path: Any) -> None:
    handler = tensors(
        [spec("x", 2, 2), spec("n", datatype="INT64")], [spec("y", 2), spec("z", datatype="BOOL")], tmp_path
    )
    inputs: list[Array] = [np.arange(12, dtype=np.float32).reshape(3, 2, 2), np.arange(3)]
    measured = check(handler, inputs, [np.ones((3, 2), np.float32), np.array([True, False, True])])
    assert handler.features.numbers == ("x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]", "n")
    assert handler.features.outputs == ("y[0]", "y[1]", "z")
    assert measured.numbers[2].tolist() == [8, 9, 10, 11, 2]
    assert measured.outputs[:, 2].tolist() == [1, 0, 1]
    assert measured.vectors is None


def test_tensors_of_many_values_have_their_means_and_are_looked_at_as_a_whole(tmp_path: Any) -> None:
    handler = tensors([spec("x", 30, 50, datatype="FP64"), spec("n", 3)], [spec("y", 17)], tmp_path)
    inputs: list[Array] = [np.random.default_rng(2).random((3, 30, 50)), np.ones((3, 3), np.float32)]
    measured = check(handler, inputs, [np.ones((3, 17), np.float32)])
    assert handler.features.numbers == ("x mean", "n mean")
    assert handler.features.outputs == ("y mean",)
    assert measured.vectors is not None
    assert measured.vectors.shape == (3, 501)  # means of three of 1503
    assert MAX_VALUES == 512


def test_tensors_of_free_shapes_have_their_means(tmp_path: Any) -> None:
    handler = tensors([spec("x", -1, 2)], [spec("y", -1)], tmp_path)
    rows = [np.full((steps, 2), steps, np.float32) for steps in (1, 3, 2)]
    measured = check(handler, [ragged(rows)], [ragged([row[:, 0] * 2 for row in rows])])
    assert measured.numbers.tolist() == [[1], [3], [2]]
    assert measured.outputs.tolist() == [[2], [6], [4]]
    assert measured.vectors is None


def test_what_float32_cannot_hold_is_counted_as_infinite(tmp_path: Any) -> None:
    handler = tensors([spec("x", datatype="FP64")], [spec("y", datatype="FP64")], tmp_path)
    measured = check(handler, [np.array([1e300, -1e300, np.nan])], [np.zeros(3)])
    np.testing.assert_array_equal(measured.numbers[:, 0], [np.inf, -np.inf, np.nan])
