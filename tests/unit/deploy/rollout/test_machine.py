"""What follows what, without any process."""

import pytest

from deploy.rollout.machine import Traffic, failed, good, judged, reached, resumed, serves, shadowed, traffic
from deploy.rollout.record import ENDED, Entry, Kind, Outcome, Release, State
from tests.unit.deploy.rollout.bench import MODEL, ONE, POLICY, THREE, TWO, verdict

STEPS = POLICY.steps
BESIDE = Traffic(serving=ONE, beside=TWO, guarded=True)
SPLIT = Traffic(serving=ONE, beside=TWO, weight=50, guarded=True)


def entry(
    state: State | None,
    step: int | None = None,
    kind: Kind = "rollout",
    champion: Release | None = ONE,
    candidate: Release | None = TWO,
) -> Entry:
    return Entry(
        number=1,
        at=0.0,
        who="me",
        model=MODEL,
        rollout="r",
        kind=kind,
        state=state,
        step=step,
        champion=champion,
        candidate=candidate,
        words="",
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (entry("PENDING"), BESIDE),
        (entry("READY"), BESIDE),
        (entry("CANARY", 1), SPLIT),
        (entry("JUDGING", 1), SPLIT),
        (entry("HELD", 1), SPLIT),
        (entry("HELD", 7), Traffic(serving=ONE, beside=TWO, weight=100, guarded=True)),  # there are fewer steps by now
        (entry("ROLLING_BACK"), Traffic(serving=ONE)),
        (entry("ROLLED_BACK"), Traffic(serving=ONE)),
        (entry("PROMOTING"), Traffic(serving=TWO, beside=ONE)),
        (entry("PROMOTED"), Traffic(serving=TWO, beside=ONE)),
        (entry("PENDING", champion=None), Traffic(serving=TWO)),
        (entry("PROMOTED", champion=None), Traffic(serving=TWO)),
        (entry("ROLLING_BACK", champion=None), Traffic(serving=None)),
        (entry("PROMOTED", kind="rollback"), Traffic(serving=TWO)),  # version 1 could not be loaded
    ],
)
def test_traffic_of_a_state(given: Entry, expected: Traffic) -> None:
    assert traffic(given, STEPS) == expected


@pytest.mark.parametrize(
    ("state", "step", "after"),
    [
        ("PENDING", None, ("READY", None)),
        ("READY", None, ("CANARY", 0)),
        ("CANARY", 2, ("JUDGING", 2)),
        ("PROMOTING", None, ("PROMOTED", None)),
        ("ROLLING_BACK", 2, ("ROLLED_BACK", None)),
    ],
)
def test_what_follows_traffic_that_is_in_force(state: State, step: int | None, after: tuple[State, int | None]) -> None:
    move = reached(entry(state, step), STEPS)
    assert (move.state, move.step) == after


@pytest.mark.parametrize("state", ["JUDGING", "HELD", *ENDED])
def test_nothing_follows_a_state_by_itself_in_which_something_decides(state: State) -> None:
    with pytest.raises(ValueError, match=state):
        reached(entry(state, 0), STEPS)


@pytest.mark.parametrize(
    ("outcome", "step", "after"),
    [
        ("wait", 0, None),
        ("hold", 0, ("HELD", 0)),
        ("roll back", 1, ("ROLLING_BACK", 1)),
        ("promote", 0, ("CANARY", 1)),
        ("promote", 2, ("PROMOTING", None)),
    ],
)
def test_what_follows_a_verdict(outcome: Outcome, step: int, after: tuple[State, int | None] | None) -> None:
    given = verdict(outcome, step)
    move = judged(entry("JUDGING", step), given, STEPS)
    assert (move and (move.state, move.step)) == after
    if move:
        assert move.verdict == given  # the ledger has the evidence of everything that was decided


@pytest.mark.parametrize(
    ("state", "step", "after"),
    [
        ("PENDING", None, ("PENDING", None)),
        ("READY", None, ("PENDING", None)),
        ("CANARY", 1, ("CANARY", 1)),
        ("JUDGING", 1, ("CANARY", 1)),
        ("HELD", 1, ("CANARY", 1)),
        ("ROLLING_BACK", 1, ("ROLLING_BACK", 1)),
        ("PROMOTING", None, ("PROMOTING", None)),
        ("ROLLED_BACK", None, None),
        ("PROMOTED", None, None),
    ],
)
def test_where_a_rollout_is_taken_up(state: State, step: int | None, after: tuple[State, int | None] | None) -> None:
    move = resumed(entry(state, step), STEPS)
    assert (move and (move.state, move.step)) == after


def test_what_follows_a_version_that_cannot_be_had() -> None:
    found = failed(entry("PENDING"), "no archive")
    assert found is not None
    assert (found.state, found.words) == ("ROLLING_BACK", "version 2 did not come into service: no archive")
    assert failed(entry("ROLLING_BACK"), "no node") is None
    found = failed(entry("ROLLING_BACK", kind="rollback"), "no archive")
    assert found is not None
    assert (found.state, found.words) == ("PROMOTING", "version 2 keeps its traffic: no archive")
    assert failed(entry("PROMOTING", kind="rollback"), "no node") is None
    found = failed(entry("PROMOTING"), "no room")
    assert found is not None
    assert (found.state, found.words) == ("ROLLING_BACK", "version 2 did not come into service: no room")


def test_a_shadow_comes_before_all_traffic() -> None:
    assert [(step.weight, step.mirror) for step in shadowed(STEPS, 20)] == [(0, 20), (5, 0), (50, 0), (100, 0)]
    assert shadowed(shadowed(STEPS, 20), 30) == shadowed(STEPS, 30)
    assert shadowed(STEPS, 0) == STEPS


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], []),
        ([entry("PROMOTED")], [ONE, TWO]),
        ([entry("PROMOTED", champion=None)], [TWO]),
        ([entry("PROMOTED", kind="adopted")], [ONE, TWO]),
        ([entry("PROMOTED"), entry("HELD", 0, champion=TWO, candidate=THREE)], [ONE, TWO]),
        ([entry("PROMOTED"), entry("ROLLED_BACK", champion=TWO, candidate=THREE)], [ONE, TWO]),
        ([entry("PROMOTED"), entry("ROLLED_BACK", kind="rollback")], [ONE]),
        ([entry("PROMOTED"), entry("PROMOTED", champion=TWO, candidate=ONE)], [TWO, ONE]),
        ([entry("PROMOTED"), entry("PROMOTED", kind="rollback")], [ONE, TWO]),
        ([entry("PROMOTED"), entry(None, kind="alert", champion=None, candidate=None)], [ONE, TWO]),
    ],
)
def test_good_versions(entries: list[Entry], expected: list[Release]) -> None:
    assert good(entries) == expected


def test_who_has_the_traffic_in_the_end() -> None:
    assert serves(entry("PROMOTED")) == TWO
    assert serves(entry("ROLLED_BACK")) == ONE
    assert serves(entry("ROLLED_BACK", kind="rollback")) == ONE
