"""Deployments and pods as the API gives them, read as the two tracks of a release."""

from typing import Any

import pytest

from deploy.errors import ReleaseMissing
from deploy.kubernetes import pods
from deploy.kubernetes.aim import Aim
from deploy.kubernetes.tracks import Track, read_tracks
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.kubernetes.objects import FULLNAME, MODEL, ONE, TWO, condition, deployment, pod, starting


def track(*found: dict[str, Any], **status: Any) -> Track:
    wanted = deployment(replicas=2)
    return Track.of({**wanted, "status": {**wanted["status"], **status}}, list(found))


def test_a_deployment_says_what_it_runs() -> None:
    found = track(pod())
    assert (found.fullname, found.model, found.release) == (FULLNAME, MODEL, ONE)
    assert (found.replicas, found.settled, found.too_slow_since) == (2, True, "")
    assert (found.timeout_seconds, found.progress_seconds) == (240, 360)


@pytest.mark.parametrize(
    "status",
    [
        {"observedGeneration": 1},  # an upgrade that the controller has not seen
        {"updatedReplicas": 1},
        {"availableReplicas": 1},
        {"replicas": 3},  # one of another version is left
        {"availableReplicas": 1, "replicas": 1, "updatedReplicas": 1},
    ],
)
def test_on_its_way_it_is_not_settled(status: dict[str, int]) -> None:
    assert not track(**status).settled


def test_a_deployment_without_a_status_is_not_settled_and_one_scaled_to_nothing_is() -> None:
    new = {**deployment(), "status": {}}
    assert not Track.of(new, []).settled
    nothing = {**deployment(replicas=0), "status": {"observedGeneration": 2}}  # zeros are left out
    assert Track.of(nothing, []).settled


def test_defaults_that_nobody_wrote_are_kubernetes_own() -> None:
    plain = deployment()
    plain["metadata"].pop("annotations")
    plain["spec"].pop("progressDeadlineSeconds")
    plain["spec"].pop("replicas")
    found = Track.of(plain, [])
    assert (found.timeout_seconds, found.progress_seconds, found.replicas) == (600, 600, 1)


@pytest.mark.parametrize(
    ("progress", "observed", "since"),
    [
        (condition("Progressing", "False", reason="ProgressDeadlineExceeded", lastUpdateTime="10:00"), 2, "10:00"),
        (condition("Progressing", "False", reason="ProgressDeadlineExceeded", lastUpdateTime="10:00"), 1, ""),
        (condition("Progressing", "False", reason="ProgressDeadlineExceeded"), 2, "unknown"),
        (condition("Progressing", reason="ReplicaSetUpdated", lastUpdateTime="10:00"), 2, ""),
        (condition("Available", "False", reason="MinimumReplicasUnavailable", lastUpdateTime="10:00"), 2, ""),
    ],
)
def test_kubernetes_says_when_it_gave_up_waiting(progress: dict[str, str], observed: int, since: str) -> None:
    assert track(conditions=[progress], observedGeneration=observed).too_slow_since == since


def test_own_pods_are_of_the_version_that_is_wanted_and_ready_ones_serve() -> None:
    own, old = pod("own", ONE, status=starting()), pod("old", TWO)
    ending = pod("ending", ONE, deletionTimestamp="2026-11-24T10:00:00Z")
    bare = {"metadata": {"name": "bare", "labels": {"shipway.dev/track": "stable"}}}
    found = track(own, old, ending, bare)
    assert [pods.name(one) for one in found.own_pods] == ["own", "ending"]
    assert [pods.name(one) for one in found.ready_pods] == ["old"]


def test_the_two_tracks_of_a_release_have_their_own_pods() -> None:
    api = Api()
    api.add("deployments", deployment(ONE), deployment(TWO, canary=True))
    api.add("pods", pod("stable-1", ONE), pod("canary-1", TWO, canary=True), pod("stable-2", ONE))
    found = read_tracks(api, "flights")
    assert (found.fullname, found.aim) == (FULLNAME, Aim(stable=ONE, canary=TWO))
    assert found.canary is not None
    assert [pods.name(one) for one in found.stable.pods] == ["stable-1", "stable-2"]
    assert [pods.name(one) for one in found.canary.pods] == ["canary-1"]


def test_other_releases_and_pods_without_a_track_are_not_ours() -> None:
    api = Api()
    stranger = deployment(TWO)
    stranger["metadata"] = {
        **stranger["metadata"],
        "name": "topics-shipway",
        "labels": {**stranger["metadata"]["labels"]},
    }
    stranger["metadata"]["labels"]["app.kubernetes.io/instance"] = "topics"
    by_hand = pod("by-hand")
    by_hand["metadata"]["labels"].pop("shipway.dev/track")
    api.add("deployments", deployment(ONE), stranger)
    api.add("pods", by_hand)
    found = read_tracks(api, "flights")
    assert (found.aim, found.stable.pods) == (Aim(stable=ONE), ())


def test_a_canary_whose_deployment_has_gone_leaves_no_track() -> None:
    api = Api()
    api.add("deployments", deployment(ONE))
    api.add("pods", pod("late", TWO, canary=True, deletionTimestamp="2026-11-24T10:00:00Z"))
    found = read_tracks(api, "flights")
    assert (found.canary, found.stable.pods) == (None, ())


@pytest.mark.parametrize("there", [[], [deployment(TWO, canary=True)]])
def test_without_a_stable_deployment_there_is_no_release(there: list[dict[str, Any]]) -> None:
    api = Api()
    api.add("deployments", *there)
    with pytest.raises(ReleaseMissing, match=r"team has no release flights .* there is no Deployment"):
        read_tracks(api, "flights")
