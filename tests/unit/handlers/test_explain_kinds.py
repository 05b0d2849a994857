"""Explanations of real images, texts and sequences, and of tensors: they add up, and name pixels, tokens and steps."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.nn import functional

from handlers.base import BaseHandler
from handlers.generic import GenericHandler
from handlers.image import ImageHandler
from handlers.kinds import TensorSpec, TensorsSchema, TextSchema
from handlers.sequence import SequenceHandler
from handlers.text import TextHandler
from model_store import digits, weather
from model_store.minilm import EMBEDDING, MiniLM
from model_store.minilm_files import load_network, tokenizer_json
from model_store.registering import Trained
from model_store.sentences import embed, tokens
from model_store.weather_data import FEATURES
from tests.unit.handlers.archives import Start, oip_binary, oip_json, plain, tensor, write
from tests.unit.handlers.tiny import Answer, Request, ask

PROTOTYPES = {"network": "Connect a socket to a remote address.", "numbers": "Return the square root of a number."}
"""One sentence for each class of a classifier that needs no training."""


def explained(answer: Answer) -> Any:
    assert answer.status == 200, answer.error
    return json.loads(answer.body)


def with_headers(request: Request, **headers: str) -> Request:
    request.headers.update({f"explain-{name}": value for name, value in headers.items()})
    return request


def check_adds_up(found: dict[str, Any], total: float, value: float, baseline: float) -> None:
    assert found["value"] == pytest.approx(value, rel=1e-5)
    assert found["baseline_value"] == pytest.approx(baseline, rel=1e-4)
    assert found["within_tolerance"]
    assert abs(value - baseline) > 10 * found["tolerance"], "this test would show little"
    assert total == pytest.approx(value - baseline, abs=1.01 * found["tolerance"])


def stored(directory: Path, trained: Trained, free: tuple[int, ...]) -> Path:
    """The archive of a real model, unpacked."""
    golden = orjson.dumps({"request": {"inputs": list(trained.golden)}}, option=orjson.OPT_SERIALIZE_NUMPY)
    example = [torch.from_numpy(array) for array in trained.example]
    files = {**trained.files, "golden.json": golden}
    return write(directory, trained.network, example, trained.schema, free=free, files=files)


@pytest.fixture(scope="module")
def digits_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trained = digits.train(Console(quiet=True), digits.Plan(epochs=4))
    return stored(tmp_path_factory.mktemp("digits"), trained, (0,))


def probabilities(handler: BaseHandler, *inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The program's own first output for one row."""
    row: npt.NDArray[np.float32] = handler.execute(list(inputs))[0][0]
    return row


def test_pixels_add_up_to_the_likeliest_digit(explainer: Start, digits_archive: Path) -> None:
    handler = explainer(ImageHandler, digits_archive)
    images, labels = digits.load()
    for image, label in zip(images[:3], labels[:3], strict=True):
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, "PNG")
        found = explained(ask(handler, plain(file.getvalue(), "image/png"))[0])
        assert (found["output"], found["target"], found["baseline"]) == ("probabilities", str(label), "a black image")
        pixels = np.array(found["attributions"])
        assert pixels.shape == (8, 8)
        value = probabilities(handler, image[None])[label]
        baseline = probabilities(handler, np.zeros_like(image)[None])[label]
        check_adds_up(found, pixels.sum(), value, baseline)
        assert (pixels[image[0] == 0] == 0).all(), "what is black in both has no part in it"


def test_any_digit_may_be_asked_about_and_no_other_class(explainer: Start, digits_archive: Path) -> None:
    handler = explainer(ImageHandler, digits_archive)
    images, _ = digits.load()
    asked = oip_binary(tensor("image", images[:2]))
    asked_for = oip_json(tensor("image", images[:1]), parameters={"target": 7, "steps": 16})
    both, seven = (explained(answer)["explanations"] for answer in ask(handler, asked, asked_for))
    assert [found["target"] for found in both] == ["0", "1"]
    (found,) = seven
    assert (found["target"], found["steps_asked"]) == ("7", 16)
    assert found["value"] == pytest.approx(probabilities(handler, images[:1])[7], rel=1e-5)
    (refused,) = ask(handler, oip_json(tensor("image", images[:1]), parameters={"target": "ten"}))
    assert refused.error.startswith("target: no such class; found 'ten'; allowed: 0, 1, 2")


class Classifier(nn.Module):
    """MiniLM with a head: the nearer a text is to the prototype of a class, the likelier is that class."""

    def __init__(self, encoder: MiniLM) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(EMBEDDING, len(PROTOTYPES), bias=False)
        self.head.weight = nn.Parameter(torch.from_numpy(10 * embed(encoder, list(PROTOTYPES.values()))))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.encoder(input_ids, attention_mask)
        return functional.softmax(self.head(embedding), dim=1), embedding


@pytest.fixture(scope="module")
def text_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = (("probabilities", len(PROTOTYPES)), ("embedding", EMBEDDING))
    schema = TextSchema(
        max_tokens=256,
        buckets=(64, 256),
        classes=tuple(PROTOTYPES),
        outputs=tuple(TensorSpec(name=name, datatype="FP32", shape=(size,)) for name, size in outputs),
    )
    example = [torch.from_numpy(array) for array in tokens(list(PROTOTYPES.values()))]
    return write(
        tmp_path_factory.mktemp("text"),
        Classifier(load_network()).eval(),
        example,
        schema.to_json(),
        free=(0, 1),
        files={"tokenizer.json": tokenizer_json()},
    )


