"""How the traffic is split between two revisions, and when it is known that the pods obey."""

import json

import pytest

from deploy.kubernetes import routing
from deploy.kubernetes.routing import Routing, shares
from deploy.kubernetes.tracks import Tracks, read_tracks
from deploy.node.desired import Actual, ActualEndpoint, ActualVersion, Mirror
from deploy.node.routing import Canary, RoutingFile
from deploy.rollout.machine import Traffic
from deploy.rollout.record import Release
from tests.unit.deploy.kubernetes.api import Api
from tests.unit.deploy.kubernetes.objects import MODEL, ONE, TWO, deployment, pod, starting

NAME = "configmaps/flights-shipway-rollout"
FIFTH = Traffic(serving=ONE, beside=TWO, weight=20, guarded=True)
COPIED = Traffic(serving=ONE, beside=TWO, mirror=30, guarded=True)
WAITING = Traffic(serving=ONE, beside=TWO, guarded=True)
PROMOTED = Traffic(serving=TWO, beside=ONE)


class Bench:
    """A release with a canary, two stable pods, and what they say that is in force."""

    def __init__(self) -> None:
        self.api = Api()
        self.api.add("deployments", deployment(ONE, replicas=2), deployment(TWO, canary=True))
        self.api.add("pods", pod("a"), pod("b"), pod("c", TWO, canary=True))
        self.routing = Routing(self.api)

    @property
    def tracks(self) -> Tracks:
        return read_tracks(self.api, "flights")

    def says(self, name: str, weights: dict[Release, int], mirror: int = 0, model: str = MODEL) -> None:
        versions = tuple(
            ActualVersion(**one.model_dump(), weight=weight, state="READY") for one, weight in weights.items()
        )
        copies = Mirror(version=TWO.version, percent=mirror) if mirror else None
        actual = Actual(pid=1, ready=True, endpoints=(ActualEndpoint(model=model, versions=versions, mirror=copies),))
        self.api.pages[f"{name}:8082/actual"] = actual.model_dump_json()

    def all_say(self, weights: dict[Release, int], mirror: int = 0) -> None:
        for name in ("a", "b"):
            self.says(name, weights, mirror)

    def in_force(self, traffic: Traffic) -> bool:
        return self.routing.in_force(self.tracks, traffic)

    def touched(self, name: str) -> bool:
        return routing.ROUTED in self.api.objects[f"pods/{name}"]["metadata"]["annotations"]


def test_a_split_is_asked_for_and_the_stable_pods_are_woken() -> None:
    bench = Bench()
    bench.all_say({ONE: 100, TWO: 0})
    assert not bench.in_force(FIFTH)
    found = bench.api.objects[NAME]
    assert found["metadata"]["labels"] == {"shipway.dev/routing": "rollout"}
    # As the node reads it.
    assert RoutingFile.model_validate_json(found["data"]["routing.json"]).canary == Canary(
        host="flights-shipway-canary.team.svc", port=8081, version=2, digest=TWO.digest, weight=20, mirror=0
    )
    assert [bench.touched(name) for name in ("a", "b", "c")] == [True, True, False]
    bench.all_say({ONE: 80, TWO: 20})
    assert bench.in_force(FIFTH)


def test_what_was_asked_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.in_force(FIFTH)
    bench.api.asked.clear()
    assert not bench.in_force(FIFTH)
    assert (bench.api.count("POST", ""), bench.api.count("PATCH", "")) == (0, 0)
    monkeypatch.setattr(routing, "TOUCHED_AGAIN_SECONDS", 0.0)  # a kubelet that missed it
    assert not bench.in_force(FIFTH)
    assert (bench.api.count("POST", ""), bench.api.count("PATCH", "pods/")) == (0, 2)


def test_copies_are_asked_for_without_a_share() -> None:
    bench = Bench()
    bench.in_force(COPIED)
    canary = RoutingFile.model_validate_json(bench.api.objects[NAME]["data"]["routing.json"]).canary
    assert canary is not None
    assert (canary.weight, canary.mirror) == (0, 30)


