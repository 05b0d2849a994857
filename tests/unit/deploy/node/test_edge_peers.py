"""A canary on another node, by two real Envoys: what it loses the stable one answers, and it answers peers alone."""

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from deploy.node.desired import DesiredEndpoint, DesiredVersion, Mirror, Peer
from deploy.node.envoy import Edge, Own
from deploy.node.layout import make_layout
from deploy.node.peers import DIGEST_HEADER, REFUSED_HEADER
from handlers.answer import CALL_HEADER, REPLAY_HEADER, SHADOW
from tests.unit.deploy.node.conftest import DIGESTS, let_go
from tests.unit.deploy.node.real_edge import Answer, RealEdge, real_edge, wait_for_line
from tests.unit.deploy.node.test_edge_protocols import INFER, call, infer
from tests.unit.deploy.node.test_edge_rollout import ASKED, SHARED, answered, counted, lost, until_counted
from tests.waiting import wait_for

LIMIT = 2 << 20
PREDICTION = "1795000000.250000-0b6c9d1e-8f2a-4c3d-8f2a-0123456789ab"
CALL = f"{PREDICTION} predictions 5"


@dataclass(frozen=True)
class Fleet:
    stable: RealEdge
    canary: RealEdge

    def ask_peer(self, path: str = "/peer/flights/2", **headers: str) -> Answer:
        """What another node may ask."""
        own = self.canary.edge.own
        assert own is not None
        at_peer_port = replace(self.canary, edge=replace(self.canary.edge, port=own.port))
        said = {DIGEST_HEADER: DIGESTS[2], CALL_HEADER: CALL, **headers}
        return at_peer_port.ask("POST", path, b"{}", **{name.replace("-", "_"): value for name, value in said.items()})


def stable_endpoint(peer: Peer, weight: int = 50, mirror: int = 0) -> DesiredEndpoint:
    versions = (
        DesiredVersion(version=1, digest=DIGESTS[1], weight=100 - weight),
        DesiredVersion(version=2, digest=DIGESTS[2], weight=weight, peer=peer),
    )
    copies = Mirror(version=2, percent=mirror) if mirror else None
    return DesiredEndpoint(model="flights", versions=versions, fallback=1, mirror=copies)


@pytest.fixture(scope="module")
def directories() -> Iterator[Callable[[], Path]]:
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp")))
        return made[-1]

    yield make
    for directory in made:
        let_go(directory / "run")
        shutil.rmtree(directory)


def edge_at(port: int, directory: Path, own: Own | None = None) -> Edge:
    return Edge("127.0.0.1", port, LIMIT, 5.0, directory / "access.log", threads=1, own=own)


Fleets = Callable[[], Path]


@pytest.fixture(scope="module")
def canary(directories: Fleets, free_ports: Callable[[int], list[int]]) -> Iterator[RealEdge]:
    directory, (port, peer_port) = directories(), free_ports(2)
    own = Own(peer_port, "flights", 2, DIGESTS[2])
    version = DesiredVersion(version=2, digest=DIGESTS[2], weight=100)
    endpoint = DesiredEndpoint(model="flights", versions=(version,))
    with real_edge(make_layout(directory / "run"), edge_at(port, directory, own), [endpoint], {2: 4}) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(directories: Fleets, canary: RealEdge, free_ports: Callable[[int], list[int]]) -> Iterator[Fleet]:
    assert canary.edge.own is not None
    endpoint = stable_endpoint(Peer(host="127.0.0.1", port=canary.edge.own.port))
    directory = directories()
    with real_edge(make_layout(directory / "run"), edge_at(free_ports(1)[0], directory), [endpoint]) as running:
        yield Fleet(running, canary)


@pytest.mark.parametrize("path", SHARED)
def test_who_answers_is_said_and_counted_once(fleet: Fleet, path: str) -> None:
    before, canary_before = counted(fleet.stable), counted(fleet.canary)
    seen: Counter[str] = Counter()
    for _ in range(ASKED):
        answer = fleet.stable.ask("POST", path, b"{}", x_request_id="mine", traceparent="00-1-2-03")
        version = answer.headers["x-shipway-version"]
        seen[version] += 1
        assert (answer.status, answer.seen["server"]) == (200, f"flights/{version}")
        assert answer.headers["x-shipway-digest"] == DIGESTS[int(version)]
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["traceparent"] == "00-1-2-03"
        assert answer.seen["headers"][CALL_HEADER].startswith(answer.headers["x-shipway-prediction-id"] + "-")
        assert "x-forwarded-proto" not in answer.seen["headers"]
        assert DIGEST_HEADER not in answer.seen["headers"]
        assert REFUSED_HEADER not in answer.headers
    assert set(seen) == {"1", "2"}
    after = until_counted(
        fleet.stable, lambda found: all(found[answered(v)] - before[answered(v)] == seen[str(v)] for v in (1, 2))
    )
    assert after[lost(2)] == before[lost(2)]
    assert counted(fleet.canary)[answered(2)] == canary_before[answered(2)]


