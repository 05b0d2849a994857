"""A real Prometheus that scrapes the pods of a release, by whose figures the gate judges.

It reaches them through the API server, as kubectl does: not every machine has a way to a pod's own address.
"""

import contextlib
import json
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.node.torchserve import free_ports
from model_store.files import write_atomically
from tests import helm_binaries
from tests.cluster.conftest import CHART
from tests.cluster.prometheus import prometheus
from tests.cluster.release import NAME, Release

METRICS_PORT = 8082
SCRAPE_SECONDS = 2.0
"""More often than is usual: what takes minutes with the chart's 15 s takes seconds."""


@contextlib.contextmanager
def scraped(release: Release, directory: Path) -> Iterator[str]:
    """Where it answers."""
    proxied, own = free_ports(2)
    pods, config = Pods(release, proxied, directory / "targets.json"), directory / "prometheus.yaml"
    config.write_text(yaml.safe_dump(configuration(pods.file)))
    with (
        _proxy(release, proxied, directory / "proxy.log"),
        pods.followed(),
        prometheus(config, directory / "prometheus", own),
    ):
        yield f"http://127.0.0.1:{own}"


def configuration(targets: Path) -> dict[str, Any]:
    """With the chart's own rules, and the job that they expect."""
    job = {"job_name": "shipway-node", "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}]}
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS:g}s", "scrape_timeout": f"{SCRAPE_SECONDS:g}s"},
        "rule_files": [str(CHART / "files" / "rules" / "shipway.yaml")],
        "scrape_configs": [job],
    }


@contextlib.contextmanager
def _proxy(release: Release, port: int, log: Path) -> Iterator[None]:
    """The API server at a port of this machine's, with kubectl's credentials."""
    command = [str(helm_binaries.kubectl()), "proxy", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=release.lab.cluster.environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Pods:
    """The pods of a release, whatever becomes of them, as a file that Prometheus reads."""

    release: Release
    port: int
    """Of the API server."""
    file: Path

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(SCRAPE_SECONDS / 2):
                with contextlib.suppress(OSError):  # the API server is away
                    self._write()

        following = threading.Thread(target=follow)
        following.start()
        try:
            yield
        finally:
            ended.set()
            following.join()

    def _write(self) -> None:
        targets = [self._target(pod["metadata"]["name"]) for pod in self._running()]
        document = json.dumps(targets).encode()
        if not self.file.exists() or self.file.read_bytes() != document:
            write_atomically(self.file, document)

    def _running(self) -> list[Any]:
        selector = urllib.parse.quote(f"app.kubernetes.io/instance={NAME}")
        url = f"http://127.0.0.1:{self.port}/api/v1/namespaces/{self.release.namespace}/pods?labelSelector={selector}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [pod for pod in json.loads(answer.read())["items"] if pod["status"]["phase"] == "Running"]

    def _target(self, pod: str) -> dict[str, Any]:
        namespace = self.release.namespace
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}:{METRICS_PORT}/proxy/metrics"
        labels = {"__metrics_path__": path, "instance": pod, "pod": pod, "namespace": namespace}
        return {"targets": [f"127.0.0.1:{self.port}"], "labels": labels}
