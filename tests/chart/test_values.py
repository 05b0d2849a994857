"""What values the chart takes, and what it says to those that it does not. The numbers are those of the checklist."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import chart
from tests.chart.other_values import OTHER, REFUSING, base
from tests.chart.rendering import (
    CANARY,
    CHART,
    CLOSED,
    EXAMPLES,
    MAJORS,
    OLDEST,
    OPEN,
    Json,
    Refused,
    at,
    differences,
    example,
    lint,
    merged,
    packaged,
    render,
    text,
)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
IMAGE_VOLUMES = "1.33"
"""What that example needs."""

both = pytest.mark.parametrize("major", MAJORS)


def objects_of_schema(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every object whose keys the chart knows, by its path."""
    resolved = schema
    while "$ref" in resolved:
        resolved = SCHEMA["$defs"][resolved["$ref"].rpartition("/")[2]]
    if "properties" in resolved:
        yield path, resolved
        for key, inner in resolved["properties"].items():
            yield from objects_of_schema(inner, f"{path}.{key}".lstrip("."))


OBJECTS = dict(objects_of_schema(SCHEMA))
DEPRECATED = {key for key, one in SCHEMA["properties"].items() if one.get("deprecated")}


@both
@pytest.mark.parametrize("name", EXAMPLES)
def test_point_01_examples_pass_lint_and_render_alike_with_both_helms(name: str, major: int) -> None:
    lint(example(name), major)
    assert text(example(name), major=major) == text(example(name), major=4)


@pytest.mark.parametrize("name", EXAMPLES)
def test_point_01_examples_explain_themselves_in_three_lines(name: str) -> None:
    lines = EXAMPLES[name].read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert not lines[3].startswith("#")


def test_point_01_examples_are_all_that_were_promised() -> None:
    assert set(EXAMPLES) == {
        "argo-cd", "canary", "external-secrets", "gpu", "hardened", "imagevolume", "keda", "kube-prometheus-stack",
        "mig", "minimal-cpu",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"imagevolume"}))
def test_point_01_examples_render_on_the_oldest_kubernetes(name: str) -> None:
    assert render(example(name), kube=OLDEST)


def test_point_01_image_volumes_are_refused_where_there_are_none() -> None:
    with pytest.raises(Refused, match=r"source.type is image, and the cluster has Kubernetes v1.30: .* need 1.33"):
        render(example("imagevolume"), kube=OLDEST)
    assert render(example("imagevolume"), kube=IMAGE_VOLUMES)


@both
def test_point_01_an_older_kubernetes_is_refused(major: int) -> None:
    with pytest.raises(Refused, match=r"1\.30"):
        render(OPEN, kube="1.29", major=major)


@pytest.mark.parametrize("path", sorted(OBJECTS))
def test_point_02_unknown_keys_are_refused_everywhere(path: str) -> None:
    wanted = merged(base(OTHER[path][1]) if path in OTHER else OPEN, at(f"{path}.unknownKey".lstrip("."), 1))
    if OBJECTS[path].get("additionalProperties", True) is not False:
        # Kubernetes' own: an item of a list cannot be reached by a path here.
        pytest.fail(f"{path or 'the root'} lets unknown keys in")
    with pytest.raises(Refused, match="unknownKey"):
        text(wanted)


WRONG: dict[str, list[Any]] = {
    "model.version": ["latest", "7", 0, 1.5, "@champion"],
    "canary.model.version": ["latest", -1],
    "model.sha256": ["7" * 64, "sha256:7", "sha256:" + "G" * 64],
    "model.handlerConfig": [{"workers": 0}, {"batchSize": "many"}],
    "canary.weight": [101, -1, "5%"],
    "canary.mirror": [101],
    "maxCanaryShare": [0, 101],
    "image.digest": ["sha256:1"],
    "source.type": ["s3"],
    "source.mlflow.trackingUri": ["mlflow:5000", "ftp://mlflow"],
    "source.image.reference": ["archives:1"],
    "cache.type": ["hostPath"],
    "surge": ["always"],
    "replicaCount": [-1, "2"],
    "autoscaling.type": ["vpa"],
    "autoscaling.min": [0],
    "gpu.count": [0],
    "gpu.resourceName": ["gpu"],
    "service.type": ["ExternalName"],
    "insecure": ["yes"],
    "trust.publicKeys": [["not a key"], ["-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"]],
    "auth.jwt.jwks": [{"keys": []}, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, {"keys": [{"kty": "OKP", "d": "x"}]}],
    "extraEnv": [[{"value": "no name"}]],
    "resources.limits": [{"memory": "5 Gigabytes"}],
}


