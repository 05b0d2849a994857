"""Rollouts and rollbacks on a real node under load, with MLflow and Prometheus gone and processes killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy.node.desired import read_actual
from deploy.rollout.ledger import Ledger
from tests.integration import clients
from tests.integration.clients import Load, Tally
from tests.integration.conftest import Lab, RunningNode, node, wait_for, wait_until_ready

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


def environment(running: RunningNode) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SHIPWAY_")}
    return {**outside, **running.settings.as_environment()}


def start(running: RunningNode, module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment(running),
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


@contextlib.contextmanager
def light_load(lab: Lab, running: RunningNode) -> Iterator[Load]:
    """One client that keeps asking; none of its requests may fail."""
    load = Load(running.port, json.dumps(lab.row()).encode(), 10**6, time.monotonic() + 240)
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
    "state", ["PENDING", "READY", "CANARY 0", "JUDGING 0", "CANARY 1", "JUDGING 1", "ROLLING_BACK", "PROMOTED"]
)
@pytest.mark.parametrize("then", ["rollback", "resume"])
def test_a_cli_killed_at_any_step_costs_nothing_and_one_command_ends_it(
    lab: Lab, running: RunningNode, state: str, then: str
) -> None:
    with light_load(lab, running):
        if state == "ROLLING_BACK":
            assert killed_rollout(running, "2", "JUDGING", "0").returncode == -signal.SIGKILL
            process = start(running, "tests.integration.killed_rollout", "0", "ROLLING_BACK")
            wait_for(lambda: newest(running).words.startswith("resumed"), 30)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        else:
            result = killed_rollout(running, "2", *state.split())
            assert result.returncode == -signal.SIGKILL, result.stderr
        assert newest(running).state == state.split(maxsplit=1)[0] or state == "ROLLING_BACK"
        if then == "resume" and newest(running).state != "PROMOTED":
            assert killed_rollout(running, "0", "never").stdout == "PROMOTED\n"
            wait_for(lambda: weights(running) == {2: 100, 1: 0}, 10)
        assert rolled_back_seconds(running) < 1
        wait_for(lambda: weights(running) == {1: 100}, 30)
    assert newest(running).state == "ROLLED_BACK"


def test_rollback_warm_and_cold_with_mlflow_and_prometheus_gone(lab: Lab, running: RunningNode) -> None:
    with light_load(lab, running):
        assert killed_rollout(running, "2", "never").stdout == "PROMOTED\n"
        assert rolled_back_seconds(running) < 1  # version 1 was warm
        assert newest(running).words == "all traffic is on version 1"
        wait_for(lambda: weights(running) == {1: 100}, 30)
        assert rolled_back_seconds(running, "--to", "2") < 15  # version 2 was unloaded
        assert rolled_back_seconds(running) < 15
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
