"""Explanations of a running node: at paths of their own, by a worker of their own, beside predictions."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy import stack
from deploy.node.desired import Desired, read_actual, serve, write_state
from tests.integration import clients
from tests.integration.clients import Load, Tally, post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]


def with_explainer(lab: Lab, version: int) -> Desired:
    """Both versions, with an explainer of one."""
    endpoint = lab.desired(100, 0).endpoints[0]
    return Desired(endpoints=(endpoint.model_copy(update={"explainer": version}),))


def explainer_state(running: RunningNode) -> str:
    actual = read_actual(running.settings.actual_file)
    explainer = actual.endpoints[0].explainer if actual and actual.endpoints else None
    return explainer.state if explainer else ""


@pytest.fixture(scope="module")
def running(lab: Lab, free_ports: Ports) -> Iterator[RunningNode]:
    """A node whose version 1 has an explainer."""
    with node(lab, free_ports(2), with_explainer(lab, 1)) as found:
        wait_until_ready(found.settings, 2)
        wait_for(lambda: explainer_state(found) == "READY", 60)
        yield found


def predicted(running: RunningNode, row: dict[str, Any]) -> float:
    status, _, body = post(running.port, "/predictions/flights/1", row)
    assert status == 200, body
    (probability,) = json.loads(body).values()
    return float(probability)


def test_explanation_adds_up_to_what_predictions_say(lab: Lab, running: RunningNode) -> None:
    row = lab.row(5)
    status, headers, body = post(running.port, "/explanations/flights", row)
    assert status == 200, body
    assert (headers["x-shipway-model"], headers["x-shipway-version"]) == ("flights", "1")
    assert headers["x-shipway-digest"] == lab.first.digest
    assert headers["x-shipway-prediction-id"]
    found = json.loads(body)
    assert found["attributions"].keys() == found["baseline"].keys() == row.keys()
    value, baseline = predicted(running, row), predicted(running, found["baseline"])
    assert found["value"] == pytest.approx(value, rel=1e-5)
    assert found["baseline_value"] == pytest.approx(baseline, rel=1e-5)
    assert found["within_tolerance"]
    assert abs(value - baseline) > 2 * found["tolerance"], "this test would show little"
    assert sum(found["attributions"].values()) == pytest.approx(value - baseline, abs=1.01 * found["tolerance"])


def test_every_path_and_version_that_has_an_explainer(lab: Lab, running: RunningNode) -> None:
    rows = [lab.row(5), lab.row(0)]  # the second has no value wherever one may be missing
    plain = [post(running.port, f"/explanations/flights{pin}", rows) for pin in ("", "/1")]
    request = {"id": "42", "parameters": {"steps": 64}, "inputs": two_rows(lab, (5, 0))}
    oip = [post(running.port, f"/v2/models/flights{pin}/explain", request) for pin in ("", "/versions/1")]
    assert [status for status, _, _ in (*plain, *oip)] == [200] * 4, (plain, oip)
    first, second = json.loads(plain[0][2])
    assert second["value"] == pytest.approx(lab.expected()[0], rel=1e-4)
    missing = [name for name, value in rows[1].items() if value is None]
    assert missing
    assert all(second["attributions"][name] == 0 for name in missing)
    for _, _, body in oip:
        document = json.loads(body)
        assert (document["id"], document["model_name"], document["model_version"]) == ("42", "flights", "1")
        assert [one["value"] for one in document["explanations"]] == pytest.approx([first["value"], second["value"]])
        assert {one["steps_asked"] for one in document["explanations"]} == {64}


def two_rows(lab: Lab, rows: tuple[int, int]) -> list[dict[str, Any]]:
    inputs = lab.golden["request"]["inputs"]
    return [{**tensor, "shape": [2], "data": [tensor["data"][row] for row in rows]} for tensor in inputs]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/explanations/flights/2", 404, "version 2 of model 'flights' has no explainer here; version 1 has"),
        ("/v2/models/flights/versions/2/explain", 404, "version 2 of model 'flights' has no explainer here"),
        ("/explanations/flights/9", 404, "version '9' of model 'flights' is not served here; served: 1, 2"),
        ("/explanations/trains", 404, "model 'trains' is not served here; served: flights"),
        ("/predictions/flights-explainer", 404, "model 'flights-explainer' is not served here; served: flights"),
        ("/v2/models/flights-explainer/infer", 404, "model 'flights-explainer' is not served here; served: flights"),
        ("/explanations/flights", 400, "column 'temp', row 0: wrong type; found 'warm'"),
        ("/explanations/flights?steps=9", 400, "query: nothing here takes one; found 'steps=9'"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_words(
    lab: Lab, running: RunningNode, path: str, status: int, words: str
) -> None:
    found, _, body = post(running.port, path, {**lab.row(5), "temp": "warm"})
    assert found == status, body
    assert json.loads(body)["error"].startswith(words)


def test_explanations_are_counted_apart_and_are_no_drift(lab: Lab, running: RunningNode) -> None:
    counted = 'shipway_requests_total{model="flights-explainer",outcome="ok",protocol="predictions",version="1"}'
    rows = 'shipway_rows_total{model="flights",version="1"}'
    before = samples(running.settings)
    assert post(running.port, "/explanations/flights", lab.row(5))[0] == 200
    wait_for(lambda: samples(running.settings).get(counted, 0) == before.get(counted, 0) + 1, 10)
    after = samples(running.settings)
    assert after[rows] == before[rows]
    assert not [series for series in after if "flights-explainer" in series and "_rows" in series]


def test_predictions_go_on_while_explainers_come_and_go(lab: Lab, running: RunningNode) -> None:
    row = lab.row(5)
    load = Load(running.port, json.dumps(row).encode(), 10**6, time.monotonic() + 120)
    asking = clients.run(load, [clients.http1] * 2)
    desired = running.settings.desired_file
    write_state(desired, lab.desired(100, 0))
    wait_for(lambda: post(running.port, "/explanations/flights", row)[0] == 404, 30)
    assert json.loads(post(running.port, "/explanations/flights", row)[2]) == {
        "error": "model 'flights' has no explainer here"
    }
    wait_for(lambda: len(running.children("model_service_worker")) == 2, 30)
    write_state(desired, with_explainer(lab, 1))
    wait_for(lambda: post(running.port, "/explanations/flights", row)[0] == 200, 60)
    serve(desired, "flights", 2, lab.second.digest)  # the explainer follows the traffic
    wait_for(lambda: post(running.port, "/explanations/flights", row)[1].get("x-shipway-version") == "2", 60)
    store = running.settings.run_dir / "node" / "store"
    names = {"flights-1", "flights-2", "flights-explainer-2"}
    wait_for(lambda: {path.name.rpartition("-")[0] for path in store.iterdir()} == names, 30)
    assert [one.explainer for one in stack.status(running.settings).models] == ["READY", ""]
    load.deadline = 0
    tally = Tally.sum(asking.wait(60))
    assert tally.dropped == []
    assert tally.statuses.keys() == {200}
