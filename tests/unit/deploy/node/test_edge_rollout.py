"""A rollout at the edge, by the real Envoy: what a version loses its fall-back answers, and copies harm nobody."""

import asyncio
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from deploy.node.admin import Admin
from deploy.node.desired import DesiredEndpoint, DesiredVersion, Mirror
from deploy.node.envoy import Edge
from deploy.node.exporter import metrics
from deploy.node.layout import make_layout
from deploy.node.places import Places
from handlers.answer import CALL_HEADER, REPLAY_HEADER, SHADOW
from tests.unit.deploy.node.conftest import DIGESTS, let_go
from tests.unit.deploy.node.real_edge import RealEdge, real_edge, wait_for_line
from tests.unit.deploy.node.test_edge_protocols import INFER, call, infer
from tests.waiting import wait_for

LIMIT = 1 << 20
ASKED = 60
SHARED = ("/predictions/flights", "/v2/models/flights/infer")


@pytest.fixture(scope="module")
def rollout(free_ports: Callable[[int], list[int]]) -> Iterator[RealEdge]:
    """Version 1 falls in for 2, which has half of the traffic; 3 gets copies of half of all that."""
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    edge = Edge("127.0.0.1", free_ports(1)[0], LIMIT, 5.0, directory / "access.log", threads=1)
    shares = zip((1, 2, 3), (50, 50, 0), strict=True)
    versions = tuple(DesiredVersion(version=v, digest=DIGESTS[v], weight=weight) for v, weight in shares)
    endpoint = DesiredEndpoint(model="flights", versions=versions, fallback=1, mirror=Mirror(version=3, percent=50))
    with real_edge(make_layout(directory / "run"), edge, [endpoint]) as running:
        yield running
    let_go(directory / "run")
    shutil.rmtree(directory)


def counted(real: RealEdge) -> dict[str, float]:
    """Every series of version 1, 2 and 3 at the edge."""

    async def once() -> bytes:
        admin = Admin(real.layout.admin_socket)
        try:
            return await metrics(real.layout, admin, Places(real.layout), [])
        finally:
            await admin.close()

    lines = [line for line in asyncio.run(once()).decode().splitlines() if not line.startswith("#")]
    return defaultdict(float, {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines})


