"""The deployment plugin through MLflow's own command line, against a real stack."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from deploy.node.desired import Desired, read_desired
from deploy.programs import environment
from deploy.rollout.ledger import Ledger, models
from tests.integration.conftest import Lab, RunningNode, node

POLICY = """\
defaults:
  steps:
    - {weight: 50, seconds: 1, requests: 1000000, give_up_seconds: 3}
    - {weight: 100, seconds: 1, requests: 1000000, give_up_seconds: 3}
"""


@pytest.fixture(scope="module")
def served(lab: Lab, free_ports: Callable[[int], list[int]]) -> Iterator[RunningNode]:
    """A node of its own with the laboratory's archives, registry and Prometheus; nothing is in service."""
    ports = free_ports(2)
    shared = {name: getattr(lab.settings, name) for name in ("mlflow_port", "prometheus_port", "signing_key")}
    with node(lab, ports, Desired(), **shared) as running:
        yield running


@pytest.fixture
def mlflow(served: RunningNode, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """MLflow's command line, as someone types it who has the settings in the environment."""
    policy = tmp_path / "rollout.yaml"
    policy.write_text(POLICY)
    settings = served.settings.model_copy(update={"rollout_config": policy})

    def call(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "mlflow", "deployments", command, "-t", "shipway", *arguments],
            env=environment(settings),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


def rows(lab: Lab, path: Path) -> Path:
    pd.DataFrame([lab.row(0), lab.row(1)]).to_json(path)
    return path


@pytest.mark.timeout(900)
def test_whole_life_of_a_deployment(
    lab: Lab, served: RunningNode, mlflow: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    made = mlflow("create", "--name", "flights", "-m", "models:/flights/1", "-C", "explain=true")
    assert made.returncode == 0, made.stderr
    assert "pytorch deployment flights is created" in made.stdout

    again = mlflow("create", "--name", "flights", "-m", "models:/flights/2")
    assert again.returncode != 0
    assert "a deployment flights exists already, with version 1; update it instead" in again.stderr

    found = mlflow("get", "--name", "flights").stdout
    assert f"'version': 1, 'digest': '{lab.first.digest}', 'weight': 100, 'state': 'READY'" in found
    assert "'name': 'flights'" in mlflow("list").stdout

    asked = rows(lab, tmp_path / "rows.json")
    answer = mlflow("predict", "--name", "flights", "-I", str(asked))
    assert answer.returncode == 0, answer.stderr
    predictions = json.loads(answer.stdout)["predictions"]
    values = [value for one in predictions for value in one.values()]
    assert values == pytest.approx(lab.expected()[:2], abs=1e-4)
    explained = mlflow("explain", "--endpoint", "flights", "-I", str(asked))
    assert explained.returncode == 0, explained.stderr
    assert len(json.loads(explained.stdout)) == 2

    # Nobody asks, so nothing can be known of the candidate: it is held, and that is no success.
    held = mlflow("update", "--name", "flights", "-m", "models:/flights/2")
    assert held.returncode != 0
    assert "version 2 of flights is HELD, and not promoted" in held.stderr
    assert "shipway rollback flights" in held.stderr

    for _ in range(2):
        gone = mlflow("delete", "--name", "flights")
        assert (gone.returncode, gone.stdout.strip()) == (0, "Deployment flights is deleted"), gone.stderr
    assert read_desired(served.settings.desired_file).endpoint("flights") is None
    missing = mlflow("get", "--name", "flights")
    assert "there is no deployment flights; there is none at all" in missing.stderr
    last = Ledger(served.settings.rollouts_dir, "flights").entries()[-1]
    assert (last.kind, last.state, last.champion) == ("rollback", "ROLLED_BACK", None)

    back = mlflow("create", "--name", "flights", "-m", "models:/flights@champion")
    assert back.returncode == 0, back.stderr


@pytest.fixture
def client(served: RunningNode, monkeypatch: pytest.MonkeyPatch) -> object:
    for name, value in served.settings.as_environment().items():
        monkeypatch.setenv(name, value)
    return get_deploy_client("shipway")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda c: c.create_deployment("trains", "models:/flights/1"),
            "the name trains is not usable: found a version",
        ),
        (lambda c: c.create_deployment("trains", "models:/trains/1"), "has no models:/trains/1"),
        (lambda c: c.create_deployment("trains", "runs:/1/model"), "names no registered version"),
        (lambda c: c.create_deployment("trains", "models:/trains/1", flavor="onnx"), "allowed is pytorch"),
        (lambda c: c.create_deployment("trains", "models:/trains/1", config={"gpus": "1"}), "found gpus; allowed is"),
        (lambda c: c.create_deployment("a", "models:/a/1", endpoint="b"), "the deployment's own name, a"),
        (lambda c: c.update_deployment("trains", "models:/trains/1"), "there is no deployment trains"),
        (lambda c: c.predict("trains", pd.DataFrame([{"a": 1}])), "there is no deployment trains"),
        (lambda c: c.predict("trains", 7), "rows must be a DataFrame, a list of dicts, or a dict; found 7"),
        (lambda c: c.predict(inputs=[{}]), "name a deployment or an endpoint"),
        (lambda c: c.create_endpoint("trains"), "an endpoint is made by its first deployment"),
        (lambda c: c.get_endpoint("trains"), "there is no deployment trains"),
    ],
)
def test_what_is_wrong_is_mlflows_exception_in_words(
    client: object, call: Callable[[object], object], words: str
) -> None:
    with pytest.raises(MlflowException, match=words):
        call(client)


def test_endpoint_that_is_not_there_is_deleted_without_a_trace(client: object, served: RunningNode) -> None:
    client.delete_endpoint("trains")  # type: ignore[attr-defined]
    assert "trains" not in models(served.settings.rollouts_dir)


def test_help_says_every_option(mlflow: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    found = mlflow("help").stdout
    assert "explain=true|false" in found
    assert "shadow=PERCENT" in found
