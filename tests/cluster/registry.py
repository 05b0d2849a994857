"""An MLflow server that pods reach, with versions of the flights model: some good, some not."""

import dataclasses
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploy.node.torchserve import free_ports
from handlers.protocol.messages import ModelInferRequest
from model_store.archive import pack, read_member, read_members
from model_store.describing import opened
from model_store.faulty import KINDS, members_of_kind
from model_store.fitting import Plan
from model_store.golden import GOLDEN, Inputs, answered
from model_store.mlflow_environment import ENVIRONMENT
from model_store.package import package
from model_store.registry import Registry
from model_store.signing import create_key
from model_store.training import train
from tests.cluster.steady import Question
from tests.waiting import wait_for

MODEL = "flights"
UNREADY = "unready"
"""A kind of version that no node ever calls ready: it does not answer its golden set."""
READY_WITHIN_SECONDS = 120.0


@dataclass(frozen=True)
class Version:
    """A version in the registry, with its archive."""

    number: int
    digest: str
    archive: Path

    @cached_property
    def golden(self) -> dict[str, Any]:
        """An Open Inference request, and the outputs that belong to it."""
        found: dict[str, Any] = json.loads(read_member(self.archive, GOLDEN))
        return found

    def answers(self, inputs: Inputs) -> list[float]:
        """The first output for these inputs, computed here."""
        with opened(read_members(self.archive)) as handler:
            found: list[float] = np.ravel(answered(handler, inputs)[0].values).tolist()
        return found


def questions(versions: Sequence[Version], rows: int = 5) -> list[Question]:
    """Some rows of the first one's golden set, each with what every version answers."""
    asked = versions[0].golden["request"]["inputs"]
    found = []
    for row in range(rows):
        inputs = [{**one, "shape": [1], "data": one["data"][row : row + 1]} for one in asked]
        message = ModelInferRequest(model_name=MODEL)
        for one in inputs:
            tensor, (value,) = message.inputs.add(name=one["name"], datatype=one["datatype"], shape=[1]), one["data"]
            if one["datatype"] == "BYTES":
                tensor.contents.bytes_contents.append(value.encode())
            else:
                tensor.contents.fp32_contents.append(float("nan") if value is None else value)
        expected = {version.number: version.answers(inputs) for version in versions}
        found.append(Question(json.dumps({"inputs": inputs}).encode(), message.SerializeToString(), expected))
    return found


@dataclass
class Mlflow:
    """A real MLflow server, which can be stopped and started again with all it has."""

    host: str
    directory: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "model_store.mlflow_server", "server", "--workers", "1"),
            *("--host", self.host, "--port", str(self.port), "--allowed-hosts", "*"),
            *("--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db"),
            *("--serve-artifacts", "--artifacts-destination", str(self.directory / "artifacts")),
        ]
        environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.directory / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self._answers, READY_WITHIN_SECONDS)

    def stop(self) -> None:
        """At once, and with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"MLflow ended: {(self.directory / 'mlflow.log').read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@dataclass
class Store:
    """What a person has who trains and packages: the registry, archives, and a key that signs them."""

    mlflow: Mlflow
    directory: Path
    _made: list[Version] = field(default_factory=list)

    @property
    def archives_dir(self) -> Path:
        return self.directory / "archives"

    @property
    def signing_key(self) -> Path:
        return self.directory / "keys" / "signing.pem"

    @property
    def trust_dir(self) -> Path:
        return self.directory / "trust"

    @cached_property
    def public_key(self) -> str:
        """In PEM."""
        create_key(self.signing_key, self.trust_dir)
        (key,) = self.trust_dir.glob("*.pem")
        return key.read_text()

    def trained(self, seed: int) -> Version:
        """A version that is good, and answers otherwise than one with another seed."""
        plan = Plan(epochs=2, batch_rows=256, max_rows=6000, seed=seed)
        version = train(tracking_uri=self.mlflow.uri, plan=plan)
        packaged = package(
            f"models:/{MODEL}/{version.version}",
            tracking_uri=self.mlflow.uri,
            archives_dir=self.archives_dir,
            signing_key=self.signing_key,
        )
        return Version(packaged.version, packaged.digest, packaged.archive)

    def spoiled(self, good: Version, kind: str) -> Version:
        """The next version of the model: what `good` is, with the fault of this kind (`KINDS`, or UNREADY)."""
        registry = Registry(self.mlflow.uri)
        source = registry.resolve(f"models:/{MODEL}/{good.number}")
        number = registry.register(MODEL, source.model_id, source.run_id, {}).version
        fault = "good" if kind == UNREADY else kind
        members = members_of_kind(read_members(good.archive), fault, MODEL, number)
        if kind == UNREADY:
            members[GOLDEN] = _of_another_model(members[GOLDEN])
        archive, digest = pack(members, MODEL, number, self.archives_dir, self.signing_key)
        registry.log_archive(dataclasses.replace(source, version=number), archive, digest)
        return Version(number, digest, archive)


def _of_another_model(golden: bytes) -> bytes:
    document = json.loads(golden)
    for output in document["response"]["outputs"]:
        output["data"] = [value + 1.0 for value in output["data"]]
    return json.dumps(document).encode()


assert UNREADY not in KINDS
