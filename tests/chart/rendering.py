"""The chart as helm renders it, asked without any cluster."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.helm_binaries import helm

Json = dict[str, Any]

CHART = Path(__file__).parents[2] / "helm" / "shipway"
EXAMPLES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
MAJORS = (3, 4)
OLDEST, NEWEST = "1.30", "1.37"
"""Versions of Kubernetes: what Chart.yaml asks for, and the newest with schemas."""
WITHIN_SECONDS = 60

KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
OPEN: Json = {
    "model": {"name": "flights", "version": 7, "sha256": "sha256:" + "7" * 64},
    "trust": {"publicKeys": [KEY]},
    "source": {"mlflow": {"trackingUri": "http://mlflow:5000"}},
    "insecure": True,
}
"""The least that renders."""
CANARY: Json = {"canary": {"enabled": True, "model": {"version": 8, "sha256": "sha256:" + "8" * 64}}}
CLOSED: Json = {
    "insecure": False,
    "tls": {"existingSecret": "flights-tls"},
    "auth": {"apiKeys": {"existingSecret": "flights-keys"}},
}


class Refused(AssertionError):
    """Helm would not render; the message is helm's."""


def merged(*values: Mapping[str, Any]) -> Json:
    """As helm merges value files: objects by their keys, everything else replaced."""
    found: Json = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = merged(found[key], value) if both else value
    return found


def at(path: str, value: object) -> Json:
    """The values with this one alone, by its dotted path."""
    first, _, rest = path.partition(".")
    return {first: at(rest, value) if rest else value}


def example(name: str) -> Json:
    return dict(yaml.safe_load(EXAMPLES[name].read_text()))


def text(
    *values: Mapping[str, Any],
    major: int = 4,
    kube: str = NEWEST,
    release: str = "flights",
    chart: Path = CHART,
    options: Sequence[str] = (),
) -> str:
    """What `helm template` prints. Raises Refused."""
    return _template(json.dumps(merged(*values)), major, kube, release, chart, tuple(options))


def render(*values: Mapping[str, Any], **options: Any) -> list[Json]:
    """The objects of `text`."""
    return [each for each in yaml.safe_load_all(text(*values, **options)) if each]


def of_kind(objects: Sequence[Json], kind: str) -> list[Json]:
    return [each for each in objects if each["kind"] == kind]


def one(objects: Sequence[Json], kind: str, name: str = "") -> Json:
    """The only object of that kind whose name ends so."""
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"].endswith(name))
    return found


def deployment(objects: Sequence[Json], track: str = "stable") -> Json:
    (found,) = (
        each for each in of_kind(objects, "Deployment") if each["metadata"]["labels"]["shipway.dev/track"] == track
    )
    return found


def pod(objects: Sequence[Json], track: str = "stable") -> Json:
    return dict(deployment(objects, track)["spec"]["template"])


def node(template: Json) -> Json:
    """The node's container of a pod."""
    (found,) = (each for each in template["spec"]["containers"] if each["name"] == "node")
    return dict(found)


def environment(container: Json) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def images(objects: Sequence[Json]) -> list[str]:
    """Of all containers."""
    specs = [template["spec"] for template in templates(objects)]
    return [each["image"] for spec in specs for each in (*spec.get("initContainers", ()), *spec["containers"])]


def templates(objects: Sequence[Json]) -> list[Json]:
    """Every pod, with its metadata."""
    return [each["spec"]["template"] for each in of_kind(objects, "Deployment")] + of_kind(objects, "Pod")


def differences(before: Sequence[Json], after: Sequence[Json]) -> set[str]:
    """Where two renderings differ: KIND/NAME and the path to the value."""
    flat = [
        {f"{each['kind']}/{each['metadata']['name']}{path}": value for each in objects for path, value in leaves(each)}
        for objects in (before, after)
    ]
    return {path for path in flat[0].keys() | flat[1].keys() if flat[0].get(path) != flat[1].get(path)}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no object and no list, by its path. An entry with a name is known by it."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            name = inner.get("name", place) if isinstance(inner, dict) else place
            yield from leaves(inner, f"{path}/{name}")
    else:
        yield path, value


def lint(values: Mapping[str, Any], major: int) -> None:
    """`helm lint --strict`. Raises Refused."""
    _helm(major, ["lint", "--strict", str(CHART)], json.dumps(values))


def packaged(directory: Path) -> Path:
    _helm(4, ["package", str(CHART), "--destination", str(directory)], "{}", with_values=False)
    return next(directory.glob("*.tgz"))


def notes(*values: Mapping[str, Any], major: int = 4, upgrade: bool = False) -> str:
    """NOTES.txt as helm would print it. `helm template` leaves it out; here it is rendered as an object's text."""
    with tempfile.TemporaryDirectory() as directory:
        chart = Path(directory) / "shipway"
        _copy_with_notes(chart)
        options = ("--is-upgrade",) if upgrade else ()
        objects = render(*values, major=major, chart=chart, options=options)
    return str(one(objects, "ConfigMap", "-notes")["data"]["notes"])


def _copy_with_notes(chart: Path) -> None:
    shutil.copytree(CHART, chart)
    source = (chart / "templates" / "NOTES.txt").read_text()
    head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: the-notes}\ndata:\n"
    (chart / "templates" / "_notes.tpl").write_text('{{- define "notes" -}}\n' + source + "\n{{- end -}}\n")
    (chart / "templates" / "notes.yaml").write_text(head + '  notes: {{ include "notes" . | toJson }}\n')


@cache
def _template(values: str, major: int, kube: str, release: str, chart: Path, options: tuple[str, ...]) -> str:
    command = ["template", release, str(chart), "--namespace", "team", "--kube-version", kube, *options]
    return _helm(major, command, values)


def _helm(major: int, command: Sequence[str], values: str, *, with_values: bool = True) -> str:
    with tempfile.TemporaryDirectory() as home:
        # Neither a cluster nor settings of whoever runs the tests.
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": "/dev/null"}
        done = subprocess.run(
            [str(helm(major)), *command, *(["--values", "-"] if with_values else [])],
            input=values,
            capture_output=True,
            text=True,
            env=environment,
            timeout=WITHIN_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise Refused(re.sub(r"\s+", " ", done.stdout + done.stderr))
    return done.stdout