def until_counted(real: RealEdge, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Envoy's threads bring their counts together now and then, and copies take their time."""
    return wait_for(lambda: found if condition(found := counted(real)) else None, 20)


def lost(version: int) -> str:
    return f'shipway_edge_lost_requests_total{{model="flights",version="{version}"}}'


def answered(version: int, code: int = 200, metric: str = "edge_requests") -> str:
    return f'shipway_{metric}_total{{code="{code}",model="flights",version="{version}"}}'


@pytest.mark.parametrize("path", SHARED)
@pytest.mark.parametrize("gzip", [False, True])
def test_what_a_version_loses_its_fall_back_answers_and_says_so(rollout: RealEdge, path: str, gzip: bool) -> None:
    before = counted(rollout)
    accepting = {"accept_encoding": "gzip"} if gzip else {}
    for _ in range(ASKED):
        answer = rollout.ask("POST", path, b"{}", x_test_reset="flights/2", **accepting)
        assert (answer.status, answer.seen["server"]) == (200, "flights/1")
        assert answer.headers["x-shipway-version"] == "1"
        assert answer.headers["x-shipway-digest"] == DIGESTS[1]
        assert answer.headers["x-shipway-prediction-id"] == answer.seen["headers"][CALL_HEADER][:36]
    after = until_counted(rollout, lambda found: found[answered(1)] - before[answered(1)] == ASKED)
    assert 0 < after[lost(2)] - before[lost(2)] < ASKED
    # Once, under who answered.
    assert [after[answered(2, code)] for code in (200, 503)] == [before[answered(2, code)] for code in (200, 503)]


@pytest.mark.parametrize("path", SHARED)
def test_version_that_answers_is_said_where_nothing_is_lost(rollout: RealEdge, path: str) -> None:
    before = counted(rollout)
    seen: Counter[str] = Counter()
    for _ in range(ASKED):
        answer = rollout.ask("POST", path, b"{}", x_test_status="400")
        assert answer.status == 400
        version = answer.headers["x-shipway-version"]
        assert answer.headers["x-shipway-digest"] == DIGESTS[int(version)]
        seen[version] += 1
    assert set(seen) == {"1", "2"}
    after = until_counted(
        rollout, lambda found: all(found[answered(v, 400)] - before[answered(v, 400)] == seen[str(v)] for v in (1, 2))
    )
    assert after[lost(2)] == before[lost(2)]


def test_access_log_names_who_answered(rollout: RealEdge) -> None:
    for number in range(20):
        rollout.ask("POST", SHARED[0], b"{}", x_test_reset="flights/2", x_request_id=f"lost-{number}-")
    for number in range(20):
        assert wait_for_line(rollout.edge.access_log, f"lost-{number}-")["version"] == "flights/1"


def test_who_pins_a_version_gets_no_other(rollout: RealEdge) -> None:
    before = counted(rollout)
    answer = rollout.ask("POST", "/predictions/flights/2", b"{}", x_test_reset="flights/2")
    assert answer.status == 503
    assert answer.headers["x-shipway-version"] == "2"
    after = until_counted(rollout, lambda found: found[answered(2, 503)] - before[answered(2, 503)] == 1)
    assert after[lost(2)] == before[lost(2)]


def test_fall_back_that_loses_it_too_is_an_error_in_words(rollout: RealEdge) -> None:
    answer = rollout.ask("POST", SHARED[0], b"{}", x_test_reset="flights/1 flights/2")
    assert answer.status == 503
    assert b"worker ended" in answer.body
    assert answer.headers["x-shipway-version"] == "1"


def test_body_just_below_the_limit_is_kept_for_the_fall_back(rollout: RealEdge) -> None:
    before = counted(rollout)
    for _ in range(20):
        answer = rollout.ask("POST", SHARED[0], b"x" * LIMIT, x_test_reset="flights/2")
        assert (answer.status, answer.seen["server"], answer.seen["size"]) == (200, "flights/1", LIMIT)
    until_counted(rollout, lambda found: found[lost(2)] > before[lost(2)])


def test_fall_back_answers_over_grpc(rollout: RealEdge) -> None:
    before = counted(rollout)
    with grpc.insecure_channel(f"127.0.0.1:{rollout.edge.port}") as channel:
        for _ in range(ASKED):
            seen, metadata = call(channel, INFER, infer(version=""), metadata=(("x-test-reset", "flights/2"),))
            assert seen["server"] == "flights/1"
            assert metadata["x-shipway-version"] == "1"
            assert metadata["x-shipway-digest"] == DIGESTS[1]
    until_counted(rollout, lambda found: found[lost(2)] > before[lost(2)])


def test_copies_are_a_share_and_carry_the_predictions_id(rollout: RealEdge) -> None:
    """The share is one of the requests of each version, whatever number has chosen the version."""
    before, shown = counted(rollout), {}
    rollout.copies.clear()
    for _ in range(200):
        answer = rollout.ask("POST", SHARED[0], b"copied", x_shipway_replay="forged")
        shown[answer.headers["x-shipway-prediction-id"]] = answer.headers["x-shipway-version"]
        assert REPLAY_HEADER not in answer.seen["headers"]
        assert answer.seen["server"] != "flights/3"
    copied = answered(3, metric="edge_shadow_requests")
    until_counted(rollout, lambda found: found[copied] - before[copied] == len(rollout.copies) > 0)
    of = Counter(shown[copy["headers"][CALL_HEADER][:36]] for copy in rollout.copies)
    assert 25 < of["1"] < 75
    assert 25 < of["2"] < 75
    assert {(copy["server"], copy["headers"][REPLAY_HEADER], copy["body"]) for copy in rollout.copies} == {
        ("flights/3", SHADOW, "copied")
    }
    assert counted(rollout)[answered(3)] == before[answered(3)]


def test_copies_that_fail_are_seen_by_nobody(rollout: RealEdge) -> None:
    before = counted(rollout)
    for _ in range(20):
        assert rollout.ask("POST", SHARED[0], b"{}", x_test_reset="flights/3").status == 200
    failed = answered(3, 503, metric="edge_shadow_requests")
    found = until_counted(rollout, lambda found: found[failed] > before[failed])
    assert found[answered(3, 503)] == 0


def test_pinned_requests_are_not_copied(rollout: RealEdge) -> None:
    rollout.copies.clear()
    for _ in range(20):
        rollout.ask("POST", "/predictions/flights/1", b"pinned")

    def last() -> bool:
        """Copies come later than answers, and one that came after those comes later than theirs."""
        rollout.ask("POST", SHARED[0], b"last")
        return "last" in [copy["body"] for copy in rollout.copies]

    wait_for(last, 20)
    assert {copy["body"] for copy in rollout.copies} == {"last"}
