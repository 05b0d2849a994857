"""An archive's second registration, whose worker explains what the first one predicts: one request at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import yaml

from deploy.errors import ExplainerFailed
from deploy.node.golden import GoldenSet, ask
from handlers.answer import EXPLAINER
from model_store.archive import TORCHSERVE_MANIFEST, unpack

QUEUE_SIZE = 16
"""Explanations that may wait: each takes as long as a hundred predictions or more."""
WORST_GAP = 0.1
"""Of the difference of the two outputs: beyond this it is not a matter of steps that attributions do not add up."""


def explainer_of(model: str) -> str:
    """The name under which a model's explainer is registered."""
    return model + EXPLAINER


def unpack_apart(archive: Path) -> Path:
    """Unpack a verified archive, to be registered by another name, with one worker and no batches."""
    directory = unpack(archive)
    manifest = directory / TORCHSERVE_MANIFEST
    document = json.loads(manifest.read_bytes())
    document["model"]["modelName"] = explainer_of(document["model"]["modelName"])
    manifest.write_text(json.dumps(document, indent=1))
    plan = directory / "model-config.yaml"
    settings = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 1, "jobQueueSize": QUEUE_SIZE}
    plan.write_text(yaml.safe_dump({**yaml.safe_load(plan.read_text()), **settings}, sort_keys=False))
    return directory


async def check(workers: Sequence[Path], golden: GoldenSet) -> None:
    """Have a golden row explained by each worker. Raises ExplainerFailed where attributions do not add up."""
    request = last_row(orjson.loads(golden.request))
    for worker in workers:
        status, answer = await ask(worker, orjson.dumps(request))
        judge(status, answer)


def last_row(request: dict[str, Any]) -> dict[str, Any]:
    """A request of tensors cut down to its last row; the first ones are the golden set's odd ones."""
    inputs = []
    for tensor in request["inputs"]:
        rows, *shape = tensor["shape"]
        inputs.append({**tensor, "shape": [1, *shape], "data": tensor["data"][-(len(tensor["data"]) // rows) :]})
    return {**request, "inputs": inputs}


def judge(status: int, answer: bytes) -> None:
    """Raises ExplainerFailed unless the answer is an explanation that adds up."""
    if status != 200:
        raise ExplainerFailed(f"it answered {status}: {answer[:500].decode(errors='replace')}")
    for found in orjson.loads(answer)["explanations"]:
        difference = found["value"] - found["baseline_value"]
        if abs(found["gap"]) > max(found["tolerance"], WORST_GAP * abs(difference)):
            raise ExplainerFailed(
                f"gradients do not explain this model: the attributions of output {found['output']} add up to "
                f"{difference + found['gap']:.4g}, its difference to the baseline's is {difference:.4g}"
            )
