"""What the chart renders. The numbers are those of the checklist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import snapshots
from tests.chart.other_values import DRA, GPU, HPA, JWT, KEDA, PVC, base
from tests.chart.rendering import (
    CANARY,
    CHART,
    CLOSED,
    EXAMPLES,
    NEWEST,
    OLDEST,
    OPEN,
    Json,
    Refused,
    at,
    deployment,
    differences,
    environment,
    example,
    images,
    merged,
    node,
    notes,
    of_kind,
    one,
    pod,
    render,
    templates,
    text,
)
from tests.chart.schemas import CUSTOM, problems

STABLE = "Deployment/flights-shipway"
POD = f"{STABLE}/spec/template"
NODE = f"{POD}/spec/containers/node"
TEST = "Pod/flights-shipway-test"
OTHER_DIGEST = "sha256:" + "a" * 64
LATEST_OF_VOLUMES = {"imagevolume"}
"""Examples that the oldest Kubernetes does not have."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_point_04_examples_are_rendered_as_their_snapshots_say(name: str) -> None:
    """`make generate` writes them anew; the difference is for the review."""
    assert snapshots.snapshot(name) == (snapshots.GOLDEN / f"{name}.yaml").read_text()


def test_point_04_there_is_no_other_snapshot() -> None:
    assert {path.stem for path in snapshots.GOLDEN.iterdir()} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_point_04_rendering_twice_gives_the_same_bytes(name: str) -> None:
    again = ("--skip-tests=false",)  # the same to helm, but asked of it once more
    assert text(example(name), options=again) == text(example(name))


ONE_PLACE: list[tuple[str, Any, set[str]]] = [
    (
        "drain.preStopSeconds",
        6,
        {f"{NODE}/lifecycle/preStop/sleep/seconds", f"{POD}/spec/terminationGracePeriodSeconds"},
    ),
    ("replicaCount", 3, {f"{STABLE}/spec/replicas", f"{STABLE}/metadata/annotations/shipway.dev/timeout-seconds"}),
    ("surge", "never", {f"{STABLE}/spec/strategy/rollingUpdate/{key}" for key in ("maxSurge", "maxUnavailable")}),
    ("node.jvmHeapMiB", 600, {f"{NODE}/env/SHIPWAY_JVM_HEAP_MIB/value"}),
    ("model.handlerConfig", {"workers": 2}, {f"{NODE}/env/SHIPWAY_SERVES/value"}),
    (
        "model.version",
        8,
        {
            f"{POD}/metadata/annotations/shipway.dev/version",
            f"{POD}/spec/initContainers/fetch/args/2",
            f"{NODE}/env/SHIPWAY_SERVES/value",
            f"{TEST}/spec/initContainers/fetch/args/2",
            f"{TEST}/spec/containers/predict/args/3",
        },
    ),
    (
        "source.mlflow.trackingUri",
        "http://m",
        {f"{place}/spec/initContainers/fetch/env/SHIPWAY_MLFLOW_URI/value" for place in (POD, TEST)},
    ),
]


@pytest.mark.parametrize(("path", "value", "places"), ONE_PLACE)
def test_point_04_one_value_changes_its_own_places_alone(path: str, value: Any, places: set[str]) -> None:
    assert differences(render(OPEN), render(OPEN, at(path, value))) == places


def test_point_04_weights_change_no_pod() -> None:
    before, after = (render(base(CANARY), at("canary.weight", weight)) for weight in (0, 25))
    assert differences(before, after) == {"ConfigMap/flights-shipway-routing/data/routing.json"}


@pytest.mark.parametrize("kubernetes", [OLDEST, "1.34", NEWEST])
@pytest.mark.parametrize("name", EXAMPLES)
def test_point_05_examples_are_what_kubernetes_takes(name: str, kubernetes: str) -> None:
    if name in LATEST_OF_VOLUMES and kubernetes == OLDEST:
        with pytest.raises(Refused):
            render(example(name), kube=kubernetes)
        return
    assert problems(render(example(name), kube=kubernetes), kubernetes) == []


