"""A real model of every kind on one node: each protocol gives the golden outputs, and faults stay alone."""

import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.node.desired import Desired, DesiredEndpoint, DesiredVersion
from handlers.protocol.messages import ModelInferRequest, ModelInferResponse
from handlers.tensors import NUMPY_DTYPES
from model_store import digits, topics, weather
from model_store.archive import read_member
from model_store.members import OwnFiles
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import PackagedVersion, package
from model_store.training import train
from monitoring.rff import CUT, DIMENSIONS
from tests.integration import clients
from tests.integration.clients import post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready

Ports = Callable[[int], list[int]]

pytestmark = pytest.mark.timeout(600)  # the first test waits for seven models to be trained and loaded

TRAINED = {
    "delays": None,
    "digits": digits.Plan(epochs=1),
    "sentences": None,
    "topics": topics.Plan.small(),
    "weather": weather.Plan.small(),
}
KINDS = (*TRAINED, "plain")

FRAGILE = """
import os

from handlers import generic


class Fragile(generic.GenericHandler):
    def run(self, inputs):
        if (inputs[0] == 666).any():
            os.kill(os.getpid(), 9)
        if (inputs[0] == 13).any():
            raise RuntimeError("an unlucky number")
        return super().run(inputs)
"""


@dataclass(frozen=True)
class Gallery:
    """A node that serves version 1 of every kind."""

    running: RunningNode
    golden: dict[str, dict[str, Any]]

    @property
    def port(self) -> int:
        return self.running.port

    def row(self, model: str, index: int = 0) -> list[dict[str, Any]]:
        """The golden request's inputs, cut to one row."""
        return [cut(tensor, index) for tensor in self.golden[model]["request"]["inputs"]]

    def expected(self, model: str, index: int = 0) -> list[float]:
        """The first output for that row."""
        data: list[float] = cut(self.golden[model]["response"]["outputs"][0], index)["data"]
        return data


def cut(tensor: dict[str, Any], index: int) -> dict[str, Any]:
    values = len(tensor["data"]) // tensor["shape"][0]
    data = tensor["data"][index * values : (index + 1) * values]
    return {**tensor, "shape": [1, *tensor["shape"][1:]], "data": data}


@pytest.fixture(scope="module")
def gallery(lab: Lab, free_ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    uri = lab.settings.mlflow_uri
    for name, plan in TRAINED.items():
        train(name, tracking_uri=uri, plan=plan)
    script = Path(__file__).with_name("users_models.py")
    subprocess.run([sys.executable, script, uri], env={**os.environ, **ENVIRONMENT}, check=True)
    own = tmp_path_factory.mktemp("own") / "my_handler.py"
    own.write_text(FRAGILE)
    made = {name: packaged(lab, name) for name in KINDS}
    made["weighted"] = packaged(lab, "weighted", OwnFiles(own))
    golden = {name: json.loads(read_member(one.archive, "golden.json")) for name, one in made.items()}
    endpoints = tuple(
        DesiredEndpoint(model=name, versions=(DesiredVersion(version=1, digest=one.digest, weight=100),))
        for name, one in made.items()
    )
    with node(lab, free_ports(2), Desired(endpoints=endpoints)) as running:
        wait_until_ready(running.settings, len(made))
        yield Gallery(running, golden)


def packaged(lab: Lab, model: str, own: OwnFiles | None = None) -> PackagedVersion:
    return package(
        f"models:/{model}/1",
        tracking_uri=lab.settings.mlflow_uri,
        archives_dir=lab.settings.archives_dir,
        signing_key=lab.settings.signing_key,
        own=own,
    )


def over_json(gallery: Gallery, model: str, inputs: list[dict[str, Any]]) -> tuple[int, Any]:
    status, headers, body = post(gallery.port, f"/v2/models/{model}/infer", {"inputs": inputs})
    assert headers["x-shipway-model"] == model
    return status, json.loads(body)


def over_binary(gallery: Gallery, model: str, inputs: list[dict[str, Any]]) -> tuple[int, Any]:
    described, tail = [], b""
    for tensor in inputs:
        data = raw(tensor)
        head = {name: tensor[name] for name in ("name", "datatype", "shape")}
        described.append({**head, "parameters": {"binary_data_size": len(data)}})
        tail += data
    start = json.dumps({"inputs": described}).encode()
    headers = {"inference-header-content-length": str(len(start)), "content-type": "application/octet-stream"}
    status, _, body = post(gallery.port, f"/v2/models/{model}/infer", start + tail, headers)
    return status, json.loads(body)


def over_grpc(gallery: Gallery, model: str, inputs: list[dict[str, Any]]) -> tuple[int, Any]:
    message = ModelInferRequest(model_name=model)
    for tensor in inputs:
        message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        message.raw_input_contents.append(raw(tensor))
    answer = ModelInferResponse.FromString(clients.call(gallery.port, "ModelInfer", message.SerializeToString()))
    outputs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return 200, {"outputs": [{"data": np.frombuffer(data, NUMPY_DTYPES[o.datatype])} for o, data in outputs]}


def raw(tensor: dict[str, Any]) -> bytes:
    if tensor["datatype"] == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in tensor["data"])
    values = [float("nan") if value is None else value for value in tensor["data"]]
    return np.array(values, NUMPY_DTYPES[tensor["datatype"]]).tobytes()


