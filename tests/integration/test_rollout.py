"""Rollouts and rollbacks on a real node under load, with MLflow and Prometheus gone and processes killed."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from deploy.node.desired import Desired, DesiredEndpoint, DesiredVersion, read_actual, write_state
from deploy.programs import environment
from deploy.rollout.ledger import Ledger
from model_store.package import package
from model_store.worker_plan import WorkerPlan
from tests.integration import clients
from tests.integration.clients import Load, Tally
from tests.integration.conftest import Lab, RunningNode, node, wait_until_ready
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]

HURRIED = """
defaults:
  steps:
    - {weight: 30, seconds: 1, requests: 1, give_up_seconds: 3}
    - {weight: 100, seconds: 1, requests: 1, give_up_seconds: 3}
"""


@pytest.fixture(scope="module")
def running(lab: Lab, free_ports: Ports) -> Iterator[RunningNode]:
    """A node with version 1, whose MLflow, Prometheus and Alertmanager do not exist."""
    ports = dict(zip(("mlflow_port", "prometheus_port", "alertmanager_port"), free_ports(3), strict=True))
    with node(lab, free_ports(2), lab.alone(), **ports) as found:
        policy = found.settings.state_dir / "rollout.yaml"
        policy.write_text(HURRIED)
        found.settings = found.settings.model_copy(update={"rollout_config": policy})
        wait_until_ready(found.settings, 1)
        assert shipway(found, "serve", "flights", "1").returncode == 0
        yield found


@pytest.fixture(autouse=True)
def _version_1_alone(running: RunningNode) -> None:
    """Whatever the test before has left."""
    if weights(running) != {1: 100}:
        shipway(running, "rollback", "flights", "--to", "1")
        wait_for(lambda: weights(running) == {1: 100}, 60)


def start(running: RunningNode, module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment(running.settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def shipway(running: RunningNode, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return finished(start(running, "deploy.cli", *arguments))


def killed_rollout(running: RunningNode, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return finished(start(running, "tests.integration.killed_rollout", *arguments))


class Light(Load):
    """Some tens of requests a second: what is tested beside it needs the processor too."""

    def take(self) -> bool:
        time.sleep(0.02)
        return super().take()


@contextlib.contextmanager
def light_load(lab: Lab, running: RunningNode) -> Iterator[Load]:
    """One client that keeps asking; none of its requests may fail."""
    load = Light(running.port, json.dumps(lab.row()).encode(), 10**6, time.monotonic() + 240)
    asking = clients.run(load, [clients.http1])
    try:
        yield load
    finally:
        load.deadline = 0
        tally = Tally.sum(asking.wait(60))
    assert tally.dropped == []
    assert tally.statuses.keys() == {200}


def weights(running: RunningNode) -> dict[int, int]:
    """In force."""
    actual = read_actual(running.settings.actual_file)
    assert actual is not None
    return {one.version: one.weight for one in actual.endpoints[0].versions}


def newest(running: RunningNode) -> Any:
    return Ledger(running.settings.rollouts_dir, "flights").newest()


def rolled_back_seconds(running: RunningNode, *arguments: str) -> float:
    """What `shipway rollback` said that it took."""
    result = shipway(running, "rollback", "flights", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    return float(json.loads(result.stdout.splitlines()[-1])["entry"]["detail"]["seconds"])


@pytest.mark.parametrize(
    "state",
    ["PENDING", "READY", "CANARY 0", "JUDGING 0", "CANARY 1", "JUDGING 1", "PROMOTING", "ROLLING_BACK", "PROMOTED"],
)
@pytest.mark.parametrize("then", ["rollback", "resume"])
def test_a_cli_killed_at_any_step_costs_nothing_and_one_command_ends_it(
    lab: Lab, running: RunningNode, state: str, then: str
) -> None:
    with light_load(lab, running):
        result = killed_rollout(running, "2", *state.split())
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert newest(running).state == state.split(maxsplit=1)[0]
        if then == "resume" and newest(running).state != "PROMOTED":
            end = "ROLLED_BACK" if state == "ROLLING_BACK" else "PROMOTED"
            assert killed_rollout(running, "0", "never").stdout == f"{end}\n"
            wait_for(lambda: weights(running) == {"ROLLED_BACK": {1: 100}, "PROMOTED": {2: 100, 1: 0}}[end], 10)
        if newest(running).state != "ROLLED_BACK":
            assert rolled_back_seconds(running) < 1
        wait_for(lambda: weights(running) == {1: 100}, 30)
    assert newest(running).state == "ROLLED_BACK"


def test_rollback_warm_and_cold_with_mlflow_and_prometheus_gone(lab: Lab, running: RunningNode) -> None:
    with light_load(lab, running):
        assert killed_rollout(running, "2", "never").stdout == "PROMOTED\n"
        assert rolled_back_seconds(running) < 1  # version 1 was warm
        assert newest(running).words == "all traffic is on version 1"
        wait_for(lambda: weights(running) == {1: 100}, 30)
        # Version 2 was unloaded. A bar of 15 s is for a machine that does nothing else, and the bench's to hold.
        assert rolled_back_seconds(running, "--to", "2") < 90
        assert rolled_back_seconds(running, "--to", "1") < 90
        wait_for(lambda: weights(running) == {1: 100}, 30)


def test_without_prometheus_a_rollout_is_held_and_says_what_can_be_done(lab: Lab, running: RunningNode) -> None:
    with light_load(lab, running):
        result = shipway(running, "rollout", "flights", "2", "--json")
        assert result.returncode == 3, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        states = [line["entry"]["state"] for line in lines if "entry" in line]
        assert states == ["PENDING", "READY", "CANARY", "JUDGING", "HELD"]
        assert "--resume" in result.stderr
        assert "shipway rollback flights" in result.stderr
        assert weights(running) == {1: 70, 2: 30}
        again = shipway(running, "rollout", "flights", "2")
        assert (again.returncode, again.stdout) == (1, "")
        assert f"the rollout {newest(running).rollout} of flights is HELD" in again.stderr
        assert shipway(running, "serve", "flights", "2").returncode == 1
        assert shipway(running, "rollout", "flights", "--resume").returncode == 3
        assert rolled_back_seconds(running) < 1


@pytest.mark.parametrize(
    ("number", "code", "left"),
    [(signal.SIGINT, 4, {1: 100}), (signal.SIGTERM, 1, {1: 70, 2: 30}), (signal.SIGKILL, -9, {1: 70, 2: 30})],
)
def test_signals(lab: Lab, running: RunningNode, number: signal.Signals, code: int, left: dict[int, int]) -> None:
    policy = running.settings.rollout_config
    assert policy is not None
    policy.write_text(HURRIED.replace("give_up_seconds: 3", "give_up_seconds: 300"))
    try:
        with light_load(lab, running):
            process = start(running, "deploy.cli", "rollout", "flights", "2")
            wait_for(lambda: newest(running).state == "JUDGING", 60)
            second = shipway(running, "rollout", "flights", "--resume")
            assert second.returncode == 1
            assert f"the process {process.pid} carries out the rollout {newest(running).rollout} now" in second.stderr
            process.send_signal(number)
            result = finished(process)
            assert result.returncode == code, result.stderr
            wait_for(lambda: weights(running) == left, 30)
            if number == signal.SIGTERM:
                assert "shipway rollout flights --resume" in result.stderr
            if code != 4:
                assert rolled_back_seconds(running) < 1
            wait_for(lambda: weights(running) == {1: 100}, 30)
    finally:
        policy.write_text(HURRIED)


def test_a_rollback_elsewhere_ends_a_rollout_that_runs(lab: Lab, running: RunningNode) -> None:
    policy = running.settings.rollout_config
    assert policy is not None
    policy.write_text(HURRIED.replace("give_up_seconds: 3", "give_up_seconds: 300"))
    try:
        with light_load(lab, running):
            process = start(running, "deploy.cli", "rollout", "flights", "2")
            wait_for(lambda: newest(running).state == "JUDGING", 60)
            assert rolled_back_seconds(running) < 1
            result = finished(process)
            assert result.returncode == 4
            assert f"has taken the rollout {newest(running).rollout} in hand" in result.stderr
    finally:
        policy.write_text(HURRIED)


def test_a_version_that_was_packaged_anew_is_drained_and_loaded_anew(lab: Lab, running: RunningNode) -> None:
    settings = lab.settings
    again = package(
        "models:/flights/2",
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
        plan=WorkerPlan(threads=2),
    )
    assert again.digest != lab.second.digest
    try:
        with light_load(lab, running):
            for digest in (lab.second.digest, again.digest):
                wanted = beside(lab, digest)
                write_state(running.settings.desired_file, Desired(endpoints=(wanted,)))
                assert wait_for(partial(loaded, running, digest), 90) == {"1": 100, "2": 0}
                answered = clients.post(running.port, "/predictions/flights/2", lab.row())
                assert (answered[0], answered[1]["x-shipway-digest"]) == (200, digest)
    finally:
        again.archive.unlink()
        write_state(running.settings.desired_file, lab.alone())
        wait_for(lambda: weights(running) == {1: 100}, 30)


def beside(lab: Lab, digest: str) -> DesiredEndpoint:
    """Version 2 as this archive, which only those get who ask for it."""
    versions = ((1, lab.first.digest, 100), (2, digest, 0))
    return DesiredEndpoint(
        model="flights",
        versions=tuple(DesiredVersion(version=v, digest=found, weight=weight) for v, found, weight in versions),
    )


def loaded(running: RunningNode, digest: str) -> dict[str, int] | None:
    """The weights, once the node is ready with this archive of version 2."""
    actual = read_actual(running.settings.actual_file)
    assert actual is not None
    versions = actual.endpoints[0].versions
    ready = actual.ready and digest in {one.digest for one in versions}
    return {str(one.version): one.weight for one in versions} if ready else None
