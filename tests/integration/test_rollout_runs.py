"""Copies of a ledger in a real MLflow server: written once however often they are copied, and later if it was down."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from deploy.programs import environment, programs
from deploy.rollout.copies import MLflowCopies, deliver
from deploy.rollout.ledger import ledgers_in
from deploy.rollout.record import Entry, Release
from deploy.settings import Settings
from model_store.mlflow_environment import ENVIRONMENT
from model_store.rollout_runs import EXPERIMENT, RolloutRuns
from tests.unit.deploy.rollout.stories import CANDIDATE, CHAMPION, entry, ledger, rolled_back
from tests.waiting import wait_for

START_SECONDS = 120.0


@contextmanager
def server(settings: Settings) -> Iterator[None]:
    """MLflow as `shipway up` starts it."""
    program = programs(settings)[0]
    settings.mlflow_dir.mkdir(exist_ok=True)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(program.ready_url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with (settings.state_dir / "mlflow.log").open("a") as log:
        process = subprocess.Popen(
            program.command, stdout=log, stderr=log, env=environment(settings), start_new_session=True
        )
        try:
            wait_for(answers, START_SECONDS)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def settings(short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]) -> Iterator[Settings]:
    made = Settings(state_dir=short_directory(), mlflow_port=free_ports(1)[0])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with server(made):
            yield made


@pytest.fixture(scope="module")
def client(settings: Settings) -> mlflow.MlflowClient:
    """A client of the server, in which `flights` has two versions and version 1 is the champion."""
    found = mlflow.MlflowClient(settings.mlflow_uri, settings.mlflow_uri)
    found.create_registered_model("flights")
    run = found.create_run("0")
    for _ in range(2):
        found.create_model_version("flights", f"{run.info.artifact_uri}/model", run.info.run_id)
    found.set_registered_model_alias("flights", "champion", "1")
    return found


def runs(client: mlflow.MlflowClient) -> dict[str, Run]:
    """By the id of their rollout."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.data.tags["shipway.rollout"] for run in found}) == len(found), "two runs of one rollout"
    return {run.data.tags["shipway.rollout"]: run for run in found}


def copy(settings: Settings, directory: Path) -> None:
    found = deliver(ledgers_in(directory), directory, "mlflow", lambda: MLflowCopies(RolloutRuns(settings.mlflow_uri)))
    assert found.problems == ()


def test_rolled_back_rollout_is_one_run_with_its_verdict_and_moves_no_alias(
    settings: Settings, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    found = ledger(tmp_path, *rolled_back())
    copy(settings, tmp_path)
    # As if the notes had been lost by a kill between copying and writing them.
    again = MLflowCopies(RolloutRuns(settings.mlflow_uri))
    for one in found.entries():
        again.copy(one, found.entries()[: one.number])
    run = runs(client)["r1"]
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", 1_000_000, 1_011_000)
    assert run.info.run_name == "flights: 1 to 2"
    assert (run.data.params["champion"], run.data.params["candidate_digest"]) == ("1", CANDIDATE.digest)
    assert (run.data.tags["shipway.state"], run.data.tags["shipway.verdict"]) == ("ROLLED_BACK", "roll back")
    history = client.get_metric_history(run.info.run_id, "errors/share")
    assert [(one.value, one.timestamp, one.step) for one in history] == [(0.1, 1_010_000, 5)]
    paths = [file.path for file in client.list_artifacts(run.info.run_id, "entries")]
    assert paths == [f"entries/{number:05}.json" for number in range(1, 7)]
    text = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path=paths[4], dst_path=str(tmp_path), tracking_uri=settings.mlflow_uri
    )
    assert Entry.model_validate_json(Path(text).read_text()).verdict is not None
    assert client.get_model_version_by_alias("flights", "champion").version == "1"
    for version, role in (("1", "champion"), ("2", "candidate")):
        tags = client.get_model_version("flights", version).tags
        assert (tags["shipway.role"], tags["shipway.state"]) == (role, "ROLLED_BACK")


def test_ledger_that_was_begun_anew_gets_a_run_of_its_own(
    settings: Settings, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    for started in (5000.0, 6000.0):
        directory = tmp_path / str(started)
        ledger(directory, entry("PENDING", started, "flights-r1", champion=None if started > 5500 else CHAMPION))
        copy(settings, directory)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`shipway.rollout` = 'flights-r1'")
    assert sorted(run.info.start_time for run in found) == [5_000_000, 6_000_000]
    for run in found:
        client.delete_run(run.info.run_id)


def test_alias_follows_a_promotion_and_its_rollback(
    settings: Settings, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    found = ledger(tmp_path, entry("PENDING", 2000.0, "r2"), entry("PROMOTED", 2001.0, "r2"))
    copy(settings, tmp_path)
    assert client.get_model_version_by_alias("flights", "champion").version == "2"
    with found.writing() as writer:
        writer.append(entry("ROLLED_BACK", 2002.0, "r3", kind="rollback"))
    copy(settings, tmp_path)
    assert client.get_model_version_by_alias("flights", "champion").version == "1"
    assert runs(client)["r3"].info.run_name == "flights: back from 2 to 1"


def test_version_that_this_mlflow_does_not_know_holds_nothing_up(
    settings: Settings, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    unknown = Release(version=99, digest=CHAMPION.digest)
    ledger(tmp_path, entry("PROMOTED", 3000.0, "r4", candidate=unknown))
    ledger(tmp_path, entry("PROMOTED", 3000.0, "r5", candidate=unknown), model="elsewhere")
    copy(settings, tmp_path)
    assert {"r4", "r5"} <= set(runs(client))
    assert client.get_model_version_by_alias("flights", "champion").version == "1"


def test_command_delivers_what_waited_for_a_server_that_was_down(
    short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]
) -> None:
    settings = Settings(state_dir=short_directory(), mlflow_port=free_ports(1)[0])
    found = ledger(settings.rollouts_dir, *rolled_back())

    def command() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli", "deliver", "--json"],
            env=environment(settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    down = command()
    assert down.returncode == 1
    assert f"no MLflow server answers at {settings.mlflow_uri}" in json.loads(down.stdout)["mlflow"]["problems"][0]
    assert len(found.undelivered("mlflow")) == 6
    with server(settings):
        up = command()
    assert (up.returncode, json.loads(up.stdout)) == (0, {"mlflow": {"copied": 6, "problems": []}}), up.stderr
    assert found.undelivered("mlflow") == []
