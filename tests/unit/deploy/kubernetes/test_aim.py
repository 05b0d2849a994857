"""What helm has to do, told from what a release's revisions were."""

import copy
from typing import Any

import pytest

from deploy.kubernetes.aim import (
    Aim,
    Rollback,
    Upgrade,
    Values,
    aim_of,
    changed,
    description,
    forward,
    found_in,
    good_revision,
    next_deed,
    told_by,
)
from deploy.kubernetes.helm import Revision
from deploy.rollout.machine import Traffic
from deploy.rollout.record import Kind, Release, State
from tests.unit.deploy.kubernetes.objects import ONE, THREE, TWO
from tests.unit.deploy.rollout.stories import CANDIDATE, CHAMPION, entry

CANARY = Aim(stable=ONE, canary=TWO)
REBUILT = Release(version=1, digest=TWO.digest)


def values(stable: Release, canary: Release | None = None, **canarys: object) -> dict[str, Any]:
    """All values of a revision."""
    beside = {"enabled": canary is not None, "model": _model(canary) if canary else {}, "weight": 0, "mirror": 0}
    return {"model": {"name": "flights", **_model(stable)}, "canary": {**beside, **canarys}, "maxCanaryShare": 50}


def _model(release: Release) -> dict[str, Any]:
    return {"version": release.version, "sha256": release.digest}


class Past:
    """Revisions from 1 on, each as its status and its values."""

    def __init__(self, *revisions: tuple[str, Values]) -> None:
        self._values = {number: each for number, (_, each) in enumerate(revisions, 1)}
        self.history = [
            Revision.model_validate(
                {
                    "revision": number,
                    "updated": "2026-11-24T10:00:00Z",
                    "status": status,
                    "chart": "shipway-0.1.0",
                    "description": "",
                }
            )
            for number, (status, _) in enumerate(revisions, 1)
        ]

    def values(self, revision: int) -> Values:
        return self._values[revision]

    def deed(self, aim: Aim, *, forwards: bool) -> Upgrade | Rollback | None:
        return next_deed(aim, self.history, self.values, forwards=forwards)


