"""Kubernetes' own schemas, and what they do not see: names, quantities, references between objects."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache

import jsonschema_rs

from tests.chart.rendering import Json, of_kind, templates
from tests.helm_binaries import schemas

CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("gateway.networking.k8s.io/v1", "BackendTLSPolicy"),
    ("external-secrets.io/v1", "ExternalSecret"),
}
"""Kinds that Kubernetes has no schema of. A real API server checks ours in tests/cluster."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST = {"Service": 63}
_LONGEST_OF_OTHERS = 253
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_BASE = "https://kubernetes.io"


def problems(objects: Sequence[Json], kubernetes: str) -> list[str]:
    """Everything that a strict reader of that Kubernetes finds wrong."""
    found = [problem for each in objects for problem in _by_schema(each, kubernetes)]
    return [*found, *_by_rules(objects)]


def _by_schema(one: Json, kubernetes: str) -> Iterator[str]:
    kind = (one["apiVersion"], one["kind"])
    if kind in CUSTOM:
        return
    validator = _validator(*kind, kubernetes)
    if validator is None:
        yield f"{one['kind']}/{one['metadata']['name']}: Kubernetes {kubernetes} has no {one['apiVersion']}"
        return
    for error in validator.iter_errors(one):
        path = "/".join(map(str, error.instance_path))
        yield f"{one['kind']}/{one['metadata']['name']}: {path}: {error.message}"


@cache
def _validator(api: str, kind: str, kubernetes: str) -> jsonschema_rs.Draft202012Validator | None:
    folder = schemas(kubernetes)
    # apps/v1 -> apps-v1, networking.k8s.io/v1 -> networking-v1
    group, _, version = api.rpartition("/")
    path = folder / ("-".join(filter(None, (kind.lower(), group.partition(".")[0], version))) + ".json")
    if not path.is_file():
        return None
    return jsonschema_rs.Draft202012Validator(json.loads(path.read_text()), registry=_registry(kubernetes))


@cache
def _registry(kubernetes: str) -> jsonschema_rs.Registry:
    definitions = json.loads((schemas(kubernetes) / "_definitions.json").read_text())
    return jsonschema_rs.Registry([(f"{_BASE}/api/_definitions.json", definitions)])


def _by_rules(objects: Sequence[Json]) -> Iterator[str]:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    yield from (f"{name} is there twice" for name in set(names) if names.count(name) > 1)
    for each in objects:
        name, metadata = f"{each['kind']}/{each['metadata']['name']}", each["metadata"]
        longest = _LONGEST.get(each["kind"], _LONGEST_OF_OTHERS)
        if not _NAME.fullmatch(metadata["name"]) or len(metadata["name"]) > longest:
            yield f"{name}: no name of DNS, or too long for one"
        for key, value in metadata.get("labels", {}).items():
            if not _LABEL.fullmatch(str(value)):
                yield f"{name}: label {key} is {value}"
    for each in of_kind(objects, "Deployment"):
        labels, selector = each["spec"]["template"]["metadata"]["labels"], each["spec"]["selector"]["matchLabels"]
        if not selector.items() <= labels.items():
            yield f"{each['metadata']['name']}: selects {selector}, but its pods have {labels}"
    for template in templates(objects):
        yield from _of_pod(template)
    yield from _references(objects)


def _of_pod(template: Json) -> Iterator[str]:
    spec = template["spec"]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    names = [each["name"] for each in containers]
    volumes = [each["name"] for each in spec["volumes"]]
    yield from (f"container {name} is there twice" for name in set(names) if names.count(name) > 1)
    yield from (f"volume {name} is there twice" for name in set(volumes) if volumes.count(name) > 1)
    mounted = {mount["name"] for each in containers for mount in each["volumeMounts"]}
    yield from (f"{name} is mounted, and there is no such volume" for name in mounted - set(volumes))
    yield from (f"volume {name} is mounted nowhere" for name in set(volumes) - mounted)
    for each in containers:
        yield from _of_container(each)


def _of_container(container: Json) -> Iterator[str]:
    name = container["name"]
    variables = [each["name"] for each in container["env"]]
    yield from (f"{name}: {one} is set twice" for one in set(variables) if variables.count(one) > 1)
    paths = [each["mountPath"] for each in container["volumeMounts"]]
    yield from (f"{name}: two mounts at {path}" for path in set(paths) if paths.count(path) > 1)
    ports = {each["name"]: each["containerPort"] for each in container.get("ports", ())}
    yield from (f"{name}: port {port}" for port in ports.values() if not 0 < port < 65536)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container and container[probe]["httpGet"]["port"] not in ports:
            yield f"{name}: {probe} asks a port that is not there"
    resources = container["resources"]
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for quantity in (*limits.values(), *requests.values()):
        if not _QUANTITY.fullmatch(str(quantity)):
            yield f"{name}: {quantity} is no quantity"
    for resource in (one for one in (*limits, *requests) if "/" in one):
        if requests.get(resource, limits.get(resource)) != limits.get(resource):
            yield f"{name}: {resource} must be asked for as it is limited"


def _references(objects: Sequence[Json]) -> Iterator[str]:
    """From object to object of the release itself."""
    ports = {
        port["name"] for each in templates(objects) for c in each["spec"]["containers"] for port in c.get("ports", ())
    }
    for each in of_kind(objects, "Service"):
        yield from (
            f"Service {each['metadata']['name']}: no container has the port {port['targetPort']}"
            for port in each["spec"]["ports"]
            if port["targetPort"] not in ports
        )
        selector = each["spec"]["selector"].items()
        if not any(selector <= one["metadata"]["labels"].items() for one in templates(objects)):
            yield f"Service {each['metadata']['name']} selects no pod"
    deployments = {each["metadata"]["name"] for each in of_kind(objects, "Deployment")}
    for each in (*of_kind(objects, "HorizontalPodAutoscaler"), *of_kind(objects, "ScaledObject")):
        if each["spec"]["scaleTargetRef"]["name"] not in deployments:
            yield f"{each['kind']} scales nothing"