@pytest.mark.parametrize(
    "values", [HPA, KEDA, DRA, PVC, JWT, merged(CANARY, CLOSED, HPA), at("strategy", {"type": "Recreate"})]
)
def test_point_05_so_are_values_of_no_example(values: Json) -> None:
    assert problems(render(base(values)), NEWEST) == []


def set_at(value: Json, path: str, new: Any) -> None:
    """An entry of a list is known by its name."""
    *above, last = path.split("//")
    target: Any = value
    for step in above:
        target = target[step] if isinstance(target, dict) else next(one for one in target if one["name"] == step)
    target[last] = new


IN_NODE = "spec//template//spec//containers//node"
BROKEN: dict[str, Any] = {
    "apiVersion": "apps/v1beta1",
    "metadata//name": "Flights_Shipway",
    "metadata//labels//app.kubernetes.io/version": 1,
    "metadata//labels//shipway.dev/track": "-stable-",
    "spec//replicas": "two",
    "spec//template//metadata//labels//shipway.dev/track": "canary",
    "spec//template//spec//volumes//tmp//name": "temp",
    f"{IN_NODE}//livenessProbe//httpGet//port": "web",
    f"{IN_NODE}//name": "fetch",
    f"{IN_NODE}//ports//http//containerPort": 70000,
    f"{IN_NODE}//portz": [],
    f"{IN_NODE}//resources//limits//memory": "5Gx",
    f"{IN_NODE}//resources//requests": {"nvidia.com/gpu": 1},
}


@pytest.mark.parametrize("path", sorted(BROKEN))
def test_point_05_the_checks_themselves_see_what_is_wrong(path: str) -> None:
    found = deployment(render(OPEN))
    assert problems([found], NEWEST) == []
    set_at(found, path, BROKEN[path])
    assert problems([found], NEWEST)


