"""Bad versions on a live endpoint under load: each gets its verdict, and nothing of the drill is left."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.drill.drill import SUFFIX, Range, prepared
from deploy.node.desired import read_actual, read_desired
from deploy.programs import environment
from deploy.rollout.ledger import models
from deploy.settings import Settings
from model_store.errors import VersionNotFound
from model_store.registry import Registry
from tests.bench.rollout.ground import FAST
from tests.integration.clients import post
from tests.integration.conftest import Lab

pytestmark = pytest.mark.timeout(600)  # whole rollouts

RATE = 80.0
# By kind: any of these checks must be among those that failed.
BECAUSE = {
    "good": set(),
    "slow": {"slow answers", "latency"},
    "erring": {"errors"},
    "resetting": {"errors"},
    "refusing": {"refused inputs"},
    "dying": {"readiness", "restarts", "errors"},
    "changed": {"predictions"},
    "wrong": {"quality"},
}


@pytest.fixture(scope="module")
def settings(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The laboratory's, judged by a fast policy."""
    policy = tmp_path_factory.mktemp("drill") / "rollouts.yaml"
    policy.write_text(yaml.safe_dump({"defaults": FAST}))
    return lab.settings.model_copy(update={"rollout_config": policy})


@pytest.fixture(scope="class")
def place(settings: Settings) -> Iterator[Range]:
    with prepared(settings, "flights", list(BECAUSE), RATE, lambda *_: None) as found:
        yield found


class TestKinds:
    """One drill of all kinds."""

    @pytest.mark.parametrize("kind", BECAUSE)
    def test_each_version_gets_its_verdict_and_harms_no_more_than_its_share(self, place: Range, kind: str) -> None:
        outcome = place.exercise(kind)
        assert outcome.problems == []
        assert bool(BECAUSE[kind]) == bool(outcome.because)
        assert BECAUSE[kind] & set(outcome.because) or kind == "good"
        if kind in ("good", "slow", "resetting", "dying", "changed", "wrong"):  # of which users get only answers
            assert outcome.harm.failed == 0


def test_nothing_is_left_of_a_drill(lab: Lab, settings: Settings) -> None:
    before = sorted(settings.archives_dir.iterdir())
    command = [str(Path(sys.executable).with_name("shipway")), "drill", "flights", "--only", "erring", "--json"]
    result = subprocess.run(
        [*command, "--rate", str(RATE)],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["kind"], said["expected"], said["problems"]) == ("erring", "ROLLED_BACK", [])
    assert 0 < said["failed"] <= said["candidate"] <= said["allowed"]
    assert sorted(settings.archives_dir.iterdir()) == before
    assert read_desired(settings.desired_file).endpoint("flights" + SUFFIX) is None
    actual = read_actual(settings.actual_file)
    assert actual is not None
    assert [one.model for one in actual.endpoints] == ["flights"]
    assert post(lab.port, f"/predictions/flights{SUFFIX}", lab.row())[0] == 404
    assert post(lab.port, "/predictions/flights", lab.row())[0] == 200
    assert "flights" + SUFFIX not in models(settings.rollouts_dir)
    with pytest.raises(VersionNotFound):
        Registry(settings.mlflow_uri).resolve(f"models:/flights{SUFFIX}/1")


def test_a_model_that_is_not_served_cannot_be_drilled(settings: Settings) -> None:
    command = [str(Path(sys.executable).with_name("shipway")), "drill", "trains"]
    result = subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no version of trains is in service; begin with: shipway serve trains VERSION" in result.stderr
