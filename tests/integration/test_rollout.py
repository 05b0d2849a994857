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
        assert newest(running).state == state.split()[0] or state == "ROLLING_BACK"
        if then == "resume" and newest(running).state != "PROMOTED":
            assert killed_rollout(running, "0", "never").stdout == "PROMOTED\n"
            wait_for(lambda: weights(running) == {2: 100, 1: 0}, 10)
        assert rolled_back_seconds(running) < 1
        wait_for(lambda: weights(running) == {1: 100}, 30)
    assert newest(running).state == "ROLLED_BACK"
