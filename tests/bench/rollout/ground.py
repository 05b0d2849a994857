"""The whole local stack with the flights model in service, and what its rollouts are judged by: fast."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from deploy import demo, stack
from deploy.rollout import here
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.record import Release
from deploy.settings import Settings
from model_store.archive import pack, read_members
from model_store.faulty import members_of_kind
from model_store.fitting import Plan
from model_store.golden import GOLDEN
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import package
from model_store.signing import create_key
from model_store.training import train
from tests.stacks import free_stack_ports

MODEL = "flights"
FAST: Mapping[str, Any] = {
    "steps": [{"weight": weight, "seconds": 5, "requests": 50, "give_up_seconds": 120} for weight in (20, 50, 100)],
    # As long as a rollout of these steps takes.
    "memory": {"seconds": 10},
    # The same few rows over and over: they always drift.
    "on_input_drift": "nothing",
}


@dataclass(frozen=True)
class Ground:
    """A running stack in which version 1 of the flights model has all traffic; version 2 is its copy, not loaded."""

    settings: Settings
    first: Release
    second: Release
    rows: Sequence[Sequence[Mapping[str, Any]]]
    """Golden rows, as the load asks them."""

    @property
    def endpoint(self) -> Endpoint:
        return here.endpoint(self.settings, MODEL)


@contextmanager
def open_ground(policy: Mapping[str, Any] = FAST) -> Iterator[Ground]:
    """In a directory of its own, of which nothing is left afterwards, and no process either."""
    os.environ.update(ENVIRONMENT)  # before mlflow is imported, here and in what is started
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as name:  # short, for unix sockets
        directory, quiet = Path(name), Console(file=StringIO())
        policy_file = directory / "rollouts.yaml"
        policy_file.write_text(yaml.safe_dump({"defaults": dict(policy)}))
        settings = Settings.model_validate(
            {"state_dir": directory, "rollout_config": policy_file, **free_stack_ports()}
        )
        try:
            stack.up(settings, quiet)
            yield _served(settings, quiet)
        finally:
            stack.down(settings, quiet)


def _served(settings: Settings, quiet: Console) -> Ground:
    create_key(settings.signing_key, settings.trust_dir)
    version = train(MODEL, tracking_uri=settings.mlflow_uri, plan=Plan(epochs=2, batch_rows=256, max_rows=6000))
    packaged = package(
        version.uri,
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
    )
    members = read_members(packaged.archive)
    copied = members_of_kind(members, "good", MODEL, 2)
    _, digest = pack(copied, MODEL, 2, settings.archives_dir, settings.signing_key)
    first, second = Release(version=1, digest=packaged.digest), Release(version=2, digest=digest)
    here.serve(settings, MODEL, first)
    demo.wait_until_ready(settings, packaged, quiet)
    return Ground(settings, first, second, golden_rows(members[GOLDEN]))


def golden_rows(golden: bytes) -> list[list[dict[str, Any]]]:
    inputs = json.loads(golden)["request"]["inputs"]
    count = inputs[0]["shape"][0]
    return [[{**tensor, "shape": [1], "data": [tensor["data"][at]]} for tensor in inputs] for at in range(count)]
