"""What the launcher says of models: words for what is not served, however it was named."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import schemathesis
from aiohttp.test_utils import TestClient, TestServer
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2

from deploy.errors import StoreUnavailable
from deploy.node.control import PROTOBUF, _select, protocol_app, unexplained, unknown
from deploy.node.desired import Actual, ActualEndpoint, ActualExplainer, State
from deploy.node.labels import JOINED, Label, Result
from deploy.node.reconcile import Loaded
from deploy.node.routes import FEEDBACK
from handlers.protocol.messages import HEALTH_SERVICE, SERVICE

VERSIONS = {2: Loaded("flights", 2, ""), 1: Loaded("flights", 1, "")}


class View:
    """A node that serves flights, version 2 before version 1."""

    def actual(self) -> Actual:
        return Actual(pid=1, ready=True)

    def versions(self, model: str) -> dict[int, Loaded]:
        return VERSIONS if model == "flights" else {}

    def models(self) -> dict[str, list[int]]:
        return {"flights": list(VERSIONS)}

    async def label(self, labels: Sequence[Label | Result]) -> list[Result]:
        return [each if isinstance(each, Result) else JOINED for each in labels]


@pytest.mark.parametrize(
    ("model", "version", "found"), [("flights", "", 2), ("flights", "1", 1), ("flights", "2", 2), ("other", "", None)]
)
def test_version_is_found_by_its_number_or_its_weight(model: str, version: str, found: int | None) -> None:
    assert _select(View(), model, version) is (VERSIONS[found] if found else None)


@pytest.mark.parametrize("version", ["3", "01", "1.0", " 1", "-1", "²", "one", "1" * 5000])
def test_what_is_no_version_is_not_found(version: str) -> None:
    assert _select(View(), "flights", version) is None


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("flights", "7", "version '7' of model 'flights' is not served here; served: 2, 1"),
        ("a\nb", "", r"model 'a\nb' is not served here; served: flights"),
    ],
)
def test_words_name_what_is_served(model: str, version: str, words: str) -> None:
    assert unknown(View(), model, version) == words


def test_words_stay_short() -> None:
    assert len(unknown(View(), "x" * 10**6, "")) < 200


class Explained(View):
    """The same with an explainer, or none."""

    def __init__(self, explainer: ActualExplainer | None) -> None:
        self._endpoint = ActualEndpoint(model="flights", versions=(), explainer=explainer)

    def actual(self) -> Actual:
        return Actual(pid=1, ready=True, endpoints=(self._endpoint,))


@pytest.mark.parametrize(
    ("version", "state", "refusal"),
    [
        ("", "READY", None),
        ("2", "READY", None),
        ("1", "READY", (404, "version 1 of model 'flights' has no explainer here; version 2 has")),
        ("", "LOADING", (503, "the explainer of model 'flights' version 2 is LOADING")),
        ("2", "FAILED", (503, "the explainer of model 'flights' version 2 is FAILED")),
    ],
)
def test_what_has_no_explainer_is_told(version: str, state: State, refusal: tuple[int, str] | None) -> None:
    assert unexplained(Explained(ActualExplainer(version=2, state=state)), "flights", version) == refusal


def test_model_without_an_explainer_says_so() -> None:
    assert unexplained(Explained(None), "flights", "") == (404, "model 'flights' has no explainer here")


def ask(method: str, path: str, body: bytes = b"", view: View | None = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of one answer of the server behind the edge."""

    async def asking() -> tuple[int, dict[str, str], bytes]:
        over_grpc = "." in path.split("/")[1]
        headers = {"content-type": PROTOBUF} if over_grpc else {}
        async with TestClient(TestServer(protocol_app(view or View(), 1 << 20))) as client:
            answer = await client.request(method, path, data=body, headers=headers)
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()

    return asyncio.run(asking())


def call(path: str, message: Any, view: View | None = None) -> tuple[str, str, bytes]:
    """Status and message as gRPC has them, and the answer's message."""
    status, headers, body = ask("POST", f"/{path}", message.SerializeToString(), view)
    assert (status, headers["content-type"]) == (200, PROTOBUF)
    return headers.get("x-shipway-grpc-status", "0"), unquote(headers.get("x-shipway-grpc-message", "")), body


class Starting(View):
    def actual(self) -> Actual:
        return Actual(pid=1, ready=False)


@pytest.mark.parametrize("service", ["", SERVICE])
@pytest.mark.parametrize(("view", "status"), [(View(), "SERVING"), (Starting(), "NOT_SERVING")])
def test_health_of_the_node_is_grpcs_own(service: str, view: View, status: str) -> None:
    _, _, body = call(f"{HEALTH_SERVICE}/Check", health_pb2.HealthCheckRequest(service=service), view)
    assert health_pb2.HealthCheckResponse.FromString(body).status == health_pb2.HealthCheckResponse.ServingStatus.Value(
        status
    )


def test_health_of_a_model_is_that_of_its_version_with_most_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, expected in (("READY", 1), ("LOADING", 2)):
        monkeypatch.setattr(VERSIONS[2], "state", state)
        _, _, body = call(f"{HEALTH_SERVICE}/Check", health_pb2.HealthCheckRequest(service="flights"))
        assert health_pb2.HealthCheckResponse.FromString(body).status == expected


