"""The Kubernetes API in memory, asked by the real `Cluster`: what it answers are the statuses of a real one."""

import json
from typing import Any
from urllib.parse import parse_qs

from kubernetes.client import ApiClient, Configuration

from deploy.kubernetes.cluster import Cluster, Json

NAMESPACE = "team"
Answer = tuple[int, bytes]


class Api(Cluster):
    """ConfigMaps, Leases, Deployments, pods and events of one namespace."""

    def __init__(self) -> None:
        super().__init__(ApiClient(Configuration()), NAMESPACE, "desk")
        self.objects: dict[str, Json] = {}
        """By kind and name, `configmaps/flights-rollout`."""
        self.pages: dict[str, str] = {}
        """What pods answer over HTTP, by `POD:PORT/PATH`."""
        self.logs: dict[str, str] = {}
        """What containers logged, by `POD/CONTAINER`; with `/previous` before they were started again."""
        self.away: list[Answer] = []
        """What is answered in place of the next answers, as while the API server starts."""
        self.lost_answers: list[str] = []
        """Methods whose next answer is lost after it was done."""
        self.asked: list[str] = []
        self._changes = 0

    def add(self, kind: str, *things: Json) -> None:
        for thing in things:
            self._write(f"{kind}/{thing['metadata']['name']}", thing)

    def names(self, kind: str) -> list[str]:
        return [key.partition("/")[2] for key in sorted(self.objects) if key.startswith(f"{kind}/")]

    def count(self, method: str, part: str) -> int:
        """How often it was asked."""
        return sum(one.startswith(method) and part in one for one in self.asked)

    def _once(self, method: str, path: str, body: Json | None = None, *, seconds: float = 10.0) -> Answer:  # noqa: ARG002
        self.asked.append(f"{method} {path}")
        if self.away:
            return self.away.pop(0)
        before, _, rest = path.partition(f"/namespaces/{NAMESPACE}/")
        assert before in ("/api/v1", "/apis/apps/v1", "/apis/coordination.k8s.io/v1"), path
        resource, _, query = rest.partition("?")
        kind, _, name = resource.partition("/")
        status, answer = self._answer(method, kind, name, {key: one for key, (one,) in parse_qs(query).items()}, body)
        if method in self.lost_answers:
            self.lost_answers.remove(method)
            return 0, b"connection reset by peer"
        return status, answer if isinstance(answer, bytes) else json.dumps(answer, separators=(",", ":")).encode()

    def _answer(
        self, method: str, kind: str, name: str, query: dict[str, str], body: Json | None
    ) -> tuple[int, Json | bytes]:
        if "/" in name:
            return self._of_pod(name, query)
        if method == "POST":
            return self._create(kind, body or {})
        if not name:
            return 200, {"items": self._selected(kind, query)}
        found = self.objects.get(f"{kind}/{name}")
        if found is None:
            return _refused(404, f'{kind} "{name}" not found')
        if method == "DELETE":
            return 200, self.objects.pop(f"{kind}/{name}")
        return (200, found) if method == "GET" else self._change(method, f"{kind}/{name}", found, body or {})

    def _of_pod(self, name: str, query: dict[str, str]) -> tuple[int, Json | bytes]:
        if name.endswith("/log"):
            return self._log(name.removesuffix("/log"), query)
        page = self.pages.get(name.replace("/proxy", ""))
        return (200, page.encode()) if page is not None else _refused(503, "error trying to reach service")

    def _create(self, kind: str, body: Json) -> tuple[int, Json]:
        name = body["metadata"]["name"]
        if f"{kind}/{name}" in self.objects:
            return _refused(409, f'{kind} "{name}" already exists')
        return 201, self._write(f"{kind}/{name}", body)

    def _change(self, method: str, key: str, found: Json, body: Json) -> tuple[int, Json]:
        if method == "PUT" and body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            return _refused(409, "the object has been modified")
        changed = body if method == "PUT" else _merged(found, body)
        if found.get("immutable") and changed.get("data") != found.get("data"):
            return _refused(422, "field is immutable when `immutable` is set")
        return 200, self._write(key, changed)

    def _write(self, key: str, thing: Json) -> Json:
        self._changes += 1
        metadata = {**thing["metadata"], "resourceVersion": str(self._changes)}
        self.objects[key] = {**thing, "metadata": metadata}
        return self.objects[key]

    def _selected(self, kind: str, query: dict[str, str]) -> list[Json]:
        found = [self.objects[f"{kind}/{name}"] for name in self.names(kind)]
        if field := query.get("fieldSelector"):
            about = dict(pair.split("=") for pair in field.split(","))
            found = [one for one in found if all(_at(one, path) == value for path, value in about.items())]
        for pair in query.get("labelSelector", "").split(","):
            key, _, value = pair.partition("=")
            found = [one for one in found if not pair or (one["metadata"].get("labels") or {}).get(key) == value]
        return found

    def _log(self, pod: str, query: dict[str, str]) -> tuple[int, Json | bytes]:
        before = "/previous" if query["previous"] == "true" else ""
        lines = self.logs.get(f"{pod}/{query['container']}{before}")
        if lines is None:
            return _refused(400, "previous terminated container not found")
        return 200, "\n".join(lines.splitlines()[-int(query["tailLines"]) :]).encode()


def _refused(status: int, message: str) -> tuple[int, Json]:
    return status, {"kind": "Status", "status": "Failure", "message": message, "code": status}


def _at(thing: Any, path: str) -> Any:
    for key in path.split("."):
        thing = thing[key]
    return thing


def _merged(found: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