@pytest.mark.parametrize("ask", [over_json, over_binary, over_grpc])
@pytest.mark.parametrize("model", [*KINDS, "weighted"])
def test_every_protocol_gives_the_golden_outputs(gallery: Gallery, model: str, ask: Any) -> None:
    for index in (0, 1):
        status, answer = ask(gallery, model, gallery.row(model, index))
        assert status == 200, answer
        assert np.allclose(answer["outputs"][0]["data"], gallery.expected(model, index), rtol=1e-3, atol=1e-4)


def test_pictures_in_every_form_are_the_same_picture(gallery: Gallery) -> None:
    (tensor,) = gallery.row("digits")
    file = io.BytesIO()
    Image.fromarray(np.array(tensor["data"], np.uint8).reshape(8, 8)).save(file, "PNG")
    png = file.getvalue()
    forms: list[tuple[object, str]] = [
        (png, "image/png"),
        ({"image": base64.b64encode(png).decode()}, "application/json"),
    ]
    wanted = str(int(np.argmax(gallery.expected("digits"))))
    for body, kind in forms:
        status, _, answer = post(gallery.port, "/predictions/digits", body, {"content-type": kind})
        assert (status, json.loads(answer)["class"]) == (200, wanted)


def test_many_rows_of_one_request_come_back_in_their_order(gallery: Gallery) -> None:
    texts = gallery.golden["sentences"]["request"]["inputs"][0]["data"]
    status, _, body = post(gallery.port, "/predictions/sentences", [{"text": text} for text in texts])
    assert status == 200, body
    found = np.array([row["embedding"] for row in json.loads(body)])
    expected = np.reshape(gallery.golden["sentences"]["response"]["outputs"][0]["data"], found.shape)
    assert ((found * expected).sum(axis=1) > 0.999).all()


FAULTS: dict[str, tuple[object, str]] = {
    "delays": ({"dep_delay": 1}, "missing"),
    "digits": ({"image": "AAAA"}, "image"),
    "sentences": ({"text": ""}, "empty text"),
    "topics": ({"text": 5}, "wrong type"),
    "weather": ({"history": [[1, 2]]}, "history"),
    "plain": ([[1, 2]], "features"),
}


@pytest.mark.parametrize("model", KINDS)
def test_of_sixteen_at_once_the_wrong_ones_fail_alone(gallery: Gallery, model: str) -> None:
    body, words = FAULTS[model]

    def one(number: int) -> tuple[int, Any]:
        if number % 3 == 0:
            status, _, answer = post(gallery.port, f"/predictions/{model}", body)
            return status, json.loads(answer)
        ask = (over_json, over_binary, over_grpc)[number % 3]
        return ask(gallery, model, gallery.row(model))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(16)))
    for number, (status, answer) in enumerate(answers):
        if number % 3 == 0:
            assert status == 400, answer
            assert words in answer["error"]
        else:
            assert status == 200, answer
            assert np.allclose(answer["outputs"][0]["data"], gallery.expected(model), rtol=1e-3, atol=1e-4)


COUNTED = {
    "delays": {"distance", "arr_delay"},
    "digits": {"brightness", "class", "confidence", "entropy"},
    "sentences": {"tokens"},
    "topics": {"tokens", "class", "confidence", "entropy"},
    "weather": {"steps", "last temp", "temperature mean"},
    "plain": set[str](),
}
"""Some features of every kind, or all of them."""


@pytest.mark.parametrize("model", KINDS)
def test_every_kind_counts_what_it_is_asked(gallery: Gallery, model: str) -> None:
    before = samples(gallery.running.settings)
    for index in (0, 1):
        over_json(gallery, model, gallery.row(model, index))
    after = samples(gallery.running.settings)
    rise = {name: value - before[name] for name, value in after.items() if f'model="{model}",version="1"' in name}
    assert rise[f'shipway_rows_total{{model="{model}",version="1"}}'] == 2
    counts: dict[str, float] = {}
    for name, value in rise.items():
        if found := re.match(r'shipway_feature_rows_total\{.*feature="([^"]*)"', name):
            counts[found[1]] = counts.get(found[1], 0) + value
    assert counts.keys() >= COUNTED[model]
    assert set(counts.values()) <= {2}
    sums = [value for name, value in rise.items() if name.startswith("shipway_rff_sum_total")]
    assert len(sums) == (DIMENSIONS if model in ("digits", "sentences") else 0)
    assert all(0 <= value <= 2 * 2 * CUT for value in sums)
    assert not rise.get(f'shipway_monitor_errors_total{{model="{model}",version="1"}}')


def weighted(gallery: Gallery, value: float) -> tuple[int, Any]:
    return over_json(
        gallery,
        "weighted",
        [
            {"name": "values", "datatype": "FP32", "shape": [1, 2], "data": [value, 1]},
            {"name": "weights", "datatype": "INT64", "shape": [1, 2], "data": [2, 3]},
        ],
    )


def test_model_that_fails_on_one_row_answers_its_neighbours(gallery: Gallery) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: weighted(gallery, 13 if number == 5 else 1), range(16)))
    assert [status for status, _ in answers] == [200] * 5 + [500] + [200] * 10
    assert answers[5][1] == {"error": "the model failed on this input: RuntimeError"}


def test_request_that_kills_its_worker_costs_nobody_else_an_answer(gallery: Gallery) -> None:
    """It is asked once more of the worker's successor, ends that one too, and is then given up, alone."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: weighted(gallery, 666 if number == 5 else 1), range(16)))
    assert [status for status, _ in answers] == [200] * 5 + [503] + [200] * 10
    assert answers[5][1] == {"error": "the model's worker ended while it had this request; try again"}