@pytest.mark.parametrize("path", SHARED)
def test_what_the_canarys_worker_loses_is_answered_by_the_stable_version(fleet: Fleet, path: str) -> None:
    before = counted(fleet.stable)
    for _ in range(ASKED):
        answer = fleet.stable.ask("POST", path, b"{}", x_test_reset="flights/2")
        assert (answer.status, answer.seen["server"]) == (200, "flights/1")
        assert answer.headers["x-shipway-version"] == "1"
        assert answer.headers["x-shipway-digest"] == DIGESTS[1]
        assert REFUSED_HEADER not in answer.headers
    after = until_counted(fleet.stable, lambda found: found[answered(1)] - before[answered(1)] == ASKED)
    assert 0 < after[lost(2)] - before[lost(2)] < ASKED
    assert [after[answered(2, code)] for code in (200, 503)] == [before[answered(2, code)] for code in (200, 503)]


def test_errors_of_the_canarys_model_are_its_answers(fleet: Fleet) -> None:
    before = counted(fleet.stable)
    answers = [fleet.stable.ask("POST", SHARED[0], b"{}", x_test_status="500") for _ in range(ASKED)]
    seen = Counter(answer.headers["x-shipway-version"] for answer in answers)
    assert {answer.status for answer in answers} == {500}
    found = until_counted(fleet.stable, lambda found: found[answered(2, 500)] - before[answered(2, 500)] == seen["2"])
    assert found[lost(2)] == before[lost(2)]


def test_large_body_is_kept_for_the_fall_back(fleet: Fleet) -> None:
    before = counted(fleet.stable)
    for _ in range(20):
        answer = fleet.stable.ask("POST", SHARED[0], b"x" * LIMIT, x_test_reset="flights/2")
        assert (answer.status, answer.seen["server"], answer.seen["size"]) == (200, "flights/1", LIMIT)
    until_counted(fleet.stable, lambda found: found[lost(2)] > before[lost(2)])
    sizes = {fleet.stable.ask("POST", SHARED[0], b"x" * LIMIT).seen["size"] for _ in range(20)}
    assert sizes == {LIMIT}


def test_calls_over_grpc_go_to_the_canary_too(fleet: Fleet) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{fleet.stable.edge.port}") as channel:
        seen: Counter[str] = Counter()
        for _ in range(ASKED):
            answer, metadata = call(channel, INFER, infer(version=""))
            assert answer["server"] == f"flights/{metadata['x-shipway-version']}"
            assert answer["headers"]["content-type"] == "application/x-protobuf"
            seen[answer["server"]] += 1
        assert set(seen) == {"flights/1", "flights/2"}
        for _ in range(ASKED):
            answer, metadata = call(channel, INFER, infer(version=""), metadata=(("x-test-reset", "flights/2"),))
            assert (answer["server"], metadata["x-shipway-version"]) == ("flights/1", "1")
        answer, metadata = call(channel, INFER, infer(version="2"))
        assert (answer["server"], metadata["x-shipway-version"]) == ("flights/2", "2")


def test_who_pins_the_canary_gets_it_or_an_error_in_words(fleet: Fleet) -> None:
    for _ in range(20):
        answer = fleet.stable.ask("POST", "/predictions/flights/2", b"{}")
        assert (answer.seen["server"], answer.headers["x-shipway-version"]) == ("flights/2", "2")
    answer = fleet.stable.ask("POST", "/predictions/flights/2", b"{}", x_test_reset="flights/2")
    assert (answer.status, answer.headers["x-shipway-version"]) == (503, "2")
    assert "error" in answer.seen
    assert REFUSED_HEADER not in answer.headers


def test_access_logs_name_who_answered(fleet: Fleet) -> None:
    for number in range(20):
        fleet.stable.ask("POST", "/predictions/flights/2", b"{}", x_request_id=f"there-{number}-", traceparent="00-7")
    said = wait_for_line(fleet.stable.edge.access_log, "there-1-")
    assert (said["version"], said["protocol"], said["status"]) == ("flights/2", "predictions", 200)
    peers = wait_for_line(fleet.canary.edge.access_log, "there-1-")
    assert (peers["version"], peers["protocol"], peers["path"]) == ("flights/2/peer", "peer", "/peer/flights/2")
    assert peers["traceparent"] == "00-7"
    fleet.stable.ask("POST", "/nowhere", b"{}", x_request_id="lied", x_envoy_original_path="/elsewhere")
    assert wait_for_line(fleet.stable.edge.access_log, "lied")["path"] == "/nowhere"
    fleet.stable.ask("POST", "/predictions/flights/1", b"{}", x_request_id="tried", x_envoy_original_path="/elsewhere")
    assert wait_for_line(fleet.stable.edge.access_log, "tried")["path"] == "/predictions/flights/1"
    assert said["path"] == "/predictions/flights/2"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/peer/flights/1", {}),
        ("/peer/flights/2?x=1", {}),
        ("/peer/other/2", {}),
        ("/predictions/flights", {}),
        ("/v2/health/live", {}),
        ("/peer/flights/2", {DIGEST_HEADER: DIGESTS[1]}),
        ("/peer/flights/2", {CALL_HEADER: "forged"}),
        ("/peer/flights/2", {REPLAY_HEADER: "1"}),
    ],
)
def test_peer_port_answers_for_its_own_version_and_nothing_else(
    fleet: Fleet, path: str, headers: dict[str, str]
) -> None:
    answer = fleet.ask_peer(path, **headers)
    assert answer.status == 404
    assert "for flights version 2" in answer.seen["error"]
    assert answer.headers[REFUSED_HEADER] == "true"


