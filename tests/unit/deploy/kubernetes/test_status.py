"""`shipway status` of a release: what is wrong is named, each with what to do."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.errors import ReleaseAmbiguous
from deploy.kubernetes import status
from deploy.kubernetes.status import ReleaseStatus, TrackStatus, read_status
from deploy.rollout import commands
from deploy.rollout.ledger import AnyLedger
from deploy.rollout.record import State
from deploy.settings import Settings
from tests.unit.deploy.kubernetes.bench import CHART, Bench, values
from tests.unit.deploy.kubernetes.objects import (
    FULLNAME,
    ONE,
    THREE,
    TWO,
    condition,
    container,
    deployment,
    pod,
    starting,
)
from tests.unit.deploy.rollout.stories import entry

GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
NO_GPU = {"phase": "Pending", "conditions": [condition("PodScheduled", "False", message=GPU)]}
NO_IMAGE = starting(fetch=container("fetch", waiting={"reason": "ErrImageNeverPull", "message": "no [image]"}))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(status, "place", lambda _: made.place)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, helm_release="flights")


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries there were when MLflow and Grafana were told."""
    told: list[int] = []

    def deliver_now(_: Settings, ledger: AnyLedger) -> None:
        told.append(len(ledger.entries()))

    monkeypatch.setattr(commands, "deliver_now", deliver_now)
    return told


def write(bench: Bench, *states: State, **given: Any) -> None:
    with bench.ledger.writing() as writer:
        for state in states:
            writer.append(entry(state, 1000.0, **{"champion": ONE, "candidate": TWO, **given}))


def table(found: ReleaseStatus) -> str:
    console = Console(width=250)
    with console.capture() as captured:
        console.print(found.table())
    return captured.get()


def test_a_release_that_helm_installed_is_all_right(bench: Bench, settings: Settings) -> None:
    bench.helm.made[0].description = "Install [complete]"
    found = read_status(settings)
    assert found == ReleaseStatus(
        release="flights",
        namespace="team",
        model="flights",
        revision=1,
        status="deployed",
        chart=CHART,
        description="Install [complete]",
        tracks=[TrackStatus("stable", 1, ONE.digest, 100, 1, 1)],
        rollout="there was none yet",
        problems=[],
    )
    assert found.as_dict()["tracks"][0]["weight"] == 100
    assert "Install [complete]" in table(found)
    assert "Warning" not in table(found)


def test_both_tracks_are_told_with_their_share(bench: Bench, settings: Settings) -> None:
    bench.canary_is_on(weight=20)
    write(bench, "PENDING", "JUDGING", step=0)
    found = read_status(settings)
    assert [(one.track, one.version, one.weight) for one in found.tracks] == [("stable", 1, 80), ("canary", 2, 20)]
    assert found.rollout == "r1 is JUDGING: now JUDGING"
    assert found.problems == []


def test_a_share_that_nobody_says_is_unknown(bench: Bench, settings: Settings) -> None:
    bench.api.run(ONE, broken={1: NO_GPU})
    found = read_status(settings)
    assert [(one.weight, one.ready, one.replicas) for one in found.tracks] == [(-1, 0, 1)]
    assert "unknown" in table(found)


def test_what_pods_lack_is_named_for_each(bench: Bench, settings: Settings) -> None:
    bench.canary_is_on()
    bench.api.run(ONE, TWO, broken={2: NO_IMAGE})
    bench.api.add("deployments", deployment(ONE, replicas=2))
    bench.api.add("pods", pod("flights-1b", ONE, status=NO_GPU))
    write(bench, "PENDING")
    found = read_status(settings)
    assert found.problems == [
        f"pod flights-1b (version 1): no node takes it: {GPU}",
        "pod flights-2 (version 2): fetch waits, ErrImageNeverPull: no [image]",
    ]
    assert "Warning: pod flights-2 (version 2): fetch waits, ErrImageNeverPull: no [image]" in table(found)


def test_a_failed_revision_is_named_with_helms_words(bench: Bench, settings: Settings) -> None:
    bench.helm.add("failed", values(TWO), "Upgrade failed: context deadline exceeded")
    found = read_status(settings)
    assert found.problems == ["revision 2 is failed: Upgrade failed: context deadline exceeded"]
    assert (found.revision, found.status) == (2, "failed")


def test_a_pending_revision_is_named_with_what_to_do(bench: Bench, settings: Settings) -> None:
    bench.helm.add("pending-upgrade", values(ONE, TWO))
    write(bench, "PENDING")
    assert read_status(settings).problems == [
        (
            "revision 2 is pending-upgrade: another helm is at work on it, or was killed; in that case: "
            "shipway rollback flights --yes"
        )
    ]


def test_release_and_ledger_that_do_not_agree_are_named(bench: Bench, settings: Settings) -> None:
    write(bench, "PENDING", "PROMOTED")
    assert read_status(settings).problems == [
        (
            "the release runs version 1, and the ledger says version 2; if that was meant, let the ledger follow: "
            "shipway status --adopt"
        )
    ]


def test_adopted_they_agree_and_mlflow_is_told(bench: Bench, settings: Settings, delivered: list[int]) -> None:
    write(bench, "PENDING", "PROMOTED")
    bench.api.write_config_map(f"{FULLNAME}-rollout", {}, {"routing.json": '{"canary": null}'})
    found = read_status(settings, adopt=True)
    assert (found.problems, delivered) == ([], [3])
    assert found.rollout.startswith("flights-r3 is ROLLED_BACK: ")
    assert "version 1 in service, put there by hand" in found.rollout
    assert f"{FULLNAME}-rollout" not in bench.api.names("configmaps")


def test_where_they_agree_there_is_nothing_to_adopt(bench: Bench, settings: Settings, delivered: list[int]) -> None:
    bench.canary_is_on(weight=20)
    write(bench, "PENDING", "JUDGING", step=0)
    assert [one.weight for one in read_status(settings, adopt=True).tracks] == [80, 20]  # a rollout goes on
    assert (delivered, len(bench.ledger.entries())) == ([], 2)


def test_what_is_ambiguous_is_not_adopted(bench: Bench, settings: Settings, delivered: list[int]) -> None:
    bench.api.run(THREE)
    write(bench, "PENDING")
    with pytest.raises(ReleaseAmbiguous):
        read_status(settings, adopt=True)
    assert (delivered, len(bench.ledger.entries())) == ([], 1)
