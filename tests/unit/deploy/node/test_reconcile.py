"""What a node has in force, what it says of it, and what it does first."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import LoadFailed
from deploy.node.agreement import Agreement
from deploy.node.desired import Actual, Desired, DesiredEndpoint, Mirror
from deploy.node.envoy import Edge
from deploy.node.layout import Layout
from deploy.node.reconcile import Loaded, Overtaken, Reconciler, unless
from deploy.node.torchserve import Management
from monitoring.profile import Profile
from tests.unit.deploy.node.conftest import DIGESTS


class Sockets:
    """The places of workers, of which the test says whether anybody is in them."""

    def __init__(self) -> None:
        self.alive = {"a place": 7}
        self.closed: list[tuple[str, int]] = []

    def workers(self, _model: str, _version: int) -> "Sockets":
        return self

    def close(self, model: str, version: int) -> None:
        self.closed.append((model, version))


@pytest.fixture
def published() -> list[str]:
    return []


@pytest.fixture
def reconciler(layout: Layout, edge: Edge, endpoint: DesiredEndpoint, published: list[str]) -> Reconciler:
    """All three versions are loaded and routed."""
    nobody: Any = None
    places: Any = Sockets()
    found = Reconciler(
        layout, edge, nobody, places, nobody, Path(), dict, 1.0, lambda: published.append("now"), Agreement(), nobody
    )
    profile = Profile(rows=0, features=())
    for version in (1, 2, 3):
        loaded = Loaded("flights", version, DIGESTS[version], "READY", registered=True, profile=profile)
        found.loaded[loaded.key] = loaded
    found.routed = (endpoint,)
    return found


def actual(reconciler: Reconciler, endpoint: DesiredEndpoint, not_now: str = "") -> Actual:
    return reconciler.actual(Desired(endpoints=(endpoint,)), pid=1, not_now=not_now)


def test_version_without_a_worker_is_not_ready_until_it_has_one(
    reconciler: Reconciler, endpoint: DesiredEndpoint, published: list[str]
) -> None:
    reconciler.check_workers()
    assert (actual(reconciler, endpoint).ready, published) == (True, [])
    places: Any = reconciler.places
    places.alive = {}
    for _ in range(2):
        reconciler.check_workers()
    found = actual(reconciler, endpoint)
    assert not found.ready
    assert found.reason.startswith("flights version 1 is LOADING: all its workers died and are being restarted")
    assert published == ["now"] * 3  # once for each version
    places.alive = {"a place": 8}
    reconciler.check_workers()
    assert actual(reconciler, endpoint).ready
    assert actual(reconciler, endpoint).endpoints[0].versions[0].reason == ""


def test_node_says_why_it_is_not_ready(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    assert actual(reconciler, endpoint, not_now="the node is draining").reason == "the node is draining"
    reconciler.routed = ()
    assert actual(reconciler, endpoint).reason == "the routes of flights are not in force yet"
    reconciler.loaded.clear()
    assert actual(reconciler, endpoint).reason.startswith("flights version 1 is LOADING; flights version 2 is LOADING")


def test_weights_are_those_in_force(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    swapped = endpoint.model_copy(update={"versions": tuple(reversed(endpoint.versions))})
    other = [v.model_copy(update={"weight": 100 * (v.version == 3)}) for v in swapped.versions]
    wanted = endpoint.model_copy(update={"versions": tuple(other)})
    found = {v.version: v.weight for v in actual(reconciler, wanted).endpoints[0].versions}
    assert found == {v.version: v.weight for v in endpoint.versions}
    reconciler.routed = ()
    assert {v.weight for v in actual(reconciler, wanted).endpoints[0].versions} == {0}


def test_fall_back_and_mirror_are_those_in_force(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    rollout = endpoint.model_copy(update={"fallback": 1, "mirror": Mirror(version=3, percent=20)})
    (told,) = actual(reconciler, rollout).endpoints
    assert (told.fallback, told.mirror) == (None, None)
    assert not actual(reconciler, rollout).ready
    reconciler.routed = (rollout,)
    (told,) = actual(reconciler, rollout).endpoints
    assert (told.fallback, told.mirror) == (1, Mirror(version=3, percent=20))
    assert actual(reconciler, rollout).ready


def test_rollout_goes_on_without_those_who_are_not_ready(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    """Version 3 has no traffic, and so nothing waits for it."""
    reconciler.loaded["flights", 3].registered = False
    rollout = endpoint.model_copy(update={"fallback": 3, "mirror": Mirror(version=3, percent=20)})
    routable = reconciler._routable(rollout)
    assert routable is not None
    assert ([v.version for v in routable.versions], routable.fallback, routable.mirror) == ([1, 2], None, None)


def test_dead_workers_move_no_routes(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    places: Any = reconciler.places
    places.alive = {}
    reconciler.check_workers()
    assert reconciler._routable(endpoint) == endpoint


def test_version_that_is_loaded_from_another_archive_says_so(reconciler: Reconciler, endpoint: DesiredEndpoint) -> None:
    other = endpoint.versions[0].model_copy(update={"digest": DIGESTS[2]})
    changed = endpoint.model_copy(update={"versions": (other, *endpoint.versions[1:])})
    found = actual(reconciler, changed)
    assert not found.ready
    assert found.reason.startswith(f"flights version 1 is FAILED: it is loaded as {DIGESTS[1]}")
    assert reconciler._routable(changed) == endpoint  # what answered goes on answering


def test_torchserve_that_is_not_there_is_told_in_words(layout: Layout) -> None:
    async def ask() -> None:
        management = Management(layout)
        try:
            with pytest.raises(LoadFailed, match="TorchServe does not answer GET /models/flights/1: Cannot connect"):
                await management.workers("flights", 1)
        finally:
            await management.close()

    asyncio.run(ask())


def explained(reconciler: Reconciler, endpoint: DesiredEndpoint) -> int | None:
    routable = reconciler._routable(endpoint)
    assert routable is not None
    assert routable.versions == endpoint.versions
    return routable.explainer


def test_explainer_is_routed_once_it_is_proven_and_predictions_do_not_wait(
    reconciler: Reconciler, endpoint: DesiredEndpoint
) -> None:
    wanted = endpoint.model_copy(update={"explainer": 2})
    assert explained(reconciler, wanted) is None
    assert actual(reconciler, wanted).ready
    loaded = Loaded("flights-explainer", 2, DIGESTS[2])
    reconciler.loaded[loaded.key] = loaded
    assert explained(reconciler, wanted) is None
    loaded.registered, loaded.profile, loaded.state = True, Profile(rows=0, features=()), "READY"
    assert explained(reconciler, wanted) == 2
    (shown,) = actual(reconciler, wanted).endpoints
    assert shown.explainer is not None
    assert (shown.explainer.version, shown.explainer.state) == (2, "READY")


def test_explainer_before_stays_until_the_next_one_is_ready_or_has_failed(
    reconciler: Reconciler, endpoint: DesiredEndpoint
) -> None:
    reconciler.routed = (endpoint.model_copy(update={"explainer": 1}),)
    wanted = endpoint.model_copy(update={"explainer": 2})
    loaded = Loaded("flights-explainer", 2, DIGESTS[2])
    reconciler.loaded[loaded.key] = loaded
    assert explained(reconciler, wanted) == 1
    loaded.state, loaded.reason = "FAILED", "gradients do not explain this model"
    assert explained(reconciler, wanted) is None
    found = actual(reconciler, wanted)
    assert found.ready
    assert found.endpoints[0].explainer is not None
    assert found.endpoints[0].explainer.reason == "gradients do not explain this model"
    assert explained(reconciler, endpoint) is None


def test_work_is_given_up_when_there_is_a_newer_state_and_only_then() -> None:
    async def overtaken_by(event: asyncio.Event, work: str) -> str:
        ends: list[str] = []

        async def working() -> None:
            try:
                await asyncio.sleep({"long": 60, "short": 0, "failing": 0}[work])
            except asyncio.CancelledError:
                ends.append("given up")
                raise
            if work == "failing":
                raise LoadFailed("it does not load")
            ends.append("done")

        try:
            await unless(event, working())
        except (Overtaken, LoadFailed) as error:
            ends.append(type(error).__name__)
        return ", ".join(ends)

    async def ends() -> list[str]:
        never, soon = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, soon.set)
        return [
            await overtaken_by(soon, "long"),
            await overtaken_by(never, "short"),
            await overtaken_by(never, "failing"),
        ]

    assert asyncio.run(ends()) == ["given up, Overtaken", "done", "LoadFailed"]


def test_what_needs_no_loading_is_in_force_before_anything_is_loaded(
    reconciler: Reconciler, endpoint: DesiredEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights move back to version 1 although version 2 is still being loaded, and nobody waits for that."""
    done: list[str] = []

    async def route(endpoints: tuple[DesiredEndpoint, ...]) -> None:
        done.append(" ".join(f"{one.version}:{one.weight}" for one in endpoints[0].versions))

    async def ensure(_model: str, version: int, _digest: str) -> None:
        done.append(f"load {version}")

    monkeypatch.setattr(reconciler, "_route", route)
    monkeypatch.setattr(reconciler, "_ensure", ensure)
    reconciler.loaded["flights", 2].profile = None
    wanted = tuple(v.model_copy(update={"weight": 100 * (v.version == 1)}) for v in endpoint.versions)
    back = endpoint.model_copy(update={"versions": wanted})
    asyncio.run(reconciler.reconcile(Desired(endpoints=(back,))))
    assert done[0] == "1:100 3:0"
    assert "load 2" in done[1:]