def test_another_share_takes_the_place_of_the_last() -> None:
    bench = Bench()
    bench.in_force(FIFTH)
    bench.in_force(FIFTH.model_copy(update={"weight": 50}))
    assert json.loads(bench.api.objects[NAME]["data"]["routing.json"])["canary"]["weight"] == 50


@pytest.mark.parametrize("traffic", [WAITING, PROMOTED, Traffic(serving=ONE)])
def test_without_a_share_there_is_no_config_map(traffic: Traffic) -> None:
    bench = Bench()
    bench.in_force(FIFTH)
    bench.in_force(traffic)
    assert NAME not in bench.api.objects


@pytest.mark.parametrize(
    ("weights", "mirror", "traffic", "obeyed"),
    [
        ({ONE: 80, TWO: 20}, 0, FIFTH, True),
        ({ONE: 80, TWO: 20}, 10, FIFTH, False),
        ({ONE: 100, TWO: 0}, 0, FIFTH, False),
        ({ONE: 100, TWO: 0}, 30, COPIED, True),
        ({ONE: 100, TWO: 0}, 0, COPIED, False),
        ({ONE: 100, TWO: 0}, 0, WAITING, True),
        ({ONE: 100}, 0, WAITING, True),
        ({TWO: 100}, 0, PROMOTED, True),
        ({ONE: 100}, 0, PROMOTED, False),
        ({ONE: 0, TWO: 100}, 0, FIFTH.model_copy(update={"weight": 100}), True),
        # The same number, and another archive.
        ({ONE: 80, Release(version=2, digest="sha256:other"): 20}, 0, FIFTH, False),
        ({}, 0, Traffic(serving=ONE), False),
        ({ONE: 100}, 0, Traffic(serving=None), False),
    ],
)
def test_it_is_in_force_where_the_pods_say_so(
    weights: dict[Release, int], mirror: int, traffic: Traffic, *, obeyed: bool
) -> None:
    bench = Bench()
    bench.all_say(weights, mirror)
    assert bench.in_force(traffic) == obeyed


@pytest.mark.parametrize("page", [None, "", "starting", '{"pid": 1}', '{"pid": 1, "ready": true, "endpoints": []}'])
def test_every_stable_pod_must_say_so(page: str | None) -> None:
    bench = Bench()
    bench.all_say({ONE: 80, TWO: 20})
    bench.api.pages.pop("b:8082/actual")
    if page is not None:
        bench.api.pages["b:8082/actual"] = page
    assert not bench.in_force(FIFTH)


def test_pods_that_get_no_requests_need_not() -> None:
    bench = Bench()
    bench.says("a", {ONE: 80, TWO: 20})
    bench.api.add("pods", pod("b", deletionTimestamp="2026-11-24T10:00:00Z"), pod("d", status=starting()))
    assert bench.in_force(FIFTH)
    assert [bench.touched(name) for name in ("a", "b", "d")] == [True, False, True]


def test_without_a_ready_pod_nothing_is_in_force() -> None:
    bench = Bench()
    bench.all_say({ONE: 80, TWO: 20})
    bench.api.add("pods", pod("a", status=starting()), pod("b", status=starting()))
    assert not bench.in_force(FIFTH)


def test_all_traffic_is_given_back_and_pods_that_have_it_are_left_alone() -> None:
    bench = Bench()
    bench.in_force(FIFTH)
    bench.routing.give_back(bench.tracks)
    assert NAME not in bench.api.objects
    bench.api.asked.clear()
    bench.routing.give_back(bench.tracks)
    assert (bench.api.count("PATCH", ""), bench.api.count("DELETE", "")) == (0, 0)


def test_shares_are_what_the_first_pod_that_answers_says() -> None:
    bench = Bench()
    stable = bench.tracks.stable
    assert shares(bench.api, stable) == {}
    bench.says("a", {ONE: 100}, model="topics")
    bench.says("b", {ONE: 80, TWO: 20})
    assert shares(bench.api, stable) == {1: 80, 2: 20}