def test_point_06_rules_pass_promtool_and_are_the_chart_s_own() -> None:
    rules = CHART / "files" / "rules" / "shipway.yaml"
    done = subprocess.run(
        ["promtool", "check", "rules", str(rules)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rendered = one(render(OPEN, at("metrics.rules.enabled", True)), "PrometheusRule")
    assert rendered["spec"] == yaml.safe_load(rules.read_text())


def test_point_06_dashboards_are_rendered_byte_by_byte() -> None:
    objects = render(OPEN, at("metrics.dashboards.enabled", True))
    maps = [each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"].endswith("-dashboard")]
    found = {name: content for each in maps for name, content in each["data"].items()}
    assert found == {path.name: path.read_text() for path in (CHART / "files" / "dashboards").iterdir()}
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in maps)


def test_point_06_custom_resources_are_no_others_than_those_that_a_real_server_checks() -> None:
    everything = [each for name in EXAMPLES for each in render(example(name))]
    builtin = {"v1", "apps/v1", "networking.k8s.io/v1", "policy/v1", "autoscaling/v2", "resource.k8s.io/v1"}
    assert {(each["apiVersion"], each["kind"]) for each in everything if each["apiVersion"] not in builtin} == CUSTOM


def test_point_08_no_image_is_latest_and_a_digest_wins() -> None:
    for name in EXAMPLES:
        assert not [image for image in images(render(example(name))) if image.endswith(":latest") or ":" not in image]
    both = {"image": {"tag": "1.2.3", "digest": OTHER_DIGEST}}
    assert set(images(render(OPEN, both))) == {f"shipway@{OTHER_DIGEST}"}
    assert set(images(render(OPEN, at("image.tag", "1.2.3")))) == {"shipway:1.2.3"}


def test_point_08_another_registry_reaches_every_image() -> None:
    objects = render(base(CANARY), at("image.registry", "registry.example.org/"))
    assert len(images(objects)) == 7  # node and fetch of both tracks; two times fetch, and predict, of the test
    assert {image.partition("/")[0] for image in images(objects)} == {"registry.example.org"}


def test_point_08_a_canary_s_own_tag_is_not_hidden_by_the_stable_digest() -> None:
    objects = render(base(CANARY), {"image": {"digest": OTHER_DIGEST}, "canary": {"image": {"tag": "2.0.0"}}})
    assert node(pod(objects))["image"] == f"shipway@{OTHER_DIGEST}"
    assert node(pod(objects, "canary"))["image"] == "shipway:2.0.0"


def test_point_09_nothing_speaks_of_gpus_without_one() -> None:
    rendered = text(base(CANARY)).lower()
    assert "nvidia" not in rendered
    assert "gpu" not in rendered
    assert "tolerations" not in rendered


@pytest.mark.parametrize(
    "resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "nvidia.com/gpu.shared", "amd.com/gpu"]
)
def test_point_09_any_resource_may_be_asked_for_in_limits_alone(resource: str) -> None:
    template = pod(render(base(GPU), {"gpu": {"resourceName": resource, "count": 2}}))
    resources = node(template)["resources"]
    assert resources["limits"][resource] == 2
    assert resource not in resources["requests"]
    assert template["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    (fetch,) = template["spec"]["initContainers"]
    assert resource not in fetch["resources"]["limits"]


def test_point_09_devices_may_be_claimed_instead() -> None:
    objects = render(base(DRA))
    template = pod(objects)
    assert "nvidia.com/gpu" not in node(template)["resources"]["limits"]
    assert node(template)["resources"]["claims"] == [{"name": "gpu"}]
    (claim,) = template["spec"]["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == one(objects, "ResourceClaimTemplate")["metadata"]["name"]
    with pytest.raises(Refused, match=r"gpu.dra.enabled is true, and the cluster has Kubernetes v1.33"):
        render(base(DRA), kube="1.33")


def test_point_10_selectors_never_change(tmp_path: Path) -> None:
    other = tmp_path / "shipway"
    shutil.copytree(CHART, other)
    chart = yaml.safe_load((other / "Chart.yaml").read_text())
    (other / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "9.9.9", "appVersion": "8.8.8"}))
    words = {"example.org/team": "delays"}
    labels = {"commonLabels": words, "podLabels": words, "nameOverride": "shipway", "model": {"name": "weather"}}
    before, after = render(base(CANARY)), render(base(CANARY), labels, chart=other)
    for track in ("stable", "canary"):
        expected = {
            "app.kubernetes.io/name": "shipway",
            "app.kubernetes.io/instance": "flights",
            "shipway.dev/track": track,
        }
        for objects in (before, after):
            assert deployment(objects, track)["spec"]["selector"] == {"matchLabels": expected}


def test_point_10_a_new_chart_version_alone_replaces_no_pod(tmp_path: Path) -> None:
    other = tmp_path / "shipway"
    shutil.copytree(CHART, other)
    chart = yaml.safe_load((other / "Chart.yaml").read_text())
    (other / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "9.9.9"}))
    assert pod(render(OPEN)) == pod(render(OPEN, chart=other))


@pytest.mark.parametrize(("scaling", "kind"), [(HPA, "HorizontalPodAutoscaler"), (KEDA, "ScaledObject")])
def test_point_11_an_autoscaler_owns_replicas(scaling: Json, kind: str) -> None:
    objects = render(base(scaling))
    assert "replicas" not in deployment(objects)["spec"]
    assert one(objects, kind)["spec"]["scaleTargetRef"]["name"] == "flights-shipway"
    assert deployment(render(OPEN))["spec"]["replicas"] == 2


