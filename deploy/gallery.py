"""`shipway demo --all`: one real model of every kind, each trained, registered, packaged, served and asked."""

import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo import post, start, wait_until_ready
from deploy.rollout.here import serve
from deploy.rollout.record import Release
from deploy.settings import Settings
from model_store.archive import read_member
from model_store.package import PackagedVersion, package
from model_store.training import TRAININGS, train

TOO_LONG = frozenset({"resnet"})
"""Trained for minutes, for the bench."""
_SHOWN_CHARACTERS = 60


def run(settings: Settings, console: Console) -> None:
    """Do all of it, model by model.

    Raises:
        ShipwayError, ModelStoreError: whatever stood in the way, in words.
    """
    asking = start(settings, console)
    table = Table(
        "model", "kind", "in service after", "asked", "answered", "version", title="One row of each golden set"
    )
    for name in (name for name in TRAININGS if name not in TOO_LONG):
        console.print(f"\n[bold]{name}[/bold]: {TRAININGS[name][1]}", highlight=False)
        started = time.monotonic()
        packaged = _put_into_service(settings, name, console)
        seconds = time.monotonic() - started
        kind = json.loads(read_member(packaged.archive, "schema.json"))["kind"]
        request = _first_row(packaged)
        answer, headers = post(asking, f"/v2/models/{name}/infer", request)
        table.add_row(
            *(name, kind, f"{seconds:.0f} s", _shown(request["inputs"]), _shown(answer["outputs"])),
            headers["x-shipway-version"],
        )
    console.print()
    console.print(table)


def _put_into_service(settings: Settings, name: str, console: Console) -> PackagedVersion:
    registered = train(name, tracking_uri=settings.mlflow_uri, console=console)
    packaged = package(
        registered.uri,
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
    )
    serve(settings, packaged.model, Release(version=packaged.version, digest=packaged.digest))
    wait_until_ready(settings, packaged, console)
    return packaged


def _first_row(packaged: PackagedVersion) -> dict[str, Any]:
    """An Open Inference request with the first row of the golden set."""
    inputs = json.loads(read_member(packaged.archive, "golden.json"))["request"]["inputs"]
    for tensor in inputs:
        values = len(tensor["data"]) // tensor["shape"][0]
        tensor["data"] = tensor["data"][:values]
        tensor["shape"][0] = 1
    return {"inputs": inputs}


def _shown(tensors: list[dict[str, Any]]) -> str:
    """The first values of the first tensors, each once."""
    words = []
    for tensor in tensors[:2]:
        values = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in tensor["data"][:3])
        words.append(f"{tensor['name']} {tensor['shape'][1:] or ''}: {values}"[:_SHOWN_CHARACTERS])
    return "\n".join(words) + (f"\nand {len(tensors) - 2} more" if len(tensors) > 2 else "")
