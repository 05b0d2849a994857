"""One laboratory for the whole run: the real stack with two versions of the flights model, made as users make them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from deploy import stack
from deploy.node.desired import (
    Actual,
    Desired,
    DesiredEndpoint,
    DesiredVersion,
    read_actual,
    write_state,
)
from deploy.settings import Settings
from model_store.archive import read_member
from model_store.fitting import Plan
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import PackagedVersion, package
from model_store.signing import create_key
from model_store.training import train
from tests.stacks import free_stack_ports
from tests.waiting import wait_for

READY_WITHIN_SECONDS = 120.0


@dataclass(frozen=True)
class Lab:
    """A running stack in which `flights` version 1 has all traffic and version 2 is loaded beside it."""

    settings: Settings
    first: PackagedVersion
    second: PackagedVersion
    golden: dict[str, Any]
    """Version 1's golden set: an Open Inference request, and the outputs that belong to it."""

    @property
    def port(self) -> int:
        return self.settings.http_port

    def row(self, index: int = 0) -> dict[str, Any]:
        """One golden row as plain columns."""
        return {tensor["name"]: tensor["data"][index] for tensor in self.golden["request"]["inputs"]}

    def expected(self) -> list[float]:
        data: list[float] = self.golden["response"]["outputs"][0]["data"]
        return data

    def alone(self) -> Desired:
        """Version 1 and nothing else."""
        version = DesiredVersion(version=1, digest=self.first.digest, weight=100)
        return Desired(endpoints=(DesiredEndpoint(model="flights", versions=(version,)),))

    def desired(self, first: int, second: int) -> Desired:
        """Both versions, with these weights."""
        versions = tuple(
            DesiredVersion(version=packaged.version, digest=packaged.digest, weight=weight)
            for packaged, weight in ((self.first, first), (self.second, second))
        )
        return Desired(endpoints=(DesiredEndpoint(model="flights", versions=versions),))


@dataclass
class RunningNode:
    """A node of a test's own, from the laboratory's archives."""

    settings: Settings
    process: "subprocess.Popen[bytes]"

    @property
    def port(self) -> int:
        return self.settings.http_port

    def kill(self) -> None:
        """End it without a warning, if it still runs, and wait until what it started has ended too."""
        # That ends with it, but not before it, and writes into the directory until then.
        started = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(started, timeout=10)

    def start_again(self) -> None:
        """After it has ended, with the same settings."""
        self.process = _started(self.settings)

    def children(self, part: str) -> list[psutil.Process]:
        """Descendants whose command line contains `part`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if part in " ".join(child.cmdline()):
                    found.append(child)
        return found


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # short, for unix sockets
    settings = Settings.model_validate({"state_dir": directory, **free_stack_ports()})
    quiet = Console(file=StringIO())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            stack.up(settings, quiet)
            create_key(settings.signing_key, settings.trust_dir)
            first, second = (_made(settings, seed) for seed in (0, 1))
            golden = json.loads(read_member(first.archive, "golden.json"))
            found = Lab(settings, first, second, golden)
            write_state(settings.desired_file, found.desired(100, 0))
            wait_until_ready(settings, 2)
            yield found
        finally:
            stack.down(settings, quiet)
            shutil.rmtree(directory)


def _made(settings: Settings, seed: int) -> PackagedVersion:
    version = train(tracking_uri=settings.mlflow_uri, plan=Plan(epochs=2, batch_rows=256, max_rows=6000, seed=seed))
    return package(
        f"models:/flights/{version.version}",
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
    )


@contextlib.contextmanager
def node(lab: Lab, ports: list[int], desired: Desired, **changes: object) -> Iterator[RunningNode]:
    """A node process of its own; killed at the end if it still runs. `changes` are settings."""
    directory = Path(tempfile.mkdtemp(prefix="sn-", dir="/tmp"))
    given: Mapping[str, object] = {
        "state_dir": directory,
        "http_port": ports[0],
        "metrics_port": ports[1],
        "archives_dir": lab.settings.archives_dir,
        "trust_dir": lab.settings.trust_dir,
        **changes,
    }
    settings = Settings.model_validate(given)
    write_state(settings.desired_file, desired)
    running = RunningNode(settings, _started(settings))
    try:
        yield running
    finally:
        running.kill()
        shutil.rmtree(directory)


def _started(settings: Settings) -> "subprocess.Popen[bytes]":
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SHIPWAY_")}
    with (settings.state_dir / "node.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "node"],
            stdout=log,
            stderr=log,
            env={**outside, **settings.as_environment()},
        )


def wait_until_ready(settings: Settings, versions: int) -> Actual:
    """The node's own word that it serves `versions` versions."""

    def ready() -> Actual | None:
        actual = read_actual(settings.actual_file)
        if actual is None or not actual.ready:
            return None
        served = sum(len(endpoint.versions) for endpoint in actual.endpoints)
        return actual if served == versions else None

    return wait_for(ready, READY_WITHIN_SECONDS)


def samples(settings: Settings) -> dict[str, float]:
    """The node's metrics by series, as written: `name{labels}`."""
    with urllib.request.urlopen(f"{settings.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("shipway_")}