def test_point_11_one_replica_has_no_budget() -> None:
    assert not of_kind(render(OPEN, at("replicaCount", 1)), "PodDisruptionBudget")
    assert not of_kind(render(base(HPA), at("autoscaling.min", 1)), "PodDisruptionBudget")
    budget = one(render(OPEN), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"]["matchLabels"]["shipway.dev/track"] == "stable"


def test_point_11_nothing_is_scaled_down_while_a_canary_is_on() -> None:
    behavior = {"autoscaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}, "scaleUp": {}}}}
    scaled = one(render(base(HPA), behavior, CANARY), "HorizontalPodAutoscaler")["spec"]["behavior"]
    assert scaled == {"scaleDown": {"selectPolicy": "Disabled"}, "scaleUp": {}}
    advanced = one(render(base(KEDA), CANARY), "ScaledObject")["spec"]["advanced"]
    assert advanced["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"] == {"selectPolicy": "Disabled"}
    assert one(render(base(HPA), behavior), "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"] != scaled


def test_point_11_keda_asks_for_the_stable_version_s_waiting_time() -> None:
    spec = one(render(base(KEDA)), "ScaledObject")["spec"]
    (trigger,) = spec["triggers"]
    asked = trigger["metadata"]
    which = '{namespace="team", model="flights", version="7"}[2m]'
    for series in ("shipway_queue_seconds_total", "shipway_batch_requests_sum"):
        assert f"rate({series}{which})" in asked["query"]
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 4}
    assert asked["ignoreNullValues"] == "false"


def test_point_12_times_fit_together() -> None:
    for values in (OPEN, base(at("startup.budgetSeconds", 900)), base(at("drain.requestTimeoutSeconds", 120))):
        objects = render(values)
        spec = deployment(objects)["spec"]
        container = node(spec["template"])
        variables = environment(container)
        grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
        stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert grace >= stop + int(variables["SHIPWAY_REQUEST_TIMEOUT_SECONDS"]) + 10
        assert variables["SHIPWAY_DRAIN_SECONDS"] == variables["SHIPWAY_REQUEST_TIMEOUT_SECONDS"]
        probe = container["startupProbe"]
        budget = probe["failureThreshold"] * probe["periodSeconds"]
        timeout = int(deployment(objects)["metadata"]["annotations"]["shipway.dev/timeout-seconds"])
        assert budget < spec["progressDeadlineSeconds"] < timeout
        assert f"--timeout {timeout}s" in notes(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (at("terminationGracePeriodSeconds", 44), "terminationGracePeriodSeconds is 44: it must be at least .*, 45"),
        (at("progressDeadlineSeconds", 300), "progressDeadlineSeconds is 300: it must be more than .*, 300"),
    ],
)
def test_point_12_overrides_that_break_it_are_refused(change: Json, words: str) -> None:
    with pytest.raises(Refused, match=words):
        render(OPEN, change)


def test_point_13_what_is_enabled_is_rendered_whatever_the_cluster_has() -> None:
    monitor = one(render(OPEN, at("metrics.serviceMonitor.enabled", True)), "ServiceMonitor")
    objects = render(OPEN)
    service = one(objects, "Service", "-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    others = [each for each in of_kind(objects, "Service") if each != service]
    chosen = monitor["spec"]["selector"]["matchLabels"].items()
    assert not [each for each in others if chosen <= each["metadata"]["labels"].items()]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert {"targetLabel": "job", "replacement": "shipway-node"} in endpoint["relabelings"]
    assert ".Capabilities.APIVersions" not in "".join(each.read_text() for each in (CHART / "templates").rglob("*.*"))


def names(objects: list[Json]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in objects}


def test_point_14_two_releases_of_one_namespace_do_not_collide() -> None:
    values = merged(example("kube-prometheus-stack"), CANARY, PVC)
    assert not names(render(values, release="a")) & names(render(values, release="b"))


def test_point_14_long_names_fit_and_stay_apart() -> None:
    """53 characters are helm's limit for a release."""
    first, second = ("r" * 52 + last for last in "ab")
    everything = merged(example("kube-prometheus-stack"), CANARY, PVC, JWT, KEDA)
    one_release, other = (render(everything, release=release) for release in (first, second))
    assert problems(one_release, NEWEST) == []
    assert not names(one_release) & names(other)
    # What others name after it: labels of pods, the ledger.
    assert len(deployment(one_release)["metadata"]["name"]) <= 52


def test_point_15_no_secret_is_in_any_object() -> None:
    for name in EXAMPLES:
        objects = render(example(name))
        assert not of_kind(objects, "Secret")
        variables = {
            variable["name"]
            for template in templates(objects)
            for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])
            for variable in container["env"]
        }
        assert not [one for one in variables if re.search("PASSWORD|TOKEN|SECRET|API_KEY$", one)]
