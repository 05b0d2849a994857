"""The second registration of an archive: its own name and plan, and a judgement of what it explains."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from deploy.errors import ExplainerFailed
from deploy.node.explainer import judge, last_row, unpack_apart
from model_store.archive import TORCHSERVE_MANIFEST, write


def test_archive_is_unpacked_under_another_name_with_one_worker_and_no_batches(tmp_path: Path) -> None:
    plan = {"minWorkers": 4, "maxWorkers": 4, "batchSize": 64, "maxBatchDelay": 1, "jobQueueSize": 1000}
    manifest = {"model": {"modelName": "flights", "modelVersion": "2", "handler": "handler.py"}, "archiverVersion": "1"}
    members = {
        TORCHSERVE_MANIFEST: json.dumps(manifest).encode(),
        "model-config.yaml": yaml.safe_dump(plan).encode(),
        "program.json": b"{}",
    }
    write(tmp_path / "flights-explainer-2-abc.mar", members)
    directory = unpack_apart(tmp_path / "flights-explainer-2-abc.mar")
    found = json.loads((directory / TORCHSERVE_MANIFEST).read_bytes())
    assert found == {**manifest, "model": {**manifest["model"], "modelName": "flights-explainer"}}  # type: ignore[dict-item]
    assert yaml.safe_load((directory / "model-config.yaml").read_text()) == {
        **plan,
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "jobQueueSize": 16,
    }
    assert (directory / "program.json").read_bytes() == b"{}"


def test_last_row_of_every_tensor_is_asked_for() -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [3], "data": [1.0, None, 3.0]},
        {"name": "b", "datatype": "FP32", "shape": [3, 1, 2], "data": [1, 2, 3, 4, 5, 6]},
    ]
    assert last_row({"id": "7", "inputs": inputs}) == {
        "id": "7",
        "inputs": [{**inputs[0], "shape": [1], "data": [3.0]}, {**inputs[1], "shape": [1, 1, 2], "data": [5, 6]}],
    }


def explanation(**changed: float) -> bytes:
    found: dict[str, Any] = {"output": "p", "value": 0.7, "baseline_value": 0.2, "gap": 0.001, "tolerance": 0.005}
    return orjson.dumps({"explanations": [{**found, **changed}]})


@pytest.mark.parametrize("gap", [0.0, -0.004, 0.049])
def test_explanation_that_adds_up_passes(gap: float) -> None:
    judge(200, explanation(gap=gap))


def test_tiny_difference_may_be_missed_within_tolerance() -> None:
    judge(200, explanation(value=0.2, gap=0.004))


def test_explanation_that_misses_the_difference_does_not() -> None:
    words = "the attributions of output p add up to 0.4, its difference to the baseline's is 0.5"
    with pytest.raises(ExplainerFailed, match=words):
        judge(200, explanation(gap=-0.1))


def test_refusal_is_repeated() -> None:
    with pytest.raises(ExplainerFailed, match=r"it answered 500: .*Strange cannot be explained"):
        judge(500, b'{"error": "Strange cannot be explained"}')