def test_versions_are_loaded_at_once_those_with_most_traffic_first(
    reconciler: Reconciler, endpoint: DesiredEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    routed: list[str] = []

    async def ensure(_model: str, version: int, _digest: str) -> None:
        begun.append(version)
        if len(begun) < 2:
            await asyncio.wait_for(second.wait(), 10)  # for ever, if one were loaded after the other
        second.set()

    async def route(_endpoints: tuple[DesiredEndpoint, ...]) -> None:
        routed.append("routes")

    second = asyncio.Event()
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(reconciler, "_ensure", ensure)
    monkeypatch.setattr(reconciler, "_route", route)
    wanted = tuple(
        v.model_copy(update={"weight": weight}) for v, weight in zip(endpoint.versions, (10, 0, 90), strict=True)
    )
    asyncio.run(reconciler.reconcile(Desired(endpoints=(endpoint.model_copy(update={"versions": wanted}),))))
    assert begun == [3, 1, 2]
    assert len(routed) == 4  # before all, and after each


def test_newer_state_keeps_those_from_being_loaded_that_wait_for_a_processor(
    reconciler: Reconciler, endpoint: DesiredEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    async def ensure(_model: str, version: int, _digest: str) -> None:
        begun.append(version)
        reconciler.overtaken.set()

    async def route(_endpoints: tuple[DesiredEndpoint, ...]) -> None:
        pass

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(reconciler, "_ensure", ensure)
    monkeypatch.setattr(reconciler, "_route", route)
    with pytest.raises(Overtaken):
        asyncio.run(reconciler.reconcile(Desired(endpoints=(endpoint,))))
    assert begun == [1]


def test_torchserve_that_was_started_again_is_given_what_was_proven(
    reconciler: Reconciler, endpoint: DesiredEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was not is loaded from its archive once more; the routes stay as they are."""
    registered: list[str] = []

    class TorchServe:
        async def register(self, archive: str) -> None:
            registered.append(archive)

    monkeypatch.setattr(reconciler, "management", TorchServe())
    places: Any = reconciler.places
    reconciler.loaded["flights", 3].profile = None
    reconciler.workers_died()
    assert actual(reconciler, endpoint).reason.startswith("flights version 1 is LOADING: TorchServe died")
    asyncio.run(reconciler.register_again())
    assert [name.rpartition("-")[0] for name in registered] == ["flights-1", "flights-2"]
    assert places.closed == [("flights", 3)]
    assert reconciler.routed == (endpoint,)
    reconciler.check_workers()
    assert {loaded.state for loaded in reconciler.loaded.values() if loaded.proven} == {"READY"}


def test_a_node_that_starts_within_a_rollout_serves_the_champion_before_the_candidate_is_loaded(
    reconciler: Reconciler, endpoint: DesiredEndpoint
) -> None:
    def routable(ready: set[int]) -> dict[int, int] | None:
        for version in (1, 2, 3):
            profile = Profile(rows=0, features=()) if version in ready else None
            reconciler.loaded["flights", version].profile = profile
        found = reconciler._routable(endpoint.model_copy(update={"fallback": 1}))
        return {one.version: one.weight for one in found.versions} if found else None

    reconciler.routed = ()
    assert routable({2}) is None
    assert routable({1}) == {1: 100}
    assert routable({1, 2}) == {1: 90, 2: 10}
    reconciler.routed = (endpoint,)
    assert routable({1}) == {1: 90, 2: 10, 3: 0}  # as it was, where something was: a fall-back answers meanwhile
