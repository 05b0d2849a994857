"""ServiceMonitor and PrometheusRule through the real operator, into a real Prometheus that scrapes the pods.

Debian's Prometheus is built without discovery of Kubernetes. What that would find, by the API's own word, is given to
it as a file, with the labels that the operator's relabelling reads; all else in the configuration is the operator's.
"""

import base64
import gzip
import json
import re
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.conftest import CHART, Lab
from tests.cluster.prometheus import prometheus
from tests.cluster.registry import MODEL
from tests.cluster.release import FULLNAME, Release, canary
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]
LABELS = {"release": "monitoring"}
"""By which this Prometheus chooses, as that of kube-prometheus-stack does."""
NAME = "seen"
CONFIGURED_SECONDS, SCRAPED_SECONDS = 60.0, 60.0


@pytest.fixture(scope="module")
def operated(cluster: Cluster) -> Cluster:
    if not cluster.kit:
        pytest.skip("only the cluster that SHIPWAY_KUBE_KIT starts has a Prometheus operator of the tests' own")
    cluster.add("operator", "prometheuses.monitoring.coreos.com")
    return cluster


@pytest.fixture
def monitored(lab: Lab, operated: Cluster, namespace: str) -> Release:
    """A stable version and its canary, watched by a Prometheus of which the operator makes the configuration alone."""
    said = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True).stdout
    spec = {
        "version": f"v{said.split()[2].partition('+')[0]}",
        "replicas": 0,
        "evaluationInterval": "5s",
        "serviceMonitorSelector": {"matchLabels": LABELS},
        "ruleSelector": {"matchLabels": LABELS},
    }
    metadata = {"name": NAME, "namespace": namespace}
    operated.apply({"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": metadata, "spec": spec})
    release = Release(lab, namespace)
    chosen = {"enabled": True, "labels": LABELS}
    release.install(
        lab.good, metrics={"serviceMonitor": {**chosen, "interval": "1s", "scrapeTimeout": "1s"}, "rules": chosen}
    )
    release.upgrade(*canary(lab.other))
    return release


def test_the_operator_s_configuration_finds_the_pods_and_loads_the_rules(
    monitored: Release, tmp_path: Path, free_ports: Ports
) -> None:
    config, rules = configuration(monitored)
    paths = [tmp_path / name for name in rules]
    for path in paths:
        path.write_text(rules[path.name])
        promtool("rules", path)
    targets, written = tmp_path / "targets.json", tmp_path / "prometheus.yaml"
    targets.write_text(json.dumps(discovered(monitored)))
    written.write_text(from_here(config, targets, paths))
    promtool("config", written)

    with prometheus(written, tmp_path / "data", free_ports(1)[0]) as asked:
        wait_for(lambda: len(up(asked)) == 2, SCRAPED_SECONDS)
        assert {pod.rpartition("-")[0].rpartition("-")[0] for pod in up(asked)} == {FULLNAME, f"{FULLNAME}-canary"}

        versions = {str(one.number) for one in (monitored.lab.good, monitored.lab.other)}
        query = f'shipway_version_ready{{job="shipway-node", namespace="{monitored.namespace}", model="{MODEL}"}} == 1'
        assert {one["metric"]["version"] for one in asked(f"query?query={quoted(query)}")["result"]} == versions

        groups = asked("rules")["groups"]
        expected = yaml.safe_load((CHART / "files" / "rules" / "shipway.yaml").read_text())["groups"]
        assert {group["name"] for group in groups} == {group["name"] for group in expected}
        wait_for(lambda: healths(asked) == {"ok"}, SCRAPED_SECONDS)


def configuration(release: Release) -> tuple[str, dict[str, str]]:
    """What the operator has made for its Prometheus: the configuration, and the rule files by name."""

    def complete() -> tuple[str, dict[str, str]] | None:
        cluster, where = release.lab.cluster, ("--namespace", release.namespace)
        secrets = cluster.json(*where, "get", "secrets", "--ignore-not-found", f"prometheus-{NAME}").get("data", {})
        maps = cluster.json(*where, "get", "configmaps")["items"]
        rules = [one.get("data", {}) for one in maps if one["metadata"]["name"].startswith(f"prometheus-{NAME}-rule")]
        if not secrets or not any(rules):
            return None
        config = gzip.decompress(base64.b64decode(secrets["prometheus.yaml.gz"])).decode()
        return (
            (config, {name: text for one in rules for name, text in one.items()}) if "shipway-node" in config else None
        )

    return wait_for(complete, CONFIGURED_SECONDS)


def from_here(config: str, targets: Path, rules: list[Path]) -> str:
    """The configuration for a Prometheus outside of the cluster, that is one replica and one shard."""
    document = yaml.safe_load(config.replace("$(POD_NAME)", "one").replace("$(SHARD)", "0"))
    for job in document["scrape_configs"]:
        assert [one["role"] for one in job.pop("kubernetes_sd_configs")] == ["endpoints"]
        job["file_sd_configs"] = [{"files": [str(targets)]}]
    return yaml.safe_dump({**document, "rule_files": [str(path) for path in rules]})


def discovered(release: Release) -> list[dict[str, Any]]:
    """What Prometheus' own discovery of endpoints would find in the namespace."""
    services = {one["metadata"]["name"]: one["metadata"]["labels"] for one in release.json("get", "services")["items"]}
    return [
        _target(one["metadata"], services[one["metadata"]["name"]], port, address)
        for one in release.json("get", "endpoints")["items"]
        for subset in one.get("subsets", [])
        for port in subset["ports"]
        for address in (*subset.get("addresses", ()), *subset.get("notReadyAddresses", ()))
    ]


def _target(endpoints: Any, labels: dict[str, str], port: Any, address: Any) -> dict[str, Any]:
    meta = {
        "namespace": endpoints["namespace"],
        "service_name": endpoints["name"],
        "endpoint_port_name": port["name"],
        "endpoint_address_target_kind": address["targetRef"]["kind"],
        "endpoint_address_target_name": address["targetRef"]["name"],
        "pod_name": address["targetRef"]["name"],
        "pod_phase": "Running",
    }
    for name, value in labels.items():
        plain = re.sub("[^a-zA-Z0-9_]", "_", name)
        meta |= {f"service_label_{plain}": value, f"service_labelpresent_{plain}": "true"}
    known = {f"__meta_kubernetes_{name}": value for name, value in meta.items()}
    return {"targets": [f"{address['ip']}:{port['port']}"], "labels": known}


def promtool(what: str, *arguments: object) -> None:
    command = ["promtool", "check", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def up(asked: Callable[[str], Any]) -> set[str]:
    """Pods that were scraped, by name."""
    targets = asked("targets?state=active")["activeTargets"]
    return {one["labels"]["pod"] for one in targets if one["health"] == "up" and one["labels"]["job"] == "shipway-node"}


def healths(asked: Callable[[str], Any]) -> set[str]:
    return {rule["health"] for group in asked("rules")["groups"] for rule in group["rules"]}


def quoted(query: str) -> str:
    return urllib.parse.quote(query)