@both
@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_point_02_schema_refuses_with_the_path(path: str, value: Any, major: int) -> None:
    with pytest.raises(Refused) as refused:
        text(OPEN, at(path, value), major=major)
    said = str(refused.value).replace("/", ".")
    assert "schema" in said
    assert path in said


UNSAFE: list[tuple[Json, str]] = [
    (at("model.name", ""), "model.name is empty: it must be a registered name"),
    (at("model.version", "latest"), 'model.version is "latest": it must be a version\'s number'),
    (at("model.version", 1.5), 'model.version is "1.5": it must be'),
    (at("model.version", None), 'model.version is "": it must be'),
    (at("model.sha256", "sha256:1"), 'model.sha256 is "sha256:1": it must be sha256: and 64 hex digits'),
    (at("trust.publicKeys", []), "trust.publicKeys is empty"),
    (at("trust.publicKeys", ["secret"]), "trust.publicKeys has a text that is no public key"),
    (at("image.tag", "latest"), 'image.tag is "latest": it must be a tag that stays'),
    (at("image.digest", "sha256:1"), 'image.digest is "sha256:1"'),
    (at("source.type", "s3"), 'source.type is "s3": it must be mlflow, pvc, image or http'),
    (at("source.mlflow.trackingUri", ""), "source.mlflow.trackingUri is"),
    (at("source", {"type": "pvc"}), "source.pvc.claimName is empty"),
    (at("source", {"type": "http"}), "source.http.url is"),
    (at("source", {"type": "image"}), "source.image.reference is"),
    (at("insecure", False), "tls.existingSecret is empty: it must be a Secret of type kubernetes.io/tls, or insecure"),
    (at("insecure", False), "auth is empty: auth.apiKeys.existingSecret or auth.jwt is needed, or insecure"),
    (at("auth.jwt.issuer", "https://login"), "auth.jwt is given in part"),
    (at("canary.weight", 5), "canary.weight is 5, and canary.enabled is false: it must be 0"),
    (merged(CANARY, at("canary.weight", 60)), "canary.weight is 60: it must not be more than maxCanaryShare, 50"),
    (merged(CANARY, at("canary.model.version", 7)), "canary.model.version is 7, and model.version too"),
    (merged(CANARY, at("canary.model.sha256", "")), 'canary.model.sha256 is ""'),
    (at("autoscaling", {"type": "hpa", "min": 9, "max": 3}), "autoscaling.min is 9: it must not be more than"),
    (at("autoscaling.type", "keda"), "autoscaling.prometheusAddress is empty"),
    (at("gateway.enabled", True), "gateway.parentRefs is empty"),
    (at("ingress.enabled", True), "ingress.hosts is empty"),
    (merged(CLOSED, at("gateway", {"enabled": True, "parentRefs": [{"name": "g"}]})), "gateway.backendTLS is empty"),
    (at("cache", {"type": "pvc", "accessMode": "ReadWriteOnce"}), "cache.accessMode is ReadWriteOnce"),
    (at("podLabels", {"shipway.dev/track": "mine"}), "podLabels has shipway.dev/track, which the chart sets"),
    (at("extraEnv", [{"name": "SHIPWAY_HOST", "value": "::"}]), "extraEnv has SHIPWAY_HOST, which the chart sets"),
]


