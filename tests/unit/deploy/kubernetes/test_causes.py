"""Why pods do not serve: what Kubernetes says of them, what they answer themselves, or what they logged last."""

from typing import Any

import pytest

from deploy.kubernetes.causes import Causes
from deploy.kubernetes.cluster import Json
from deploy.kubernetes.tracks import Track
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.kubernetes.objects import ONE, TWO, condition, container, deployment, pod, serving, starting

FAILED = {"exitCode": 1, "reason": "Error"}
CRASHED = starting(node=container("node", restarts=1, last=FAILED, waiting={"reason": "CrashLoopBackOff"}))
LOADING = starting(node=container("node", running={}))
LOST = {**serving(ready=False), "conditions": [condition("Ready", "False")]}
ENDED = serving(restartCount=1, lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
WAITING = starting(fetch=container("fetch", waiting={"reason": "PodInitializing"}))
MISSING = 'MountVolume.SetUp failed for volume "tls" : secret "flights-tls" not found'


def of_pod(status: Json, api: Api | None = None, **given: Any) -> str:
    return Causes(api or Api()).of_pod(pod("a", status=status, **given))


def event(number: int, message: str, at: str, *, of: str = "a", reason: str = "FailedMount", **given: Any) -> Json:
    return {
        "metadata": {"name": f"{of}.{number}"},
        "involvedObject": {"kind": "Pod", "name": of},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        **given,
    }


def track(*found: Json) -> Track:
    return Track.of(deployment(ONE), list(found))


def test_a_container_that_crashes_without_a_word_is_quoted_from_its_log() -> None:
    api = Api()
    api.logs["a/node/previous"] = "INFO starting\nOSError: no space left on device\n"
    api.logs["a/node"] = "INFO starting\n"
    words = "node ended with exit code 1; it said last: OSError: no space left on device"
    assert of_pod(CRASHED, api) == words


def test_its_log_may_be_gone() -> None:
    assert of_pod(CRASHED) == "node ended with exit code 1"
    api = Api()
    api.logs["a/node/previous"] = ""
    assert of_pod(CRASHED, api) == "node ended with exit code 1"


def test_what_a_container_said_when_it_ended_needs_no_log() -> None:
    api = Api()
    api.logs["a/fetch"] = "something else"
    said = {**FAILED, "message": "the signature is of another key"}
    assert of_pod(starting(fetch=container("fetch", terminated=said)), api) == f"fetch failed: {said['message']}"
    assert api.asked == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (
            "version 2 does not reproduce its golden set\nitem 3: 0.1 off\n",
            "version 2 does not reproduce its golden set",
        ),
        ("\n  version 2 is loading\n", "version 2 is loading"),
        ("ready\n", ""),  # Kubernetes has not looked yet
        ("", ""),
        (None, ""),
    ],
)
def test_a_node_that_runs_says_itself_why_it_is_not_ready(page: str | None, words: str) -> None:
    api = Api()
    if page is not None:
        api.pages["a:8082/readyz"] = page
    assert of_pod(LOADING, api) == words


def test_an_api_server_that_does_not_answer_is_no_words_of_the_pod() -> None:
    api = Api()
    api.away = [(0, b"HTTPSConnectionPool(host='desk', port=6443): Read timed out")]
    assert of_pod(LOADING, api) == ""


def test_a_missing_volume_is_said_by_the_pods_newest_warning() -> None:
    api = Api()
    api.add(
        "events",
        event(1, "timed out waiting for the condition", "2026-11-24T10:00:00Z"),
        event(2, f"{MISSING}\n", "2026-11-24T10:02:00Z"),
        event(3, "Successfully assigned", "2026-11-24T10:03:00Z", type="Normal"),
        event(4, "of another pod", "2026-11-24T10:04:00Z", of="b"),
        event(5, "came once", "", lastTimestamp=None, eventTime="2026-11-24T10:01:00Z"),
    )
    assert of_pod(WAITING, api) == MISSING
    api.pages["a:8082/readyz"] = "version 2 is loading"
    assert of_pod(LOADING, api) == "version 2 is loading"


def test_a_pod_on_its_way_has_no_cause() -> None:
    assert of_pod(WAITING) == of_pod({"phase": "Pending"}) == ""


@pytest.mark.parametrize(
    "given", [{"status": serving()}, {"status": CRASHED, "deletionTimestamp": "2026-11-24T10:00:00Z"}]
)
def test_nobody_is_asked_where_nothing_is_wrong(given: Json) -> None:
    api = Api()
    assert of_pod(given.pop("status"), api, **given) == ""
    assert api.asked == []


def test_a_track_is_as_bad_as_the_first_of_its_own_pods_that_knows_why() -> None:
    api = Api()
    api.pages["b:8082/readyz"] = "its worker has ended"
    old = pod("old", TWO, status=CRASHED)
    found = track(old, pod("served"), pod("a", status=LOADING), pod("b", status=LOST), pod("c", status=CRASHED))
    assert Causes(api).of(found) == "its worker has ended"
    assert Causes(api).of(track(old, pod("served"))) == ""


def test_what_is_only_starting_is_not_lost() -> None:
    api = Api()
    api.pages["a:8082/readyz"] = "version 2 is loading"
    assert Causes(api).of_lost(track(pod("a", status=LOADING))) == ""
    assert Causes(api).of(track(pod("a", status=LOADING))) == "version 2 is loading"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (CRASHED, "node ended with exit code 1"),
        (LOST, "its worker has ended"),
        # It serves again; but that it had to be started again condemns it.
        (ENDED, "node was ended because it took more memory than its limit (OOMKilled)"),
        (serving(), ""),
    ],
)
def test_what_fails_or_was_ready_once_is_lost(status: Json, words: str) -> None:
    api = Api()
    api.pages["a:8082/readyz"] = "its worker has ended"
    assert Causes(api).of_lost(track(pod("b"), pod("a", status=status))) == words
