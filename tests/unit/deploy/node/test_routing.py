"""Routing files: who is obeyed, and that what is wrong leaves in force what was right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.node.desired import DesiredEndpoint, Mirror, Peer
from deploy.node.routing import RELEASE, ROLLOUT, Routing
from deploy.node.serves import Serves
from tests.unit.deploy.node.conftest import DIGESTS

SERVES = Serves(model="flights", version=1, digest=DIGESTS[1])
CANARY = {"version": 2, "digest": DIGESTS[2], "host": "flights-canary.team.svc", "port": 8081, "weight": 5, "mirror": 0}
PEER = Peer(host="flights-canary.team.svc", port=8081)


class Mounted:
    """Two ConfigMaps as the kubelet mounts them: a file is a link through a directory that is swapped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._generation = 0

    def put(self, name: str, content: object) -> None:
        volume, file = (self.directory / name).parent, Path(name).name
        self._generation += 1
        data = volume / f"..{self._generation}"
        data.mkdir(parents=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (data / file).write_text(text)
        (volume / "..new").symlink_to(data.name)
        (volume / "..new").replace(volume / "..data")
        if not (volume / file).is_symlink():
            (volume / file).symlink_to(Path("..data") / file)

    def release(self, **changes: Any) -> None:
        self.put(RELEASE, {"canary": {**CANARY, **changes}})

    def rollout(self, **changes: Any) -> None:
        self.put(ROLLOUT, {"canary": {**CANARY, **changes}})


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


def read(routing: Routing) -> DesiredEndpoint:
    (endpoint,) = routing.read().endpoints
    return endpoint


def weights(routing: Routing) -> dict[int, int]:
    return {version.version: version.weight for version in read(routing).versions}


def test_without_routing_files_a_pod_serves_its_version_alone() -> None:
    routing = Routing(SERVES, None)
    assert routing.read() == SERVES.desired()
    assert (routing.seen(), routing.problems()) == (Routing(SERVES, None).seen(), ())


def test_release_says_who_the_canary_is_and_what_it_gets(mounted: Mounted) -> None:
    mounted.put(RELEASE, {"canary": None})
    routing = Routing(SERVES, mounted.directory)
    assert routing.read() == SERVES.desired()
    mounted.release(mirror=20)
    found = read(routing)
    assert [(v.version, v.digest, v.weight, v.peer) for v in found.versions] == [
        (1, DIGESTS[1], 95, None),
        (2, DIGESTS[2], 5, PEER),
    ]
    assert (found.fallback, found.mirror, found.explainer) == (1, Mirror(version=2, percent=20), None)
    assert routing.problems() == ()
    mounted.put(RELEASE, {"canary": None})
    assert routing.read() == SERVES.desired()


def test_explanations_are_never_the_canarys(mounted: Mounted) -> None:
    mounted.release(weight=100)
    assert read(Routing(SERVES.model_copy(update={"explain": True}), mounted.directory)).explainer == 1


def test_rollout_moves_weights_while_it_names_that_very_canary(mounted: Mounted) -> None:
    mounted.release(weight=0)
    routing = Routing(SERVES, mounted.directory)
    assert weights(routing) == {1: 100, 2: 0}
    mounted.rollout(weight=25, mirror=10, host="elsewhere.svc", port=1)
    assert weights(routing) == {1: 75, 2: 25}
    assert read(routing).versions[1].peer == PEER
    assert read(routing).mirror == Mirror(version=2, percent=10)
    for other in ({"digest": DIGESTS[3]}, {"version": 3}):
        mounted.rollout(weight=50, **other)
        assert weights(routing) == {1: 100, 2: 0}
    mounted.rollout(weight=100)
    assert weights(routing) == {1: 0, 2: 100}
    mounted.put(ROLLOUT, {"canary": None})
    assert weights(routing) == {1: 100, 2: 0}
    mounted.rollout(weight=30)
    assert weights(routing) == {1: 70, 2: 30}
    (mounted.directory / ROLLOUT).unlink()
    assert weights(routing) == {1: 100, 2: 0}
    assert routing.problems() == ()


def test_rollout_alone_makes_no_canary(mounted: Mounted) -> None:
    mounted.put(RELEASE, {"canary": None})
    mounted.rollout(weight=50)
    assert Routing(SERVES, mounted.directory).read() == SERVES.desired()


def test_canary_that_is_this_pods_own_version_is_none(mounted: Mounted) -> None:
    """A pod of the promoted version, while the promotion is rolled back."""
    mounted.release()
    promoted = Serves(model="flights", version=2, digest=DIGESTS[2])
    routing = Routing(promoted, mounted.directory)
    assert routing.read() == promoted.desired()
    assert routing.problems() == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (RELEASE, "{", "Invalid JSON"),
        (RELEASE, {}, "canary: Field required"),
        (RELEASE, {"canary": {**CANARY, "weight": 101}}, "canary.weight: Input should be less than or equal to 100"),
        (RELEASE, {"canary": {**CANARY, "version": "2"}}, "canary.version: Input should be a valid integer; found '2'"),
        (RELEASE, {"canary": {**CANARY, "host": "a b"}}, "canary.host: String should match pattern"),
        (RELEASE, {"canary": {**CANARY, "weigth": 5}}, "canary.weigth: Extra inputs are not permitted"),
        (ROLLOUT, "{", "Invalid JSON"),
        (ROLLOUT, {"canary": {**CANARY, "mirror": -1}}, "canary.mirror: Input should be greater than or equal to 0"),
    ],
)
def test_what_is_wrong_leaves_in_force_what_was_and_is_said(
    mounted: Mounted, name: str, content: object, words: str
) -> None:
    mounted.release()
    mounted.rollout(weight=25)
    routing = Routing(SERVES, mounted.directory)
    before = routing.read()
    mounted.put(name, content)
    assert routing.read() == before
    (problem,) = routing.problems()
    assert problem.startswith(f"the routing that was there before stays in force: {mounted.directory / name} is not")
    assert words in problem
    mounted.release()
    mounted.rollout(weight=10)
    assert weights(routing) == {1: 90, 2: 10}
    assert routing.problems() == ()


def test_missing_file_of_the_release_is_said_and_changes_nothing(mounted: Mounted) -> None:
    routing = Routing(SERVES, mounted.directory)
    assert routing.read() == SERVES.desired()
    assert "it is not there" in routing.problems()[0]
    mounted.release()
    assert weights(routing) == {1: 95, 2: 5}
    (mounted.directory / RELEASE).unlink()
    assert weights(routing) == {1: 95, 2: 5}
    assert "it is not there" in routing.problems()[0]


def test_change_is_seen_as_the_kubelet_makes_it(mounted: Mounted) -> None:
    mounted.put(RELEASE, {"canary": None})
    routing = Routing(SERVES, mounted.directory)
    seen = [routing.seen()]
    changes: tuple[Callable[[], object], ...] = (
        mounted.release,
        mounted.rollout,
        (mounted.directory / ROLLOUT).unlink,
    )
    for change in changes:
        change()
        assert routing.seen() != seen[-1]
        seen.append(routing.seen())
    assert routing.seen() == seen[-1]
