"""One death in the middle of a rollout for each program; `make rollout-bench` has all of them at every step."""

from collections.abc import Iterator
from io import StringIO

import pytest
import yaml
from rich.console import Console

from deploy import stack
from deploy.drill.load import Load
from deploy.node.desired import write_state
from deploy.rollout import here
from deploy.rollout.record import Release
from model_store.archive import read_member
from tests.bench.rollout.ground import FAST, Ground, golden_rows
from tests.bench.rollout.kills import VICTIMS, Case, killed, users
from tests.integration.conftest import Lab, wait_until_ready

BACK_WITHIN_SECONDS = 100
"""Whatever else the machine does meanwhile; the bar is the bench's."""

pytestmark = pytest.mark.timeout(600)  # whole rollouts, and a node that starts anew


@pytest.fixture(scope="module")
def ground(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    policy = tmp_path_factory.mktemp("kills") / "rollouts.yaml"
    steps = [{**step, "give_up_seconds": 600} for step in FAST["steps"]]
    policy.write_text(yaml.safe_dump({"defaults": {**FAST, "steps": steps}}))
    settings = lab.settings.model_copy(update={"rollout_config": policy})
    first, second = (Release(version=one.version, digest=one.digest) for one in (lab.first, lab.second))
    here.serve(settings, "flights", first)
    yield Ground(settings, first, second, golden_rows(read_member(lab.first.archive, "golden.json")))
    write_state(settings.desired_file, lab.desired(100, 0))
    wait_until_ready(settings, 2)
    stack.up(lab.settings, Console(file=StringIO()))  # returns when MLflow too is back


@pytest.fixture(scope="module")
def load(ground: Ground) -> Iterator[Load]:
    with users(ground) as found:
        yield found


# What happens to the command is in test_rollout.py.
@pytest.mark.parametrize("victim", [victim for victim in VICTIMS if victim != "command"])
def test_a_death_in_the_middle_of_a_rollout(ground: Ground, load: Load, victim: str) -> None:
    found = killed(ground, load, Case(victim, "JUDGING"), BACK_WITHIN_SECONDS)
    assert found.problems == ()
