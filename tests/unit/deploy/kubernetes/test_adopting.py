"""The ledger follows a release that was changed by hand, where it is clear what was meant."""

import pytest

from deploy.errors import ReleaseAmbiguous
from deploy.kubernetes.adopting import adopt
from deploy.kubernetes.aim import Aim, told_by
from deploy.kubernetes.ledger import ClusterLedger
from deploy.rollout import machine
from deploy.rollout.record import Entry, Release, State
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.kubernetes.objects import ONE, THREE, TWO
from tests.unit.deploy.rollout.stories import entry

TWO_FOR_ONE = {"champion": ONE, "candidate": TWO}
REBUILT = Release(version=2, digest=THREE.digest)
ON: tuple[State, ...] = ("PENDING", "READY", "CANARY", "JUDGING", "HELD", "PROMOTING", "ROLLING_BACK")


def ledger(*entries: Entry) -> ClusterLedger:
    made = ClusterLedger(Api(), "flights-shipway", "flights")
    with made.writing() as writer:
        for one in entries:
            writer.append(one)
    return made


def rollout(*states: State, **given: object) -> list[Entry]:
    changes = {**TWO_FOR_ONE, **given}
    return [entry(state, 1000.0, rollout="flights-r1", step=1, **changes) for state in states]


def checked(found: ClusterLedger, aim: Aim) -> Entry:
    """What was written: it says what the release is, once, and what goes on from it is what serves."""
    before = len(found.entries())
    written = adopt(found, "flights", aim)
    assert written is not None
    assert [one.number for one in found.entries()][before:] == [written.number] == [before + 1]
    assert told_by(written) == aim
    assert machine.serves(written) == aim.stable
    assert machine.good(found.entries())[-1] == aim.stable
    assert adopt(found, "flights", aim) is None
    assert len(found.entries()) == before + 1
    return written


def test_a_first_look_at_a_release_that_helm_installed() -> None:
    found = checked(ledger(), Aim(stable=ONE))
    assert (found.kind, found.state, found.champion, found.candidate) == ("adopted", "PROMOTED", None, ONE)
    assert found.rollout == "flights-r1"
    assert found.words.endswith(" found version 1 in service, put there by hand")


def test_what_the_ledger_says_already_is_not_written_again() -> None:
    found = ledger(*rollout("PENDING", "PROMOTED"))
    assert adopt(found, "flights", Aim(stable=TWO)) is None
    on = ledger(*rollout("PENDING", "HELD"))
    assert adopt(on, "flights", Aim(stable=ONE, canary=TWO)) is None


def test_going_back_by_hand_is_a_rollback() -> None:
    found = checked(ledger(*rollout("PENDING", "PROMOTED")), Aim(stable=ONE))
    assert (found.kind, found.state, found.champion, found.candidate) == ("rollback", "ROLLED_BACK", ONE, TWO)
    assert found.rollout == "flights-r3"


@pytest.mark.parametrize("other", [THREE, REBUILT])
def test_a_new_version_by_hand_is_adopted(other: Release) -> None:
    found = checked(ledger(*rollout("PENDING", "PROMOTED")), Aim(stable=other))
    assert (found.kind, found.state, found.champion, found.candidate) == ("adopted", "PROMOTED", TWO, other)


def test_a_version_that_was_condemned_is_no_good_one_to_go_back_to() -> None:
    found = checked(ledger(*rollout("PENDING", "ROLLED_BACK")), Aim(stable=TWO))
    assert (found.kind, found.champion, found.candidate) == ("adopted", ONE, TWO)


@pytest.mark.parametrize("state", [state for state in ON if state != "ROLLING_BACK"])
def test_a_rollout_that_is_on_ends_with_the_champion(state: State) -> None:
    found = checked(ledger(*rollout("PROMOTED", champion=None, candidate=ONE), *rollout(state)), Aim(stable=ONE))
    assert (found.kind, found.state, found.rollout) == ("rollout", "ROLLED_BACK", "flights-r1")
    assert (found.champion, found.candidate) == (ONE, TWO)


@pytest.mark.parametrize("state", [state for state in ON if state != "PROMOTING"])
def test_or_with_the_candidate(state: State) -> None:
    found = checked(ledger(*rollout(state)), Aim(stable=TWO))
    assert (found.kind, found.state) == ("rollout", "PROMOTED")


def test_a_rollback_that_is_on_ends_with_what_it_went_to_or_came_from() -> None:
    on = rollout("PROMOTED"), rollout("ROLLING_BACK", kind="rollback")
    assert adopt(ledger(*on[0], *on[1]), "flights", Aim(stable=ONE)) is None  # where it goes, and the ledger says so
    found = checked(ledger(*on[0], *on[1]), Aim(stable=TWO))
    assert (found.kind, found.state) == ("rollback", "PROMOTED")


@pytest.mark.parametrize("state", ON)
@pytest.mark.parametrize("aim", [Aim(stable=THREE), Aim(stable=REBUILT), Aim(stable=ONE, canary=THREE)])
def test_what_a_rollout_that_is_on_knows_nothing_of_is_ambiguous(state: State, aim: Aim) -> None:
    found = ledger(*rollout(state))
    with pytest.raises(ReleaseAmbiguous, match=f"has {aim}, and the ledger says .*: shipway rollback flights"):
        adopt(found, "flights", aim)
    assert len(found.entries()) == 1


@pytest.mark.parametrize("entries", [[], rollout("PENDING", "PROMOTED"), rollout("PENDING", "PROMOTING")])
def test_a_canary_by_hand_is_ambiguous(entries: list[Entry]) -> None:
    found = ledger(*entries)
    with pytest.raises(ReleaseAmbiguous, match="has version 1, and version 2 as its canary, and the ledger says"):
        adopt(found, "flights", Aim(stable=ONE, canary=TWO))
    assert len(found.entries()) == len(entries)
