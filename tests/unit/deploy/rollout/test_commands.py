"""What can be typed, and how it is refused. The real rollouts are in the integration tests."""

import json
import os
import re
from pathlib import Path

import pytest

from deploy.node.desired import Actual, write_state
from deploy.settings import Settings
from tests.unit.deploy.rollout.stories import entry, ledger
from tests.unit.deploy.test_cli import shipway


def run(state_dir: Path, *arguments: str) -> tuple[int, str]:
    result = shipway(*arguments, SHIPWAY_STATE_DIR=str(state_dir))
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flights",), "give a version or an alias to roll out, or --resume, and not both"),
        (("flights", "2", "--resume"), "give a version or an alias to roll out, or --resume, and not both"),
        (("flights", "--resume", "--shadow", "5%"), "one that is resumed keeps its own"),
        (("flights", "latest"), "'latest' is neither a version, like 7, nor an alias, like @challenger"),
        (("flights", "0"), "'0' is neither a version"),
        (("flights", "2", "--shadow", "101%"), "'101%' is no percentage; allowed are whole ones from 0% to 100%"),
    ],
)
def test_wrong_usage(state_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    code, output = run(state_dir, "rollout", *arguments)
    assert code == 2
    assert words in " ".join(output.split())


def test_what_cannot_be_done_is_said_in_one_message(state_dir: Path) -> None:
    code, output = run(state_dir, "rollout", "flights", "2")
    assert code == 1
    assert "has no archive of flights version 2; found nothing. Make it: shipway package models:/flights/2" in output
    code, output = run(state_dir, "rollout", "flights", "--resume")
    assert code == 1
    assert "flights has no unfinished rollout; there never was one. Begin one with: shipway rollout flights" in output
    code, output = run(state_dir, "rollback", "flights")
    assert code == 1
    assert "(it is not in service). Name one: shipway rollback flights --to VERSION" in output


def test_going_back_from_a_first_version_is_said_as_it_is(state_dir: Path) -> None:
    settings = Settings(state_dir=state_dir)
    ledger(settings.rollouts_dir, entry("PENDING", 1.0, champion=None))
    write_state(settings.actual_file, Actual(pid=os.getpid(), ready=True))
    code, output = run(state_dir, "rollback", "flights")
    assert code == 0
    assert re.search(r"^flights: the endpoint is out of service, after [0-9.]+ s$", output, re.MULTILINE)


def test_a_mistake_in_the_configuration_stops_a_rollout_but_nobody_from_going_back(state_dir: Path) -> None:
    policy = state_dir / "rollout.yaml"
    policy.write_text("defaults: {step: []}")
    results = [
        shipway(*words, SHIPWAY_STATE_DIR=str(state_dir), SHIPWAY_ROLLOUT_CONFIG=str(policy))
        for words in (("rollout", "flights", "--resume"), ("rollback", "flights"))
    ]
    assert [str(policy) in result.stderr for result in results] == [True, False]
    assert "the ledger knows no version of flights" in results[1].stderr


def test_history_of_nothing(state_dir: Path) -> None:
    assert run(state_dir, "history", "flights") == (0, "flights has no history: nothing was rolled out or served yet\n")
    assert json.loads(run(state_dir, "history", "flights", "--json")[1]) == []


def test_going_back_needs_neither_mlflow_nor_what_judges() -> None:
    source = """
import sys
from deploy.rollout import commands, display, here
from deploy.settings import Settings
here.endpoint(Settings(), "flights")
print([name for name in ("mlflow", "torch", "deploy.rollout.judging", "deploy.rollout.gate") if name in sys.modules])
"""
    import subprocess
    import sys

    found = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