def test_peer_is_asked_as_by_another_node(fleet: Fleet) -> None:
    answer = fleet.ask_peer(**{REPLAY_HEADER: SHADOW})
    assert (answer.status, answer.seen["server"]) == (200, "flights/2")
    assert answer.seen["headers"][REPLAY_HEADER] == SHADOW
    assert REFUSED_HEADER not in answer.headers


def alone(directories: Fleets, port: int, peer: Peer) -> tuple[Path, DesiredEndpoint, Edge]:
    directory = directories()
    return directory, stable_endpoint(peer), edge_at(port, directory)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "nobody.invalid", "192.0.2.1"], ids=["nobody listens", "no such name", "no answer at all"]
)
def test_canary_that_is_not_there_costs_nobody_a_request(
    directories: Fleets, free_ports: Callable[[int], list[int]], host: str
) -> None:
    port, nobody = free_ports(2)
    directory = directories()
    endpoint = stable_endpoint(Peer(host=host, port=nobody))
    with real_edge(make_layout(directory / "run"), edge_at(port, directory), [endpoint]) as stable:
        for _ in range(ASKED):
            answer = stable.ask("POST", SHARED[0], b"{}")
            assert (answer.status, answer.seen["server"]) == (200, "flights/1")
        found = until_counted(stable, lambda found: found[answered(1)] == ASKED)
        assert 0 < found[lost(2)] < ASKED
        pinned = stable.ask("POST", "/predictions/flights/2", b"{}")
        assert (pinned.status, pinned.headers["x-shipway-version"]) == (503, "2")


def test_copies_are_for_the_canary_and_seen_by_nobody(
    directories: Fleets, canary: RealEdge, free_ports: Callable[[int], list[int]]
) -> None:
    assert canary.edge.own is not None
    directory = directories()
    endpoint = stable_endpoint(Peer(host="127.0.0.1", port=canary.edge.own.port), weight=0, mirror=50)
    canary.copies.clear()
    with real_edge(make_layout(directory / "run"), edge_at(free_ports(1)[0], directory), [endpoint]) as stable:
        shown = set()
        for _ in range(100):
            answer = stable.ask("POST", SHARED[0], b"copied")
            assert answer.seen["server"] == "flights/1"
            shown.add(answer.headers["x-shipway-prediction-id"])
        copied = answered(2, metric="edge_shadow_requests")
        until_counted(stable, lambda found: found[copied] == len(canary.copies) > 0)
        assert 20 < len(canary.copies) < 80
        assert {copy["headers"][CALL_HEADER][:36] for copy in canary.copies} <= shown
        assert {(copy["headers"][REPLAY_HEADER], copy["body"]) for copy in canary.copies} == {(SHADOW, "copied")}
        assert counted(stable)[answered(2)] == 0


def test_more_than_the_canary_takes_is_answered_by_the_stable_version(fleet: Fleet) -> None:
    """Four may wait for it."""
    before = counted(fleet.stable)
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(fleet.stable.ask, "POST", SHARED[0], b"{}", x_test_seconds="0.5") for _ in range(80)]
        answers = [each.result() for each in asked]
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["x-shipway-version"] for answer in answers} == {"1", "2"}
    until_counted(fleet.stable, lambda found: found[lost(2)] > before[lost(2)])


def test_canary_that_is_killed_costs_nobody_a_request(
    directories: Fleets, free_ports: Callable[[int], list[int]]
) -> None:
    port, canary_port, peer_port = free_ports(3)
    mine, its = directories(), directories()
    own = Own(peer_port, "flights", 2, DIGESTS[2])
    version = DesiredVersion(version=2, digest=DIGESTS[2], weight=100)
    answering = DesiredEndpoint(model="flights", versions=(version,))
    endpoint = stable_endpoint(Peer(host="127.0.0.1", port=peer_port))
    with (
        real_edge(make_layout(its / "run"), edge_at(canary_port, its, own), [answering]) as canary,
        real_edge(make_layout(mine / "run"), edge_at(port, mine), [endpoint]) as stable,
    ):
        wait_for(lambda: stable.ask("POST", SHARED[0], b"{}").seen["server"] == "flights/2", 10)
        os.kill(canary.pid, signal.SIGKILL)
        for _ in range(200):
            assert stable.ask("POST", SHARED[0], b"{}").status == 200