def test_health_of_what_is_not_served_is_not_found() -> None:
    status, words, _ = call(f"{HEALTH_SERVICE}/Check", health_pb2.HealthCheckRequest(service="boats"))
    assert (status, words) == ("5", "model 'boats' is not served here; served: flights")


@pytest.mark.parametrize("path", [f"{HEALTH_SERVICE}/List", f"{SERVICE}/RepositoryIndex", "other.Service/Call"])
def test_unknown_call_is_unimplemented_in_words(path: str) -> None:
    status, words, _ = call(path, health_pb2.HealthCheckRequest())
    assert status == "12"
    assert words.startswith("no such ")
    assert SERVICE in words


def test_message_of_another_kind_is_refused() -> None:
    status, headers, _ = ask("POST", f"/{HEALTH_SERVICE}/Check", b"\xff")
    assert (status, headers["x-shipway-grpc-status"]) == (200, "3")


def test_published_proto_compiles_to_the_messages_that_are_spoken(tmp_path: Path) -> None:
    status, headers, body = ask("GET", "/v2/proto")
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    (tmp_path / "published.proto").write_bytes(body)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--descriptor_set_out=out", "published.proto"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (found,) = FileDescriptorSet.FromString((tmp_path / "out").read_bytes()).file
    assert {m.name for m in found.message_type} >= {"ModelInferRequest", "ModelInferResponse", "ServerReadyRequest"}


def test_description_is_right_openapi_and_names_every_route() -> None:
    status, _, body = ask("GET", "/v2/openapi.json")
    assert status == 200
    document = json.loads(body)
    assert document["info"]["version"] != "0"
    schema = schemathesis.openapi.from_dict(document)
    schema.validate()
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    app = protocol_app(View(), 1 << 20)
    told = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    assert ("POST", FEEDBACK) in told & described
    assert {each for each in told if each[0] == "GET"} == {each for each in described if each[0] == "GET"}
    for path in (path for method, path in described if method == "POST" and path != FEEDBACK):
        status, headers, _ = ask("GET", path.format(model="flights", version=2))
        assert (status, headers.get("allow", "POST")) in ((405, "POST"), (404, "POST"))


def test_only_get_is_allowed_where_something_is_told() -> None:
    for path in ("/v2", "/v2/openapi.json", "/v2/models/flights", "/v2/models/flights/versions/2/ready"):
        status, headers, body = ask("DELETE", path)
        assert (status, headers["allow"]) == (405, "GET")
        assert json.loads(body) == {"error": "DELETE is not allowed here; allowed: GET"}


LABEL = {"prediction_id": "1795000000.250000-0b6c9d1e-8f2a-4c3d", "label": "late"}


class Broken(View):
    """A node whose store of predictions is not there."""

    async def label(self, labels: Sequence[Label | Result]) -> list[Result]:
        raise StoreUnavailable("/somewhere", f"no room for {len(labels)}")


def send(body: bytes, content_type: str = "", path: str = FEEDBACK, view: View | None = None) -> tuple[int, Any]:
    async def sending() -> tuple[int, Any]:
        headers = {"content-type": content_type} if content_type else {}
        async with TestClient(TestServer(protocol_app(view or View(), 1 << 20))) as client:
            answer = await client.post(path, data=body, headers=headers, skip_auto_headers=["content-type"])
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()

    return asyncio.run(sending())


@pytest.mark.parametrize("content_type", ["", "application/json", "application/json; charset=utf-8"])
def test_feedback_is_answered_with_outcomes(content_type: str) -> None:
    status, told = send(json.dumps([LABEL, {**LABEL, "row": -1}]).encode(), content_type)
    assert status == 200
    assert {name: told[name] for name in ("joined", "repeated", "unknown", "refused")} == {
        "joined": 1,
        "repeated": 0,
        "unknown": 0,
        "refused": 1,
    }
    assert told["problems"] == [
        {"index": 1, "outcome": "refused", "error": "row: wrong value; found -1; allowed: 0, 1, 2 and so on"}
    ]


@pytest.mark.parametrize(
    ("body", "content_type", "path", "status", "words"),
    [
        (b"{", "", FEEDBACK, 400, "body: not JSON"),
        (b"[]", "", FEEDBACK, 400, "body: wrong form; found []"),
        (json.dumps(LABEL).encode(), "", f"{FEEDBACK}?row=1", 400, "query: nothing here takes one; found 'row=1'"),
        (json.dumps([LABEL] * 10_001).encode(), "", FEEDBACK, 413, "body: too many labels; found 10001; allowed: at"),
        (b"a=b", "application/x-www-form-urlencoded", FEEDBACK, 415, "content-type: 'application/x-www-form-urlenc"),
    ],
)
def test_feedback_that_cannot_be_read_is_refused(
    body: bytes, content_type: str, path: str, status: int, words: str
) -> None:
    found, told = send(body, content_type, path)
    assert found == status
    assert told["error"].startswith(words)


def test_feedback_without_a_store_is_told_so() -> None:
    assert send(json.dumps(LABEL).encode(), view=Broken()) == (
        503,
        {"error": "the feedback store /somewhere cannot be used now: no room for 1"},
    )


def test_feedback_is_only_posted() -> None:
    status, headers, body = ask("GET", FEEDBACK)
    assert (status, headers["allow"]) == (405, "POST")
    assert json.loads(body) == {"error": "GET is not allowed here; allowed: POST"}
