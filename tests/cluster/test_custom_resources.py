"""The examples, as a real API server with the custom resources of Gateway API, the operator and KEDA takes them."""

import json

import pytest

from tests.chart.other_values import DRA, GATEWAY, HPA, INGRESS, PVC, base
from tests.chart.rendering import EXAMPLES, Json, example, render
from tests.cluster.cluster import Cluster, CommandFailed

OTHERS = {"hpa": HPA, "dra": DRA, "claim": PVC, "gateway": GATEWAY, "ingress": INGRESS}
"""Values whose objects no example has."""
KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def custom(cluster: Cluster) -> Cluster:
    if not cluster.add("crds", "scaledobjects.keda.sh"):
        pytest.skip("this cluster has not the custom resources of Gateway API, the Prometheus operator and KEDA")
    return cluster


def dry_run(cluster: Cluster, namespace: str, objects: list[Json]) -> None:
    """Let the server take them, and keep none. Raises CommandFailed, with what it says."""
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    options = ("--dry-run=server", "--validate=strict", "--filename", "-")
    cluster.kubectl("--namespace", namespace, "apply", *options, stdin=document)


def test_point_06_the_server_takes_the_examples_and_what_they_have_not(custom: Cluster, namespace: str) -> None:
    # A dry run makes no account, and the pod of `helm test` is looked at by what is really there.
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    custom.apply({**account, "metadata": {"namespace": namespace, "name": "flights-shipway"}})
    rendered = {
        **{name: render(example(name), kube=KUBERNETES) for name in EXAMPLES},
        **{name: render(base(OTHERS[name]), kube=KUBERNETES) for name in OTHERS},
    }
    refused = {}
    for name, objects in rendered.items():
        # External Secrets' own resource is in no cluster of ours.
        known = [each for each in objects if each["kind"] != "ExternalSecret"]
        try:
            dry_run(custom, namespace, known)
        except CommandFailed as failed:
            refused[name] = failed.done.stderr
    assert refused == {}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("ServiceMonitor", {"endpoints": [{"port": "metrics", "interval": "often"}]}),
        ("PrometheusRule", {"groups": [{"name": "x", "rules": [{"alert": "NoExpression"}]}]}),
        ("ScaledObject", {"scaleTargetRef": {"name": "x"}, "triggerz": []}),
        ("HTTPRoute", {"parentRefs": [{"name": "x", "port": 0}]}),
    ],
)
def test_point_06_the_server_would_see_what_is_wrong(custom: Cluster, namespace: str, kind: str, wrong: Json) -> None:
    everything = [each for name in EXAMPLES for each in render(example(name), kube=KUBERNETES)]
    found = next(each for each in everything if each["kind"] == kind)
    with pytest.raises(CommandFailed, match=kind):
        dry_run(custom, namespace, [{**found, "spec": wrong}])
