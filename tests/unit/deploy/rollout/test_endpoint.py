"""Whole rollouts of one endpoint: their ends, people who step in, and a kill at every operation."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.errors import (
    AlreadyServes,
    BreaksClients,
    LeftUnfinished,
    NoGoodVersion,
    NothingToResume,
    RollbackFailed,
    RolloutError,
    RolloutRuns,
    RolloutUnfinished,
    TakenOver,
)
from deploy.node.desired import DesiredEndpoint, DesiredVersion, Mirror, change, serve
from deploy.rollout import run
from deploy.rollout.record import ENDED, Outcome
from tests.unit.deploy.rollout.bench import MODEL, ONE, THREE, TWO, Bench, Killed

STAYS = r"the rollout flights-r2 stays JUDGING .* shipway rollout flights --resume"
STEPS = [*["CANARY", "JUDGING"] * 3, "PROMOTING"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.0)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in the memory: whoever is killed hundreds of times needs no disk that says it has written."""
    with tempfile.TemporaryDirectory(prefix="shipway-", dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Version 1 was put in service."""
    found = Bench(tmp_path)
    put_in_service(found)
    return found


def put_in_service(bench: Bench) -> None:
    path = bench.directory / "desired.json"
    bench.endpoint.adopt(ONE, lambda: serve(path, MODEL, ONE.version, ONE.digest))
    bench.node()


def test_a_good_version_takes_all_traffic_step_by_step(bench: Bench) -> None:
    entry = bench.endpoint.roll_out(TWO)
    assert (entry.state, entry.candidate, entry.champion) == ("PROMOTED", TWO, ONE)
    assert bench.states == ["PROMOTED", "PENDING", "READY", *STEPS, "PROMOTED"]
    assert bench.weights() == {2: 100, 1: 0}  # version 1 stays warm
    assert [told.words for told in bench.told if told.state == "CANARY"] == [
        "step 1 of 3: 5% of the traffic",
        "step 2 of 3: 50% of the traffic",
        "step 3 of 3: 100% of the traffic",
    ]
    assert {entry.rollout for entry in bench.ledger.entries()[1:]} == {"flights-r2"}


def test_the_champion_answers_what_the_candidate_loses_and_gets_no_copies(bench: Bench) -> None:
    seen = []
    bench.meanwhile = lambda name: seen.append(bench.desired()) if name == "judge" else None
    bench.endpoint.roll_out(TWO, shadow=20)
    assert [(found.fallback, found.mirror) for found in seen if found] == [
        (1, Mirror(version=2, percent=20)),
        *[(1, None)] * 3,
    ]
    assert [{one.version: one.weight for one in found.versions} for found in seen if found][:2] == [
        {1: 100, 2: 0},
        {1: 95, 2: 5},
    ]
    ended = bench.desired()
    assert ended is not None
    assert ended.fallback is None


def test_steps_that_cannot_be_carried_out_are_skipped(bench: Bench) -> None:
    bench.largest_share = 50
    assert bench.endpoint.roll_out(TWO).state == "PROMOTED"
    assert bench.states[1:] == ["PENDING", "READY", *["CANARY", "JUDGING"] * 2, "PROMOTING", "PROMOTED"]
    assert bench.left == 1


def test_a_candidate_that_somebody_took_out_of_service_is_not_ready(bench: Bench) -> None:
    path = bench.directory / "desired.json"

    def by_hand(name: str) -> None:
        if name == "tell JUDGING":
            alone = DesiredEndpoint(model=MODEL, versions=(DesiredVersion(version=1, digest=ONE.digest, weight=100),))
            change(path, MODEL, lambda _: alone)

    bench.meanwhile = by_hand
    bench.verdicts = {0: ["roll back"]}
    assert bench.endpoint.roll_out(TWO).state == "ROLLED_BACK"
    assert bench.heard == ["version 2 is not in service any more: somebody else has taken it out"]


@pytest.mark.parametrize(
    ("step", "outcome", "end", "weights"),
    [
        (0, "roll back", "ROLLED_BACK", {1: 100}),
        (2, "roll back", "ROLLED_BACK", {1: 100}),
        (0, "hold", "HELD", {1: 95, 2: 5}),
        (2, "hold", "HELD", {1: 0, 2: 100}),
    ],
)
def test_a_verdict_ends_a_rollout(bench: Bench, step: int, outcome: Outcome, end: str, weights: dict[int, int]) -> None:
    bench.verdicts = {step: ["wait", "wait", outcome]}
    entry = bench.endpoint.roll_out(TWO)
    assert (entry.state, bench.weights()) == (end, weights)
    found = next(one for one in bench.ledger.entries() if one.verdict and one.verdict.outcome == outcome)
    assert found.words == f"the judge says {outcome}"


def test_the_first_version_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    entry = bench.endpoint.roll_out(ONE)
    assert bench.states == ["PENDING", "READY", "PROMOTED"]
    assert "nothing to compare it with" in entry.words
    assert bench.weights() == {1: 100}


def test_a_version_that_would_break_clients_is_refused_unless_that_is_allowed(bench: Bench) -> None:
    bench.breaking = ("the input delay is gone",)
    with pytest.raises(BreaksClients, match=r"the input delay is gone\n.*shipway plan flights 2; .*--allow-breaking"):
        bench.endpoint.roll_out(TWO)
    assert (bench.states, bench.weights()) == (["PROMOTED"], {1: 100})
    assert bench.endpoint.roll_out(TWO, allow_breaking=True).state == "PROMOTED"


def test_what_would_break_clients_is_asked_while_the_ledger_is_free_and_of_whoever_serves(bench: Bench) -> None:
    asked: list[str] = []

    def meanwhile(name: str) -> None:
        if name.startswith("breaks"):
            asked.append(name)
        if name == "breaks 1 2":  # somebody puts another version in service
            path = bench.directory / "desired.json"
            bench.endpoint.adopt(THREE, lambda: serve(path, MODEL, THREE.version, THREE.digest))

    bench.meanwhile = meanwhile
    assert bench.endpoint.roll_out(TWO).champion == THREE
    assert asked == ["breaks 1 2", "breaks 3 2"]


def test_a_version_that_does_not_load_is_taken_back_with_the_nodes_reason(bench: Bench) -> None:
    bench.broken = {2: "it does not reproduce its golden set"}
    entry = bench.endpoint.roll_out(TWO)
    assert bench.states[1:] == ["PENDING", "ROLLING_BACK", "ROLLED_BACK"]
    assert "it does not reproduce its golden set" in bench.ledger.entries()[2].words
    assert (entry.state, bench.weights()) == ("ROLLED_BACK", {1: 100})
    bench.broken = {}
    assert bench.endpoint.roll_out(TWO).state == "PROMOTED"  # an earlier failure says nothing about this attempt


def test_a_first_version_that_does_not_load_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, broken={1: "there is no archive"})
    assert bench.endpoint.roll_out(ONE).state == "ROLLED_BACK"
    assert bench.desired() is None


def test_the_judge_hears_of_a_candidate_without_workers_but_not_of_a_node_that_restarts(bench: Bench) -> None:
    def meanwhile(name: str) -> None:
        if name == "judge" and len(bench.heard) == 0:
            bench.unready = {2: "all its workers died"}
        elif name == "judge" and len(bench.heard) == 1:
            bench.unready = {1: "", 2: ""}
        elif name == "judge" and len(bench.heard) == 2:
            bench.unready = {2: ""}  # which is loaded after the champion
        elif name == "judge":
            bench.unready = {}

    bench.verdicts = {0: ["wait", "wait", "wait", "wait", "roll back"]}
    bench.meanwhile = meanwhile
    bench.endpoint.roll_out(TWO)
    assert bench.heard == ["", "all its workers died", "", "", ""]


def test_one_rollout_at_a_time(bench: Bench) -> None:
    bench.verdicts = {0: ["hold"]}
    bench.endpoint.roll_out(TWO)
    with pytest.raises(RolloutUnfinished, match=r"the rollout flights-r2 of flights is HELD .*--resume; or take it"):
        bench.endpoint.roll_out(THREE)
    with pytest.raises(RolloutUnfinished):
        put_in_service(bench)
    assert bench.weights() == {1: 95, 2: 5}


def test_what_serves_is_not_rolled_out(bench: Bench) -> None:
    with pytest.raises(AlreadyServes):
        bench.endpoint.roll_out(ONE)
    assert bench.states == ["PROMOTED"]


def test_a_live_rollout_is_neither_resumed_nor_doubled(bench: Bench) -> None:
    refused: list[str] = []

    def meanwhile(name: str) -> None:
        if name == "judge" and not refused:
            for again in (bench.endpoint.resume, lambda: bench.endpoint.roll_out(THREE)):
                with pytest.raises(RolloutRuns) as error:
                    again()
                refused.append(str(error.value))

    bench.meanwhile = meanwhile
    assert bench.endpoint.roll_out(TWO).state == "PROMOTED"
    assert refused == [refused[0]] * 2
    assert f"the process {os.getpid()} carries out the rollout flights-r2 now" in refused[0]


@pytest.mark.parametrize("at", ["tell PENDING", "reached", "tell CANARY", "judge"])
def test_a_rollback_elsewhere_wins(bench: Bench, at: str) -> None:
    done: list[str] = []

    def meanwhile(name: str) -> None:
        if name == at and not done and bench.ledger.newest() != ended:
            done.append(name)
            assert bench.endpoint.roll_back().state == "ROLLED_BACK"

    ended = bench.ledger.newest()
    bench.meanwhile = meanwhile
    with pytest.raises(TakenOver, match=r"@.* has taken the rollout flights-r2 in hand: it is ROLLED_BACK now"):
        bench.endpoint.roll_out(TWO)
    assert bench.states[-2:] == ["ROLLING_BACK", "ROLLED_BACK"]
    assert bench.weights() == {1: 100}


@pytest.mark.parametrize("looks", [0, 4, 12])
def test_an_interrupted_rollout_is_taken_back(bench: Bench, looks: int) -> None:
    bench.verdicts = {0: ["wait"]}
    bench.wishes = [*[""] * looks, "roll back"]  # type: ignore[list-item]
    assert bench.endpoint.roll_out(TWO).state == "ROLLED_BACK"
    assert bench.weights() == {1: 100}


def test_a_rollout_told_to_end_leaves_everything_as_it_is(bench: Bench) -> None:
    bench.verdicts = {0: ["wait"]}
    bench.wishes = [*[""] * 12, "leave"]  # type: ignore[list-item]
    with pytest.raises(LeftUnfinished, match=STAYS):
        bench.endpoint.roll_out(TWO)
    assert bench.weights() == {1: 95, 2: 5}
    bench.verdicts = {}
    assert bench.endpoint.resume().state == "PROMOTED"


def test_a_held_rollout_is_judged_on(bench: Bench) -> None:
    bench.verdicts = {1: ["hold", "promote"]}
    assert bench.endpoint.roll_out(TWO).state == "HELD"
    assert bench.endpoint.resume().state == "PROMOTED"
    assert bench.states[1:] == ["PENDING", "READY", *STEPS[:4], "HELD", *STEPS[2:], "PROMOTED"]


def test_a_resumed_rollout_keeps_its_shadow(bench: Bench) -> None:
    bench.verdicts = {0: ["hold", "promote"]}
    bench.endpoint.roll_out(TWO, shadow=20)
    bench.endpoint.resume()
    words = [entry.words for entry in bench.ledger.entries() if entry.state == "CANARY"]
    assert words[1].startswith("resumed: step 1 of 4: 20% of the requests are copied")
    assert words[-1] == "step 4 of 4: 100% of the traffic"


def test_an_ended_rollout_is_not_resumed(bench: Bench) -> None:
    with pytest.raises(NothingToResume, match="the last one, flights-r1, is PROMOTED"):
        bench.endpoint.resume()
    with pytest.raises(NothingToResume, match="there never was one"):
        Bench(bench.directory / "other").endpoint.resume()


def test_back_to_the_last_good_version_and_not_to_one_that_was_condemned(bench: Bench) -> None:
    bench.endpoint.roll_out(TWO)
    bench.endpoint.roll_out(THREE)
    entry = bench.endpoint.roll_back()
    assert (entry.kind, entry.champion, entry.candidate) == ("rollback", TWO, THREE)
    assert float(entry.detail["seconds"]) >= 0
    assert bench.weights() == {2: 100}
    assert bench.endpoint.roll_back().champion == ONE
    with pytest.raises(NoGoodVersion, match=r"version 1 serves.*--to VERSION"):
        bench.endpoint.roll_back()
    assert bench.endpoint.roll_back(to=3).champion == THREE


def test_a_version_to_go_back_to_that_does_not_load_costs_no_traffic(bench: Bench) -> None:
    bench.endpoint.roll_out(TWO)
    bench.broken = {1: "its archive was altered"}
    with pytest.raises(RollbackFailed, match="version 2 keeps its traffic: its archive was altered"):
        bench.endpoint.roll_back()
    assert bench.weights() == {2: 100}
    assert bench.ledger.entries()[-1].state == "PROMOTED"
    bench.broken = {}
    assert bench.endpoint.roll_back().champion == ONE


def test_a_resumed_rollback_fails_as_it_would_have(bench: Bench) -> None:
    def killed(name: str) -> None:
        if name == "tell ROLLING_BACK":
            raise Killed(name)

    bench.endpoint.roll_out(TWO)
    bench.broken, bench.meanwhile = {1: "its archive was altered"}, killed
    with pytest.raises(Killed):
        bench.endpoint.roll_back()
    bench.meanwhile = lambda _: None
    with pytest.raises(RollbackFailed, match="version 2 keeps its traffic: its archive was altered"):
        bench.endpoint.resume()
    assert bench.weights() == {2: 100}


def test_a_rollback_is_timed_from_when_it_is_asked_for(bench: Bench) -> None:
    endpoint = bench.endpoint
    endpoint.roll_out(TWO)
    asked = time.monotonic()
    entry = endpoint.roll_back()
    assert float(entry.detail["seconds"]) <= time.monotonic() - asked + 0.005  # it is rounded


def test_a_rollback_to_another_version_takes_the_rollout_back_first(bench: Bench) -> None:
    bench.endpoint.roll_out(TWO)
    bench.verdicts = {0: ["hold"]}
    bench.endpoint.roll_out(THREE)
    assert bench.endpoint.roll_back(to=1).champion == ONE
    assert bench.states[-4:] == ["ROLLING_BACK", "ROLLED_BACK", "ROLLING_BACK", "ROLLED_BACK"]
    assert bench.weights() == {1: 100}


VERDICTS: dict[str, dict[int, list[Outcome]]] = {
    "PROMOTED": {0: ["wait", "promote"]},
    "ROLLED_BACK": {1: ["wait", "roll back"]},
    "HELD": {1: ["hold"]},
}


def test_withdrawn_endpoint_takes_its_rollout_with_it_and_can_begin_again(bench: Bench) -> None:
    bench.verdicts = {0: ["hold"]}
    assert bench.endpoint.roll_out(TWO).state == "HELD"
    entry = bench.endpoint.withdraw()
    assert entry is not None
    assert (entry.kind, entry.state, entry.champion, entry.candidate) == ("rollback", "ROLLED_BACK", None, ONE)
    assert bench.desired() is None
    assert bench.endpoint.withdraw() is None
    assert bench.endpoint.roll_out(TWO).champion is None
    assert bench.weights() == {2: 100}


def killed(directory: Path, end: str, operation: int) -> Bench | None:
    """A rollout of version 2 whose process is killed in its operation of that number; None if it had fewer."""
    bench = Bench(directory / f"{end}-{operation}")
    put_in_service(bench)
    bench.verdicts = dict(VERDICTS[end])
    bench.operations, bench.kill_at = [], operation
    try:
        bench.endpoint.roll_out(TWO)
    except Killed:
        bench.kill_at = None
        return bench
    return None


@pytest.mark.parametrize("end", VERDICTS)
def test_killed_anywhere_a_rollout_is_finished_by_resume(memory: Path, end: str) -> None:
    operation = 1
    while bench := killed(memory, end, operation):
        before = bench.ledger.newest()
        assert before is not None
        if before.state in ENDED or before.state == "HELD":
            entry = before
        else:
            bench.verdicts = dict(VERDICTS[end])
            entry = bench.endpoint.resume()
        expected = {"PROMOTED": {1: 0, 2: 100}, "ROLLED_BACK": {1: 100}, "HELD": {1: 50, 2: 50}}[end]
        if before.kind == "adopted":  # killed before anything was written: there is no rollout
            assert bench.weights() in ({1: 100}, {1: 100, 2: 0})
        else:
            assert (entry.state, bench.weights()) == (end, expected), bench.operations[operation - 1]
        operation += 1
    assert operation > 20


@pytest.mark.parametrize("end", VERDICTS)
def test_killed_anywhere_a_rollout_is_undone_by_rollback(memory: Path, end: str) -> None:
    operation = 1
    while bench := killed(memory, end, operation):
        before = bench.ledger.newest()
        assert before is not None
        if before.kind == "adopted" or before.state == "ROLLED_BACK":
            with pytest.raises(NoGoodVersion):
                bench.endpoint.roll_back()
        else:
            assert bench.endpoint.roll_back().champion == ONE
        assert {version: weight for version, weight in bench.weights().items() if weight} == {1: 100}
        operation += 1
    assert operation > 20


def test_killed_anywhere_a_rollback_is_finished_by_either_command(memory: Path) -> None:
    for command in ("rollback", "resume"):
        operation = 1
        while True:
            bench = Bench(memory / f"{command}-{operation}")
            put_in_service(bench)
            bench.endpoint.roll_out(TWO)
            bench.operations, bench.kill_at = [], operation
            try:
                bench.endpoint.roll_back()
                break
            except Killed:
                bench.kill_at = None
            newest = bench.ledger.newest()
            assert newest is not None
            if command == "rollback" and newest.state != "ROLLED_BACK":
                bench.endpoint.roll_back()
            elif newest.state == "ROLLING_BACK":
                bench.endpoint.resume()
            elif newest.state == "PROMOTED":  # it had not begun
                with pytest.raises(RolloutError):
                    bench.endpoint.resume()
                bench.endpoint.roll_back()
            last = bench.ledger.newest()
            assert last is not None
            assert (last.state, last.champion, bench.weights()) == ("ROLLED_BACK", ONE, {1: 100})
            operation += 1
        assert operation > 4
