"""A rollout on one node: a candidate that dies costs nobody an answer, and one that is watched is seen by nobody."""

import json
import stat
import time
from collections.abc import Callable, Iterator

import pytest

from deploy.node.agreement import read_disagreements
from deploy.node.desired import Desired, Mirror, write_state
from tests.integration import clients
from tests.integration.clients import Load, Tally, post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.integration.test_node import grpc_request, sum_of, worker_of
from tests.waiting import wait_for

REQUESTS = 6_000
WATCHED = 300
ALIVE = 'shipway_workers{model="flights",state="alive",version="2"}'
LOST = 'shipway_edge_lost_requests_total{model="flights",version="2"}'


def rollout(desired: Desired, mirror: Mirror | None = None) -> Desired:
    """Version 1 falls in for version 2."""
    (endpoint,) = desired.endpoints
    return Desired(endpoints=(endpoint.model_copy(update={"fallback": 1, "mirror": mirror}),))


@pytest.fixture(scope="module")
def running(lab: Lab, free_ports: Callable[[int], list[int]]) -> Iterator[RunningNode]:
    with node(lab, free_ports(2), rollout(lab.desired(95, 5))) as found:
        wait_until_ready(found.settings, 2)
        yield found


def begin(running: RunningNode, desired: Desired) -> dict[str, float]:
    """Have `desired` in force with a living candidate; the metrics then."""
    write_state(running.settings.desired_file, desired)
    wanted = sorted((v.version, v.weight) for v in desired.endpoints[0].versions)

    def in_force() -> dict[str, float] | None:
        actual = wait_until_ready(running.settings, 2)
        found = samples(running.settings)
        weights = sorted((v.version, v.weight) for v in actual.endpoints[0].versions)
        return found if weights == wanted and found[ALIVE] > 0 else None

    return wait_for(in_force, 120)


def rise(running: RunningNode, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in samples(running.settings).items()}


@pytest.mark.parametrize("weight", [5, 50, 100])
def test_a_candidate_killed_under_load_costs_nobody_an_answer(lab: Lab, running: RunningNode, weight: int) -> None:
    before = begin(running, rollout(lab.desired(100 - weight, weight)))
    load = Load(running.port, json.dumps(lab.row()).encode(), REQUESTS, time.monotonic() + 150)
    asking = clients.run(load, [clients.http1] * 4 + [clients.http2] * 2 + [clients.grpc_unary(grpc_request(lab))] * 2)
    wait_for(lambda: load.taken > REQUESTS // 4, 120)
    worker_of(running, version=2).kill()
    killed_at = load.taken
    tally = Tally.sum(asking.wait(150))
    assert tally.dropped == []
    assert tally.statuses.keys() == {200, 0}  # of gRPC, OK
    assert tally.statuses.total() == REQUESTS

    def counted() -> dict[str, float] | None:
        found = rise(running, before)
        return found if sum_of(found, "shipway_edge_requests_total", 'code="200"') == REQUESTS else None

    found = wait_for(counted, 15)
    assert sum_of(found, "shipway_edge_requests_total", "") == REQUESTS  # each once
    # Whoever comes while nobody is there is turned away, and does not wait for the next worker.
    assert 0 < found[LOST] <= (REQUESTS - killed_at) + 8
    assert found['shipway_worker_restarts_total{model="flights",version="2"}'] <= 1


def test_a_watched_version_is_compared_and_counted_for_nobody(lab: Lab, running: RunningNode) -> None:
    before = begin(running, rollout(lab.desired(100, 0), Mirror(version=2, percent=50)))
    rows = len(lab.golden["request"]["inputs"][0]["data"])
    shown = {}
    for number in range(WATCHED):
        status, headers, body = post(running.port, "/predictions/flights", lab.row(number % rows))
        assert (status, headers["x-shipway-version"]) == (200, "1")
        shown[headers["x-shipway-prediction-id"]] = json.loads(body)

    def compared() -> dict[str, float] | None:
        found = rise(running, before)
        copies = sum_of(found, "shipway_edge_shadow_requests_total", 'version="2"')
        kept = sum_of(found, "shipway_feedback_predictions_total", 'version="1"')
        rows = sum_of(found, "shipway_shadow_rows_total", 'version="2"')
        return found if rows == copies > 0 and kept == WATCHED else None

    found = wait_for(compared, 20)
    assert WATCHED * 0.3 < sum_of(found, "shipway_shadow_rows_total", 'version="2"') < WATCHED * 0.7
    assert found['shipway_shadow_rows_total{model="flights",outcome="agree",version="2"}'] > 0
    assert found['shipway_edge_shadow_requests_total{code="200",model="flights",version="2"}'] > 0
    assert found['shipway_edge_shadow_request_seconds_count{model="flights",version="2"}'] > 0
    # As if nobody had asked it.
    for name in ("edge_requests", "requests", "rows", "feature_rows", "feedback_predictions"):
        assert sum_of(found, f"shipway_{name}_total", 'version="2"') == 0, name
        assert sum_of(found, f"shipway_{name}_total", 'version="1"') >= WATCHED, name
    disagreed = found['shipway_shadow_rows_total{model="flights",outcome="disagree",version="2"}']
    path = running.settings.disagreements_file
    assert disagreed > 0  # of about 150 copies the two versions answer 8 differently
    wait_for(lambda: len(read_disagreements(path, "flights")) == disagreed, 20)
    worst = read_disagreements(path, "flights")
    assert all(each.prediction_id in shown for each in worst)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_watched_version_that_dies_is_noticed_by_nobody(lab: Lab, running: RunningNode) -> None:
    before = begin(running, rollout(lab.desired(100, 0), Mirror(version=2, percent=100)))
    load = Load(running.port, json.dumps(lab.row()).encode(), REQUESTS, time.monotonic() + 150)
    asking = clients.run(load, [clients.http1] * 4 + [clients.grpc_unary(grpc_request(lab))] * 2)
    wait_for(lambda: load.taken > REQUESTS // 4, 120)
    worker_of(running, version=2).kill()
    tally = Tally.sum(asking.wait(150))
    assert tally.dropped == []
    assert tally.statuses.keys() == {200, 0}
    found = rise(running, before)
    assert sum_of(found, "shipway_edge_shadow_requests_total", 'code="503"') > 0
    assert sum_of(found, "shipway_edge_requests_total", 'version="2"') == 0
