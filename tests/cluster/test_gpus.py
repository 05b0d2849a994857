"""GPUs: three machines with eight each, all in use, that are there for the scheduler alone: pods run nothing there."""

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from deploy.kubernetes import pods
from deploy.kubernetes.status import read_status
from deploy.settings import Settings
from tests import helm_binaries
from tests.cluster.cluster import Cluster, CommandFailed
from tests.cluster.conftest import CHART
from tests.cluster.release import FULLNAME, NAME
from tests.cluster.standins import digest, values

GPUS = 24
SECONDS = 60


@pytest.fixture(scope="module")
def gpus(cluster: Cluster) -> Iterator[Cluster]:
    if not cluster.gpu_nodes(3):
        pytest.skip("only the program of SHIPWAY_KUBE_KIT makes machines with GPUs")
    yield cluster
    cluster.kubectl("delete", "nodes", "--selector", "type=kwok")


def install(cluster: Cluster, namespace: str, surge: str) -> None:
    gpu = {"enabled": True, "count": 1, "nodeSelector": {"nvidia.com/gpu.product": "H100"}}
    given = values(1, image={"repository": "nobody/runs", "tag": "this"}, replicaCount=GPUS, surge=surge, gpu=gpu)
    options = ("--namespace", namespace, "--values", "-", "--wait", "--timeout", f"{SECONDS}s")
    cluster.helm(4, "install", NAME, str(CHART), *options, stdin=json.dumps(given))


def upgrade(cluster: Cluster, namespace: str) -> None:
    """To version 2. Raises CommandFailed."""
    to = ("--set", "model.version=2", "--set", f"model.sha256={digest(2)}")
    options = ("--namespace", namespace, "--reset-then-reuse-values", "--wait", "--timeout", f"{SECONDS}s")
    cluster.helm(4, "upgrade", NAME, str(CHART), *options, *to)


def versions(cluster: Cluster, namespace: str) -> Counter[str]:
    """How many pods are ready of each."""
    found = cluster.json("--namespace", namespace, "get", "pods")["items"]
    return Counter(pods.annotation(pod, pods.VERSION) for pod in found if pods.ready(pod))


def test_a_fleet_with_no_spare_gpu_is_upgraded_where_old_pods_go_first(gpus: Cluster, namespace: str) -> None:
    install(gpus, namespace, "never")
    assert versions(gpus, namespace) == {"1": GPUS}
    upgrade(gpus, namespace)
    assert versions(gpus, namespace) == {"2": GPUS}


def test_a_pod_for_which_no_gpu_is_spare_waits_and_status_says_so(
    gpus: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(gpus, namespace, "auto")
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"[Pp]rogress"):
        upgrade(gpus, namespace)
    assert time.monotonic() - begun < SECONDS
    assert versions(gpus, namespace) == {"1": GPUS}  # nobody went
    for name, value in gpus.environment.items():
        monkeypatch.setenv(name, value)
    helm = str(helm_binaries.helm(4))
    status = read_status(Settings(helm_release=NAME, helm_namespace=namespace, helm=helm))
    (waiting,) = [problem for problem in status.problems if problem.startswith(f"pod {FULLNAME}")]
    assert "no node takes it" in waiting
    assert "Insufficient nvidia.com/gpu" in waiting