@both
@pytest.mark.parametrize(("change", "words"), UNSAFE)
def test_point_02_templates_refuse_too_when_the_schema_is_skipped(change: Json, words: str, major: int) -> None:
    with pytest.raises(Refused) as refused:
        text(OPEN, change, major=major, options=["--skip-schema-validation"])
    assert words in str(refused.value)


def test_point_02_all_problems_are_told_at_once() -> None:
    with pytest.raises(Refused) as refused:
        text({})
    problems = ("model.name", "model.version", "model.sha256", "trust.publicKeys", "tls.existingSecret", "auth")
    assert all(f"- {problem} is" in str(refused.value) for problem in problems)


@pytest.mark.parametrize("path", sorted(REFUSING))
def test_point_02_a_tag_without_a_digest_is_refused_where_one_is_required(path: str) -> None:
    value, beside, words = REFUSING[path]
    with pytest.raises(Refused, match=words):
        text(base(beside), at(path, value))
    assert text(base(beside), at(path, value), at("image.digest", "sha256:" + "a" * 64))
    canary = merged(CANARY, {"canary": {"image": {"tag": "1.2.3"}}})
    with pytest.raises(Refused, match=r"canary.image has a tag and no digest"):
        text(base(beside), at(path, value), at("image.digest", "sha256:" + "a" * 64), canary)


def test_point_03_every_value_has_another_one_in_these_tests() -> None:
    assert {one.path for one in chart.values(CHART)} == OTHER.keys() | REFUSING.keys()


@pytest.mark.parametrize("path", sorted(OTHER))
def test_point_03_every_value_shows_in_an_object(path: str) -> None:
    value, beside = OTHER[path]
    assert differences(render(base(beside)), render(base(beside), at(path, value)))


def test_point_03_schema_and_values_have_the_same_keys() -> None:
    def keys(values: Mapping[str, Any], schema: Json, path: str) -> Iterator[str]:
        while "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        known = schema.get("properties")
        if known is None or path in ("model.handlerConfig", "canary.model.handlerConfig", "canary.image", "strategy"):
            return
        mine = set(values) | (set() if path else {"global"} | DEPRECATED)
        mine |= {"keys"} if path == "auth.jwt.jwks" else set()
        yield from (f"{path}.{key}" for key in mine ^ set(known))
        for key in values:
            if isinstance(values[key], Mapping):
                yield from keys(values[key], known[key], f"{path}.{key}".lstrip("."))

    assert list(keys(VALUES, SCHEMA, "")) == []


def test_point_03_every_value_is_explained() -> None:
    assert [one.path for one in chart.values(CHART) if not one.words] == []


def test_point_03_generated_files_are_what_they_are_made_from() -> None:
    """Rules, dashboards and the README's table: `make generate` changes nothing."""
    made = chart.generated(CHART)
    assert {path: (CHART / path).read_text() for path in made} == made
    there = {path.relative_to(CHART) for path in (CHART / "files").rglob("*") if path.is_file()}
    assert there == {path for path in made if path.parts[0] == "files"}


@both
@pytest.mark.parametrize("key", sorted(DEPRECATED))
def test_point_14_removed_keys_fail_with_what_to_use(key: str, major: int) -> None:
    with pytest.raises(Refused, match=rf"{key} is no value of this chart: use "):
        text(OPEN, {key: {"n_gpu": 4}}, major=major)


def test_point_14_every_removed_key_is_known_to_the_schema_and_to_upgrading() -> None:
    source = (CHART / "templates" / "_validate.tpl").read_text()
    block = source.partition('{{- define "shipway.removed" -}}\n')[2].partition("{{- end }}")[0]
    assert set(yaml.safe_load(block)) == DEPRECATED
    upgrading = (CHART / "UPGRADING.md").read_text()
    assert [key for key in DEPRECATED if f"`{key}" not in upgrading] == []


def test_point_15_packaged_chart_is_small(tmp_path: Path) -> None:
    assert packaged(tmp_path).stat().st_size < 200_000
