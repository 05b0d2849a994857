"""Images: the same pixels by raw tensors, files and base64, and every bad file its own words."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from handlers import image
from handlers.base import BaseHandler
from handlers.errors import RequestRefused
from handlers.image import ImageHandler, decode
from handlers.kinds import ImageSchema, TensorSpec
from handlers.tensors import Tensor
from tests.unit.handlers import archives
from tests.unit.handlers.archives import (
    Array,
    AskedAgain,
    Start,
    counted,
    oip_binary,
    oip_grpc,
    oip_json,
    outputs,
    plain,
    tensor,
)
from tests.unit.handlers.tiny import Answer, Request, ask

CLASSES = ("dark", "light")
OUTPUTS = (
    TensorSpec(name="probabilities", datatype="FP32", shape=(2,)),
    TensorSpec(name="mean", datatype="FP32", shape=(3,)),
)
SCHEMA = ImageSchema(channels=3, height=4, width=6, classes=CLASSES, outputs=OUTPUTS)
GREY = ImageSchema(channels=1, height=4, width=6, classes=CLASSES, outputs=OUTPUTS[:1])


class Brightness(nn.Module):
    """Raises on an image whose first value is above 249."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Embedding(250, 1)
        nn.init.zeros_(self.first.weight)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean = pixels.to(torch.float32).mean(dim=(2, 3)) / 255
        light = mean.mean(dim=1, keepdim=True) + self.first(pixels[:, 0, 0, 0].to(torch.int64))
        return torch.cat([1 - light, light], dim=1), mean


@pytest.fixture(scope="session")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    return archives.write(tmp_path_factory.mktemp("brightness"), Brightness(), (example,), SCHEMA.to_json())


@pytest.fixture
def handler(brightness: Path, start: Start) -> BaseHandler:
    return start(ImageHandler, brightness)


def pixels(rows: int, seed: int = 0, high: int = 250) -> Array:
    return np.random.default_rng(seed).integers(0, high, (rows, 3, 4, 6)).astype(np.uint8)


def file(array: Array, form: str = "PNG", mode: str | None = None) -> bytes:
    """A file of pixels [channels, height, width], or [height, width]."""
    drawn = Image.fromarray(array.transpose(1, 2, 0) if array.ndim == 3 else array)
    written = io.BytesIO()
    (drawn.convert(mode) if mode else drawn).save(written, form)
    return written.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def raw(array: Array) -> Tensor:
    return tensor("image", array)


def files(*contents: bytes) -> Tensor:
    return tensor("image", list(contents))


def mean(answer: Answer) -> Array:
    """The second output, by whatever protocol."""
    if answer.request.protocol == "predictions":
        document = json.loads(answer.body)
        rows = document if isinstance(document, list) else [document]
        return np.array([row["mean"] for row in rows])
    return outputs(answer)["mean"]


def test_every_way_to_send_pixels_gives_the_same(handler: BaseHandler) -> None:
    given_pixels = pixels(2)
    pngs = [file(each) for each in given_pixels]
    texts = [in_base64(png) for png in pngs]
    two = [
        oip_json(raw(given_pixels)),
        oip_binary(raw(given_pixels)),
        oip_grpc(raw(given_pixels)),
        oip_binary(files(*pngs)),
        oip_grpc(files(*pngs)),
        oip_grpc(tensor("image", pngs, (2, 1))),
        oip_json(files(*(text.encode() for text in texts))),
        plain([{"image": text} for text in texts]),
    ]
    one = [plain({"image": texts[0]}), plain(pngs[0], "image/png"), plain(pngs[0], ""), plain(pngs[0])]
    wanted = given_pixels.mean(axis=(2, 3)) / 255
    answers = ask(handler, *two, *one)
    for answer in answers[: len(two)]:
        np.testing.assert_allclose(mean(answer), wanted, rtol=1e-5)
    for answer in answers[len(two) :]:
        np.testing.assert_allclose(mean(answer), wanted[:1], rtol=1e-5)