def test_tokens_add_up_to_the_class_of_a_text(explainer: Start, text_archive: Path) -> None:
    handler = explainer(TextHandler, text_archive)
    text = "Naïve sockets listen."
    found = explained(ask(handler, plain({"text": text}))[0])
    assert (found["target"], found["baseline"]) == ("network", "[PAD] in place of every token")
    parts = found["attributions"]
    assert [part["token"] for part in parts] == ["[CLS]", "naive", "sockets", "listen", ".", "[SEP]"]
    assert [text[part["start"] : part["end"]] for part in parts] == ["", "Naïve", "sockets", "listen", ".", ""]
    earned = {part["token"]: part["attribution"] for part in parts}
    assert earned["[CLS]"] == earned["[SEP]"] == 0
    assert max(earned, key=lambda token: earned[token]) == "sockets"
    ids, mask = tokens([text])
    neutral = np.array([[ids[0, 0], 0, 0, 0, 0, ids[0, -1]]])
    value, baseline = (probabilities(handler, each, mask)[0] for each in (ids, neutral))
    check_adds_up(found, sum(earned.values()), value, baseline)


def test_embedding_is_explained_as_a_direction(explainer: Start, text_archive: Path, tmp_path: Path) -> None:
    for file in text_archive.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    schema = json.loads((text_archive / "schema.json").read_bytes())
    (tmp_path / "schema.json").unlink()
    # The first output as an embedding of two values, of no class.
    (tmp_path / "schema.json").write_bytes(orjson.dumps({**schema, "classes": None}))
    handler = explainer(TextHandler, tmp_path)
    found = explained(ask(handler, plain({"text": "a socket"}))[0])
    assert found["target"] == "similarity to itself"
    ids, mask = tokens(["a socket"])
    value = probabilities(handler, ids, mask)
    neutral = probabilities(handler, np.array([[ids[0, 0], 0, 0, ids[0, -1]]]), mask)
    total = sum(part["attribution"] for part in found["attributions"])
    check_adds_up(found, total, float(value @ value), float(neutral @ value))


def test_steps_add_up_to_the_next_hour_of_a_forecast(explainer: Start, tmp_path: Path) -> None:
    trained = weather.train(Console(quiet=True), weather.Plan.small())
    handler = explainer(SequenceHandler, stored(tmp_path, trained, (0, 1)))
    values, lengths = trained.example
    warm = np.nanargmax(np.abs(values[:, -1, 0] - np.nanmedian(values[..., 0])))
    history = values[warm].copy()
    history[3, 0] = np.nan
    rows = [[None if np.isnan(value) else float(value) for value in step] for step in history]
    found = explained(ask(handler, plain({"history": rows}))[0])
    assert (found["output"], found["target"]) == ("temperature", 0)
    earned = found["attributions"]
    assert {name: len(steps) for name, steps in earned.items()} == dict.fromkeys(FEATURES, len(history))
    assert earned["temp"][3] == 0
    medians = np.array(list(found["baseline"].values()), np.float32)
    plain_history = np.where(np.isnan(history), history, medians)
    value, baseline = (probabilities(handler, each[None], lengths[:1])[0] for each in (history, plain_history))
    check_adds_up(found, sum(map(sum, earned.values())), value, baseline)
    last, none = (with_headers(plain({"history": rows}), target=target) for target in ("23", "24"))
    assert explained(ask(handler, last)[0])["target"] == 23
    assert ask(handler, none)[0].error == "target: no such value; found '24'; allowed: 0 to 23"


class Product(nn.Module):
    """Numbers of two precisions, a vector looked up, and a whole number as a plain factor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.vectors = nn.Embedding(10, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        looked_up: torch.Tensor = self.vectors(which).sum(dim=(1, 2))
        return torch.tanh(a.sum(dim=1) * b.float().sum(dim=(1, 2)) / 10) + looked_up


def test_numbers_add_up_and_whole_numbers_stay_as_they_are(explainer: Start, tmp_path: Path) -> None:
    specs = (("a", "FP32", (-1,)), ("b", "FP16", (2, 2)), ("which", "INT64", (2,)))
    schema = TensorsSchema(
        inputs=tuple(TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in specs),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=()),),
    )
    example = (torch.ones(2, 3), torch.ones(2, 2, 2, dtype=torch.float16), torch.zeros(2, 2, dtype=torch.int64))
    directory = write(tmp_path, Product(), example, schema.to_json(), free=(0,))
    handler = explainer(GenericHandler, directory)
    row = {"a": [1.0, -2.0, 4.0], "b": [[1.0, 2.0], [0.5, -0.5]], "which": [3, 4]}
    found = explained(ask(handler, plain(row))[0])
    earned = {name: np.array(values) for name, values in found["attributions"].items()}
    assert {name: values.shape for name, values in earned.items()} == {"a": (3,), "b": (2, 2), "which": (2,)}
    assert (earned["which"] == 0).all()
    which = np.array([row["which"]])
    a, b = np.array([row["a"]], np.float32), np.array([row["b"]], np.float16)
    value, baseline = (float(handler.execute([*pair, which])[0][0]) for pair in ((a, b), (0 * a, 0 * b)))
    check_adds_up(found, sum(values.sum() for values in earned.values()), value, baseline)
    assert "target" not in found
