"""What is asked of a node, and when it counts as done."""

import os
from pathlib import Path

import pytest

from deploy.errors import LoadFailed
from deploy.node.desired import (
    Actual,
    ActualEndpoint,
    ActualVersion,
    DesiredEndpoint,
    DesiredVersion,
    Mirror,
    State,
    change,
    read_desired,
    serve,
    write_state,
)
from deploy.rollout.driver import NODE_BACK_WITHIN_SECONDS, Local
from deploy.rollout.machine import Traffic
from tests.unit.deploy.rollout.bench import MODEL, ONE, TWO

GONE = 2**22
"""No process has as large an id."""
SPLIT = Traffic(serving=ONE, beside=TWO, weight=25, mirror=10, guarded=True)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path / "desired.json", tmp_path / "actual.json")


def says(directory: Path, *versions: tuple[int, int, State], pid: int = os.getpid(), **extras: object) -> None:
    """The node says: version, weight and state of each, and what else is in force."""
    digests = {1: ONE.digest, 2: TWO.digest}
    found = tuple(
        ActualVersion(version=v, digest=digests[v], weight=weight, state=state, reason="it is told")
        for v, weight, state in versions
    )
    endpoint = ActualEndpoint.model_validate({"model": MODEL, "versions": found, **extras})
    write_state(directory / "actual.json", Actual(pid=pid, ready=True, endpoints=(endpoint,)))


def test_traffic_is_written_as_the_node_reads_it(local: Local, tmp_path: Path) -> None:
    local.ask(MODEL, SPLIT)
    assert read_desired(tmp_path / "desired.json").endpoint(MODEL) == DesiredEndpoint(
        model=MODEL,
        versions=(
            DesiredVersion(version=1, digest=ONE.digest, weight=75),
            DesiredVersion(version=2, digest=TWO.digest, weight=25),
        ),
        fallback=1,
        mirror=Mirror(version=2, percent=10),
    )
    before = (tmp_path / "desired.json").stat().st_ino
    local.ask(MODEL, SPLIT)
    assert (tmp_path / "desired.json").stat().st_ino == before  # the node has nothing to do again
    local.ask(MODEL, Traffic(serving=None))
    assert read_desired(tmp_path / "desired.json").endpoint(MODEL) is None


def test_the_explainer_follows_most_of_the_traffic(local: Local, tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    serve(path, MODEL, 1, ONE.digest, explain=True)
    for traffic, explainer in ((SPLIT, 1), (Traffic(serving=TWO, beside=ONE), 2), (Traffic(serving=ONE), 1)):
        local.ask(MODEL, traffic)
        found = read_desired(path).endpoint(MODEL)
        assert found is not None
        assert found.explainer == explainer


def test_traffic_is_in_force_when_the_node_says_all_of_it(local: Local, tmp_path: Path) -> None:
    mirror = {"version": 2, "percent": 10}
    assert not local.reached(MODEL, SPLIT)  # no node yet
    says(tmp_path, (1, 100, "READY"))  # it has not read that there are two
    assert not local.reached(MODEL, SPLIT)
    says(tmp_path, (1, 100, "READY"), (2, 0, "LOADING"))
    assert not local.reached(MODEL, SPLIT)
    says(tmp_path, (1, 75, "READY"), (2, 25, "READY"), fallback=1)
    assert not local.reached(MODEL, SPLIT)
    says(tmp_path, (1, 75, "READY"), (2, 25, "READY"), fallback=1, mirror=mirror)
    assert local.reached(MODEL, SPLIT)


def test_a_version_that_failed_is_told_with_the_nodes_reason(local: Local, tmp_path: Path) -> None:
    says(tmp_path, (1, 100, "READY"), (2, 0, "FAILED"))
    with pytest.raises(LoadFailed, match="it is told"):
        local.reached(MODEL, SPLIT)
    assert not local.reached(MODEL, Traffic(serving=ONE))  # which is an answer to an earlier question


def test_what_stays_warm_holds_up_no_promotion(local: Local, tmp_path: Path) -> None:
    says(tmp_path, (1, 0, "FAILED"), (2, 100, "READY"))
    assert local.reached(MODEL, Traffic(serving=TWO, beside=ONE))
    says(tmp_path, (1, 0, "READY"), (2, 100, "FAILED"))
    with pytest.raises(LoadFailed, match="it is told"):
        local.reached(MODEL, Traffic(serving=TWO, beside=ONE))


def test_a_node_that_is_gone_gets_time_to_come_back_from_when_it_was_seen_last(tmp_path: Path) -> None:
    clock = iter([0.0, 1000.0, 1000.0 + NODE_BACK_WITHIN_SECONDS, 1001.0 + NODE_BACK_WITHIN_SECONDS])
    local = Local(tmp_path / "desired.json", tmp_path / "actual.json", lambda: next(clock))
    local.ask(MODEL, Traffic(serving=ONE))
    says(tmp_path, (1, 100, "READY"))
    local.serving(MODEL)  # a step is judged for so long, and nothing else asked
    says(tmp_path, (1, 100, "READY"), pid=GONE)
    assert not local.reached(MODEL, Traffic(serving=ONE))
    with pytest.raises(LoadFailed, match=r"no node runs; start it with: shipway up"):
        local.reached(MODEL, Traffic(serving=ONE))


def test_what_serves_is_what_was_asked_for_with_what_the_node_says_of_it(local: Local, tmp_path: Path) -> None:
    assert local.serving(MODEL).champion is None
    local.ask(MODEL, SPLIT)
    says(tmp_path, (1, 75, "READY"), (2, 25, "LOADING"))
    found = local.serving(MODEL)
    assert (found.champion, found.others, found.unready) == (ONE, (TWO,), {2: "it is told"})


def test_other_models_stay(local: Local, tmp_path: Path) -> None:
    other = DesiredEndpoint(model="digits", versions=(DesiredVersion(version=1, digest=ONE.digest, weight=100),))
    change(tmp_path / "desired.json", "digits", lambda _: other)
    local.ask(MODEL, SPLIT)
    assert read_desired(tmp_path / "desired.json").endpoint("digits") == other