def test_plain_answer_names_the_class_and_every_probability(handler: BaseHandler) -> None:
    light = np.full((3, 4, 6), 204, np.uint8)
    one, many = ask(handler, plain(file(light), "image/png"), plain([{"image": in_base64(file(light))}]))
    (row,) = json.loads(many.body)
    assert row == json.loads(one.body)
    assert row == {
        "class": "light",
        "probabilities": {"dark": pytest.approx(0.2), "light": pytest.approx(0.8)},
        "mean": [pytest.approx(0.8)] * 3,
    }


def test_jpeg_is_read(handler: BaseHandler) -> None:
    flat = np.full((3, 8, 16), 100, np.uint8)
    (answer,) = ask(handler, plain(file(flat, "JPEG"), "image/jpeg"))
    np.testing.assert_allclose(mean(answer)[0], [100 / 255] * 3, atol=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("schema", [SCHEMA, GREY])
def test_every_mode_becomes_the_programs_channels(schema: ImageSchema, mode: str) -> None:
    found = decode(file(np.full((3, 4, 6), 255, np.uint8), mode=mode), "body", schema)
    assert found.dtype == np.uint8
    assert found.tolist() == np.full(schema.shape, 255).tolist()


def test_colours_are_not_mixed_up() -> None:
    colours = np.zeros((3, 4, 6), np.uint8)
    colours[0], colours[1], colours[2] = 10, 20, 30
    assert decode(file(colours), "body", SCHEMA).tolist() == colours.tolist()


def test_image_of_another_size_is_stretched() -> None:
    large = np.repeat(np.repeat(pixels(1)[0], 4, axis=1), 4, axis=2)
    found = decode(file(large), "body", SCHEMA)
    assert found.shape == SCHEMA.shape
    np.testing.assert_allclose(found.mean(axis=(1, 2)), large.mean(axis=(1, 2)), atol=2)


def bomb(width: int, height: int) -> bytes:
    """The head of a PNG that says it has so many pixels, and a little of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


PNG = file(pixels(1)[0])
SIXTEEN_BITS = file(np.zeros((4, 6), np.uint16))
RAISING = np.full((1, 3, 4, 6), 255, np.uint8)
BAD: list[tuple[Request, int, str]] = [
    (plain(b"{"), 400, "body: not JSON"),
    (plain([]), 400, "body: empty batch"),
    (plain({"picture": ""}), 400, "row 0: missing image; allowed: image"),
    (
        plain({"image": 3}),
        400,
        "row 0, input 'image': wrong type; found 3; allowed: a string: a PNG or JPEG file in bas",
    ),
    (plain([{"image": in_base64(PNG)}, {"image": "~"}]), 400, "row 1, input 'image': not base64: "),
    (plain({"image": in_base64(PNG)[:-1]}), 400, "row 0, input 'image': not base64: Incorrect padding; found 'iVBOR"),
    (plain({"image": ""}), 400, "row 0, input 'image': not a PNG or JPEG file; found 0 bytes"),
    (plain({"image": in_base64(PNG[:-40])}), 400, "row 0, input 'image': a damaged image: "),
    (plain(PNG[:60], "image/png"), 400, "body: a damaged image: "),
    (plain(b"GIF89a", "image/png"), 400, "body: not a PNG or JPEG file; found 6 bytes; allowed: a PNG or JPEG file"),
    (plain(b"", "image/jpeg"), 400, "body: not a PNG or JPEG file; found 0 bytes"),
    (
        plain(b"GIF89a", "image/gif"),
        415,
        "content-type: 'image/gif' is not read here; allowed: application/json, image",
    ),
    (
        plain(bomb(7072, 7072), "image/png"),
        400,
        "body: an image too large; found 7072 x 7072 pixels; allowed: at most 50",
    ),
    (
        plain(bomb(10_000, 10_000)),
        400,
        "body: an image too large; found more still; allowed: at most 50,000,000 pixels",
    ),
    (oip_grpc(files(bomb(50_000, 50_000))), 400, "row 0, input 'image': an image too large; found more still; allowed"),
    (plain(SIXTEEN_BITS, "image/png"), 400, "body: wrong mode; found 'I;16'; allowed: 1, L, LA, P, RGB, RGBA, CMYK"),
    (oip_binary(files(PNG, b"no")), 400, "row 1, input 'image': not a PNG or JPEG file; found 2 bytes"),
    (oip_grpc(tensor("image", [PNG], (1, 1, 1))), 400, "input 'image': wrong shape; found [1, 1, 1]; allowed: [rows]"),
    (oip_json(files(b"~")), 400, "row 0, input 'image': not base64: "),
    (
        oip_grpc(raw(pixels(1)[:, :, :3])),
        400,
        "input 'image': wrong shape; found [1, 3, 3, 6]; allowed: [rows, 3, 4, 6]",
    ),
    (oip_grpc(raw(pixels(1)[0])), 400, "input 'image': wrong shape; found [3, 4, 6]; allowed: [rows, 3, 4, 6]"),
    (oip_binary(raw(pixels(1).astype(np.float32))), 400, "input 'image': wrong datatype; found 'FP32'; allowed: UINT8"),
    (oip_json(tensor("x", pixels(1))), 400, "inputs: missing image; allowed: image"),
    (oip_grpc(raw(pixels(0))), 400, "inputs: empty batch"),
    (oip_grpc(raw(RAISING)), 500, "the model failed on this input: IndexError"),
    (plain(file(RAISING[0]), "image/png"), 500, "the model failed on this input: IndexError"),
]


def test_every_refusal_is_the_one_that_is_meant(handler: BaseHandler) -> None:
    for request, status, words in BAD:
        (answer,) = ask(handler, request)
        assert (answer.status, answer.error[: len(words)]) == (status, words)


BATCH = 16
GOOD: list[Any] = [
    lambda array: oip_grpc(raw(array)),
    lambda array: oip_binary(files(*map(file, array))),
    lambda array: oip_json(raw(array)),
    lambda array: plain([{"image": in_base64(file(each))} for each in array]),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(chosen=st.dictionaries(st.integers(0, BATCH - 1), st.sampled_from(BAD), max_size=BATCH))
def test_each_item_gets_its_own_answer_whatever_its_neighbours_are(
    handler: BaseHandler, metrics_directory: Path, chosen: dict[int, tuple[Request, int, str]]
) -> None:
    before = counted(metrics_directory)
    good = [pixels(1 + at % 2, seed=at) for at in range(BATCH)]
    answers = ask(handler, *(chosen[at][0] if at in chosen else GOOD[at % 4](good[at]) for at in range(BATCH)))
    for at, answer in enumerate(answers):
        if at in chosen:
            assert answer.status == chosen[at][1]
            assert answer.error.startswith(chosen[at][2])
        else:
            np.testing.assert_allclose(mean(answer), good[at].mean(axis=(2, 3)) / 255, rtol=1e-5)
    assert counted(metrics_directory) - before == sum(1 + at % 2 for at in range(BATCH) if at not in chosen)


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG"]))
    content = bytearray(file(pixels(1)[0], form))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=5)):
        content[at] = value
    try:
        found = decode(bytes(content[: data.draw(st.integers(0, len(content)))]), "body", SCHEMA)
    except RequestRefused:
        return
    assert found.shape == SCHEMA.shape
    assert found.dtype == np.uint8


def test_many_images_go_through_the_program_in_bounded_calls(
    handler: BaseHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ImageHandler.max_rows == 32
    calls: list[int] = []
    program = handler.program

    def watched(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(inputs[0]))
        return program(*inputs)

    monkeypatch.setattr(handler, "program", watched)
    (answer,) = ask(handler, oip_grpc(raw(pixels(70))))
    assert calls == [32, 32, 6]
    np.testing.assert_allclose(mean(answer), pixels(70).mean(axis=(2, 3)) / 255, rtol=1e-5)


def test_limit_of_pixels_is_below_what_pillow_itself_refuses() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert image.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_plain_file_is_captured_as_pixels(asked_again: AskedAgain, brightness: Path) -> None:
    picture = pixels(1)
    found = asked_again(ImageHandler, brightness, plain(file(picture[0]), "image/png"))
    np.testing.assert_allclose(found["mean"], picture.mean(axis=(2, 3)) / 255, rtol=1e-6)