INSTALLED = ("deployed", values(ONE))
WAS_ONE = ("superseded", values(ONE))
WAS_CANARY = ("superseded", values(ONE, TWO))
FORWARDS: list[tuple[str, Past, Aim, Upgrade | Rollback | None]] = [
    ("a canary is an upgrade", Past(INSTALLED), CANARY, Upgrade(before=1)),
    ("there already", Past(WAS_ONE, ("deployed", values(ONE, TWO))), CANARY, None),
    ("promotion", Past(WAS_ONE, ("deployed", values(ONE, TWO))), Aim(stable=TWO), Upgrade(before=2)),
    (
        "to what an old revision was, with values of today",
        Past(("superseded", values(TWO)), INSTALLED),
        Aim(stable=TWO),
        Upgrade(before=2),
    ),
    ("not from what failed", Past(INSTALLED, ("failed", values(ONE, TWO))), CANARY, Upgrade(before=1)),
    ("a canary that is on with traffic", Past(("deployed", values(ONE, TWO, weight=30))), CANARY, Upgrade(before=1)),
    ("or with copies", Past(("deployed", values(ONE, TWO, mirror=30))), CANARY, Upgrade(before=1)),
    ("what failed was first of all", Past(("failed", values(ONE))), CANARY, Upgrade(before=1)),
    ("pending is cleared first", Past(INSTALLED, ("pending-upgrade", values(ONE, TWO))), CANARY, Rollback(revision=1)),
    ("never installed to the end", Past(("pending-install", values(ONE))), CANARY, Upgrade(before=1)),
    ("another archive of the version", Past(("deployed", values(REBUILT))), Aim(stable=ONE), Upgrade(before=1)),
]
BACKWARDS: list[tuple[str, Past, Aim, Upgrade | Rollback | None]] = [
    ("a canary goes", Past(WAS_ONE, ("deployed", values(ONE, TWO))), Aim(stable=ONE), Rollback(revision=1)),
    ("nothing to do", Past(INSTALLED), Aim(stable=ONE), None),
    ("a failed one is not there", Past(WAS_ONE, ("failed", values(ONE))), Aim(stable=ONE), Rollback(revision=1)),
    (
        "past failed ones and those with a canary",
        Past(WAS_ONE, WAS_CANARY, ("deployed", values(TWO)), ("failed", values(TWO, THREE)), ("failed", values(THREE))),
        Aim(stable=ONE),
        Rollback(revision=1),
    ),
    (
        "to the newest that was it",
        Past(WAS_ONE, WAS_ONE, WAS_CANARY, ("deployed", values(TWO))),
        Aim(stable=ONE),
        Rollback(revision=2),
    ),
    (
        "by digest and not by version",
        Past(WAS_ONE, ("superseded", values(REBUILT)), ("deployed", values(TWO))),
        Aim(stable=ONE),
        Rollback(revision=1),
    ),
    ("what no revision was", Past(INSTALLED), Aim(stable=THREE), Upgrade(before=1)),
    (
        "pending: what it was before",
        Past(INSTALLED, ("pending-rollback", values(ONE))),
        Aim(stable=ONE),
        Rollback(revision=1),
    ),
    (
        "pending, and no revision was it: the newest good one first",
        Past(WAS_ONE, ("superseded", values(TWO)), ("pending-upgrade", values(TWO, THREE))),
        Aim(stable=THREE),
        Rollback(revision=2),
    ),
    (
        "revisions of another chart are none of ours",
        Past(("superseded", {"replicas": 1}), ("deployed", {"model": None})),
        Aim(stable=ONE),
        Upgrade(before=2),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("case", "past", "aim", "deed"), FORWARDS)
def test_forwards_values_are_changed(case: str, past: Past, aim: Aim, deed: Upgrade | Rollback | None) -> None:
    assert past.deed(aim, forwards=True) == deed, case


@pytest.mark.parametrize(("case", "past", "aim", "deed"), BACKWARDS)
def test_backwards_what_a_revision_was_is_taken_again(
    case: str, past: Past, aim: Aim, deed: Upgrade | Rollback | None
) -> None:
    assert past.deed(aim, forwards=False) == deed, case


def test_a_good_revision_was_waited_for_with_success() -> None:
    past = Past(WAS_ONE, ("failed", values(TWO)), ("uninstalled", values(TWO)), ("pending-upgrade", values(TWO)))
    found = good_revision(past.history, past.values)
    assert found is not None
    assert found.revision == 1
    assert good_revision(past.history[1:], past.values) is None
    assert good_revision(past.history, past.values, Aim(stable=TWO)) is None


def test_no_values_are_read_that_decide_nothing() -> None:
    past = Past(WAS_ONE, WAS_CANARY, INSTALLED)
    asked: list[int] = []

    def values_of(revision: int) -> Values:
        asked.append(revision)
        return past.values(revision)

    next_deed(CANARY, past.history, values_of, forwards=True)
    assert asked == [3]


@pytest.mark.parametrize(
    ("found", "aim"),
    [
        (values(ONE), Aim(stable=ONE)),
        (values(ONE, TWO), CANARY),
        (values(ONE, TWO, enabled=False), Aim(stable=ONE)),
        ({"model": _model(ONE)}, Aim(stable=ONE)),
        ({"model": _model(ONE), "canary": None}, Aim(stable=ONE)),
        ({"model": _model(ONE), "canary": {"enabled": True}}, None),
        ({"model": {"version": None, "sha256": ""}}, None),
        ({"model": {"version": "latest", "sha256": ONE.digest}}, None),
        ({"model": "flights"}, None),
        ({"model": _model(ONE), "canary": True}, None),
        ({}, None),
    ],
)
def test_values_say_what_a_release_runs(found: Values, aim: Aim | None) -> None:
    assert found_in(found) == aim


@pytest.mark.parametrize(
    ("traffic", "aim", "forwards"),
    [
        (Traffic(serving=ONE, beside=TWO, guarded=True), CANARY, True),
        (Traffic(serving=ONE, beside=TWO, weight=50, mirror=10, guarded=True), CANARY, True),
        (Traffic(serving=TWO, beside=ONE), Aim(stable=TWO), True),  # promotion: nothing stays warm
        (Traffic(serving=ONE), Aim(stable=ONE), False),
        (Traffic(serving=None), None, False),
    ],
)
def test_traffic_says_which_versions_run_and_which_way_it_goes(
    traffic: Traffic, aim: Aim | None, *, forwards: bool
) -> None:
    assert (aim_of(traffic), forward(traffic)) == (aim, forwards)


@pytest.mark.parametrize(
    ("state", "kind", "told"),
    [
        ("PENDING", "rollout", Aim(stable=CHAMPION, canary=CANDIDATE)),
        ("JUDGING", "rollout", Aim(stable=CHAMPION, canary=CANDIDATE)),
        ("HELD", "rollout", Aim(stable=CHAMPION, canary=CANDIDATE)),
        ("PROMOTING", "rollout", Aim(stable=CANDIDATE)),
        ("PROMOTED", "rollout", Aim(stable=CANDIDATE)),
        ("PROMOTED", "adopted", Aim(stable=CANDIDATE)),
        ("ROLLING_BACK", "rollout", Aim(stable=CHAMPION)),
        ("ROLLED_BACK", "rollout", Aim(stable=CHAMPION)),
        ("ROLLING_BACK", "rollback", Aim(stable=CHAMPION)),
        ("PROMOTING", "rollback", Aim(stable=CANDIDATE)),  # it could not be had: what served goes on
    ],
)
def test_the_ledger_says_what_a_release_should_be(state: State, kind: Kind, told: Aim) -> None:
    assert told_by(entry(state, 1.0, kind=kind, step=1)) == told


def test_a_first_version_is_no_canary_and_one_withdrawn_is_nothing() -> None:
    assert told_by(entry("PENDING", 1.0, champion=None)) == Aim(stable=CANDIDATE)
    assert told_by(entry("ROLLED_BACK", 1.0, kind="rollback", champion=None)) is None


def test_a_canary_is_switched_on_without_traffic() -> None:
    before = {
        "model": {"name": "flights", **_model(ONE), "handlerConfig": {"workers": 2}},
        "canary": {"replicaCount": 3, "weight": 40, "mirror": 5},
        "replicaCount": 5,
    }
    kept = copy.deepcopy(before)
    assert changed(before, CANARY) == {
        "model": {"name": "flights", **_model(ONE), "handlerConfig": {"workers": 2}},
        "canary": {"enabled": True, "model": _model(TWO), "replicaCount": 3, "weight": 0, "mirror": 0},
        "replicaCount": 5,
    }
    assert before == kept


def test_stable_takes_over_what_the_canary_had_of_its_own() -> None:
    canary = {"enabled": True, "model": {**_model(TWO), "handlerConfig": {"workers": 4}}, "image": {"tag": "1.1"}}
    before = {
        "model": {"name": "flights", **_model(ONE), "handlerConfig": {"workers": 2, "maxQueue": 9}},
        "canary": {**canary, "replicaCount": 3},
        "image": {"repository": "shipway", "digest": "sha256:" + "a" * 64},
    }
    assert changed(before, Aim(stable=TWO)) == {
        "model": {"name": "flights", **_model(TWO), "handlerConfig": {"workers": 4}},
        "canary": {"enabled": False, "replicaCount": 3, "weight": 0, "mirror": 0},
        "image": {"repository": "shipway", "tag": "1.1"},  # not under the digest of another image
    }


@pytest.mark.parametrize(
    ("canary", "image"),
    [
        ({"image": {"repository": "patched"}}, {"tag": "1.0", "digest": "sha256:d", "repository": "patched"}),
        ({"image": {"tag": "2", "digest": "sha256:e"}}, {"tag": "2", "digest": "sha256:e"}),
        ({"image": {}}, {"tag": "1.0", "digest": "sha256:d"}),
        ({"image": None}, {"tag": "1.0", "digest": "sha256:d"}),
        ({}, {"tag": "1.0", "digest": "sha256:d"}),
    ],
)
def test_an_image_is_promoted_as_the_chart_reads_it(canary: Values, image: Values) -> None:
    before = {
        "model": _model(ONE),
        "canary": {"enabled": True, "model": _model(TWO), **canary},
        "image": {"tag": "1.0", "digest": "sha256:d"},
    }
    assert changed(before, Aim(stable=TWO))["image"] == image


@pytest.mark.parametrize(
    "canary",
    [
        {"enabled": False},
        {"enabled": True, "model": _model(THREE)},
        {"enabled": True, "model": {**_model(TWO), "sha256": THREE.digest, "handlerConfig": {"workers": 9}}},
        {"model": None},
    ],
)
def test_what_another_canary_had_stays_its_own(canary: Values) -> None:
    before = {"model": _model(ONE), "canary": {"model": _model(TWO), "image": {"tag": "bad"}, **canary}}
    assert changed(before, Aim(stable=TWO)) == {
        "model": _model(TWO),
        "canary": {"enabled": False, "weight": 0, "mirror": 0},
    }


@pytest.mark.parametrize("before", [{}, {"canary": {"model": None}}])
def test_values_may_be_missing_or_taken_away(before: Values) -> None:
    assert changed(before, CANARY) == {
        "model": _model(ONE),
        "canary": {"enabled": True, "model": _model(TWO), "weight": 0, "mirror": 0},
    }


def test_a_revision_is_described_by_version_and_digest() -> None:
    assert description("flights", Aim(stable=ONE)) == f"flights version 1 {ONE.digest}"
    assert description("flights", CANARY) == f"flights version 1 {ONE.digest}; canary version 2 {TWO.digest}"
    assert str(CANARY) == "version 1, and version 2 as its canary"
