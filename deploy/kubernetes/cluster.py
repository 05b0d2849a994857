"""What is asked of the Kubernetes API, in one namespace. It is found as kubectl finds it; objects are plain JSON.

Every method raises ClusterUnusable. An API server that does not answer is asked again for a while, because a rollout
outlives its restart: what is asked here is such that asking twice changes nothing.
"""

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import quote, urlencode

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError
from yaml import YAMLError

from deploy.errors import ClusterUnusable

PATIENCE_SECONDS = 60.0
"""How long an API server that does not answer is asked again."""
_PAUSE_SECONDS = 0.5
_ANSWERED_WITHIN_SECONDS = 10.0
_POD_ANSWERS_WITHIN_SECONDS = 3.0
"""A pod on a machine that is gone is called ready for a while, and never answers."""
_NOT_FOUND, _CONFLICT = 404, 409
_BUSY = (429, 500, 502, 503, 504)

Json = dict[str, Any]


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, api: ApiClient, namespace: str, context: str | None) -> None:
        self._api = api
        self.namespace = namespace
        self.context = context
        """Of kubectl's configuration; None inside a pod, whose service account is used."""

    @classmethod
    def current(cls, namespace: str | None) -> Self:
        """The cluster of the current context, or of the pod that this runs in."""
        file = os.environ.get("KUBECONFIG") or None  # the library looks at its own import
        try:
            _, active = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            return cls._inside(namespace, str(error))
        except YAMLError as error:
            raise ClusterUnusable("read KUBECONFIG", " ".join(str(error).split())) from error
        try:
            api = config.new_client_from_config(  # type: ignore[no-untyped-call]
                file, active["name"], client_configuration=Configuration(retries=0)
            )
        except (ConfigException, TypeError) as error:
            raise ClusterUnusable("read KUBECONFIG", str(error)) from error
        return cls(api, namespace or active["context"].get("namespace") or "default", active["name"])

    @classmethod
    def _inside(cls, namespace: str | None, reason: str) -> Self:
        try:
            config.load_incluster_config(own := Configuration(retries=0))  # type: ignore[no-untyped-call]
        except ConfigException as error:
            raise ClusterUnusable("find the cluster", f"{reason.rstrip('.')}; and this is no pod") from error
        return cls(ApiClient(own), namespace or "default", None)

    def deployments(self, selector: str) -> list[Json]:
        return self._list("/apis/apps/v1", "deployments", selector)

    def pods(self, selector: str) -> list[Json]:
        return self._list("/api/v1", "pods", selector)

    def config_maps(self, selector: str) -> list[Json]:
        return self._list("/api/v1", "configmaps", selector)

    def annotate_pod(self, name: str, annotations: Mapping[str, str]) -> None:
        """Nothing happens to a pod that is gone."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._ask("PATCH", f"{self._in('/api/v1', 'pods')}/{name}", patch, fine=(_NOT_FOUND,))

    def last_warning(self, pod: str) -> str:
        """What Kubernetes warned of last about a pod; empty where it did not, has forgotten, or does not say."""
        selector = quote(f"involvedObject.kind=Pod,involvedObject.name={pod},type=Warning")
        status, body = self._once("GET", f"{self._in('/api/v1', 'events')}?fieldSelector={selector}")
        found = json.loads(body)["items"] if status == 200 else ()
        newest: Json = max(found, key=_last_seen, default={})
        return " ".join(str(newest.get("message", "")).split())

    def last_line(self, pod: str, container: str, *, previous: bool = False) -> str:
        """What a container logged last; empty where there is nothing, or nothing yet."""
        query = urlencode({"container": container, "tailLines": 1, "previous": str(previous).lower()})
        status, body = self._once("GET", f"{self._in('/api/v1', 'pods')}/{pod}/log?{query}")
        return body.decode(errors="replace").strip() if status == 200 else ""

    def get_from_pod(self, pod: str, port: int, path: str) -> str:
        """What the pod answers over plain HTTP, also with an error, asked through the API server; empty if nothing."""
        resource = f"{self._in('/api/v1', 'pods')}/{pod}:{port}/proxy{path}"
        status, body = self._once("GET", resource, seconds=_POD_ANSWERS_WITHIN_SECONDS)
        from_pod = status and not body.startswith(b'{"kind":"Status"')
        return body.decode(errors="replace") if from_pod else ""

    def config_map(self, name: str) -> Json | None:
        return self._ask("GET", f"{self._in('/api/v1', 'configmaps')}/{name}", fine=(_NOT_FOUND,))

    def create_config_map(
        self, name: str, labels: Mapping[str, str], data: Mapping[str, str], *, immutable: bool = False
    ) -> bool:
        """False if there is one of that name with other data."""
        body = {"metadata": {"name": name, "labels": dict(labels)}, "data": dict(data), "immutable": immutable}
        if self._ask("POST", self._in("/api/v1", "configmaps"), body, fine=(_CONFLICT,)) is not None:
            return True
        # It may be our own, of an attempt whose answer was lost.
        found = self.config_map(name)
        return found is not None and found.get("data") == dict(data)

    def patch_config_map(self, name: str, patch: Json) -> None:
        self._ask("PATCH", f"{self._in('/api/v1', 'configmaps')}/{name}", patch)

    def write_config_map(self, name: str, labels: Mapping[str, str], data: Mapping[str, str]) -> None:
        """Create it, or give it this data."""
        if not self.create_config_map(name, labels, data):
            self.patch_config_map(name, {"metadata": {"labels": dict(labels)}, "data": dict(data)})

    def delete_config_map(self, name: str) -> None:
        """Nothing happens if there is none."""
        self._ask("DELETE", f"{self._in('/api/v1', 'configmaps')}/{name}", fine=(_NOT_FOUND,))

    def lease(self, name: str) -> Json | None:
        return self._ask("GET", f"{self._in('/apis/coordination.k8s.io/v1', 'leases')}/{name}", fine=(_NOT_FOUND,))

    def write_lease(self, name: str, found: Json | None, holder: str, seconds: int) -> Json | None:
        """Write who holds it over what was `found`; None if somebody else wrote it meanwhile."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "acquireTime": now,
            "renewTime": now,
        }
        leases = self._in("/apis/coordination.k8s.io/v1", "leases")
        if found is None:
            return self._ask("POST", leases, {"metadata": {"name": name}, "spec": spec}, fine=(_CONFLICT,))
        version = found["metadata"]["resourceVersion"]
        body = {"metadata": {"name": name, "resourceVersion": version}, "spec": spec}
        return self._ask("PUT", f"{leases}/{name}", body, fine=(_CONFLICT, _NOT_FOUND))

    def _in(self, group: str, resource: str) -> str:
        return f"{group}/namespaces/{self.namespace}/{resource}"

    def _list(self, group: str, resource: str, selector: str) -> list[Json]:
        found = self._ask("GET", f"{self._in(group, resource)}?labelSelector={quote(selector)}")
        return list(found["items"]) if found else []

    def _ask(self, method: str, path: str, body: Json | None = None, fine: tuple[int, ...] = ()) -> Json | None:
        """The object that is answered; None for an answer with a status that is fine too."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            status, answer = self._once(method, path, body)
            if 200 <= status < 300:
                return dict(json.loads(answer))
            if status in fine:
                return None
            if (status and status not in _BUSY) or time.monotonic() > deadline:
                raise ClusterUnusable(f"{method} {path.partition('?')[0]}", _words(status, answer))
            time.sleep(_PAUSE_SECONDS)

    def _once(
        self, method: str, path: str, body: Json | None = None, *, seconds: float = _ANSWERED_WITHIN_SECONDS
    ) -> tuple[int, bytes]:
        """Status and body; 0 and why, where nothing answers."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "*/*", "Content-Type": kind}
        resource, _, query = path.partition("?")
        verb, url, headers, sent, _form = self._api.param_serialize(
            method, resource, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            answer = self._api.call_api(verb, f"{url}?{query}", headers, sent, _request_timeout=seconds)
            return int(answer.status), answer.read() or b""  # type: ignore[no-untyped-call]
        except HTTPError as error:
            return 0, str(error).encode()


def _words(status: int, answer: bytes) -> str:
    """The API's own message."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        return f"{status or 'no answer'}: {answer.decode(errors='replace')[:500]}"


def _last_seen(event: Mapping[str, Any]) -> str:
    """When; of those that came once, when it was made."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"])
