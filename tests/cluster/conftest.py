"""One cluster, one image and one registry for the whole run; a namespace for each test."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_store.mlflow_environment import ENVIRONMENT
from tests.cluster import cluster as clusters
from tests.cluster.cluster import Cluster
from tests.cluster.image import ROOT, Image, image
from tests.cluster.registry import MODEL, UNREADY, Mlflow, Store, Version

STATE = ROOT / ".shipway"
CHART = ROOT / "helm" / "shipway"
CACHE = "/var/tmp/shipway-cluster-tests"  # noqa: S108 - on the node, where nothing else lasts longer than a pod
CLAIM = "archives"

TEST_SECONDS = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pods take their time; and what a test waits for first, the image above all, has deadlines of its own.

    Tests that need no image come first, while it is built.
    """
    items.sort(key=_needs_image)
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS, func_only=True))


def _needs_image(item: pytest.Item) -> bool:
    return "lab" in getattr(item, "fixturenames", ())


@dataclass(frozen=True)
class Lab:
    """What every test may use."""

    cluster: Cluster
    image: Image
    mlflow: Mlflow
    store: Store
    good: Version
    other: Version
    """As good; it answers otherwise."""
    unready: Version
    """No node ever calls it ready."""
    wrong: Version
    """Its own golden set it answers well, and clients with what others asked for."""

    def values(self, version: Version, **changes: Any) -> dict[str, Any]:
        """The chart's values for a release of `version`, small enough that several fit two cores."""
        return {
            "image": {"repository": self.image.repository, "tag": self.image.tag, "pullPolicy": "Never"},
            "model": {"name": MODEL, "version": version.number, "sha256": version.digest},
            "source": {"type": "mlflow", "mlflow": {"trackingUri": self.mlflow.uri}},
            "trust": {"publicKeys": [self.store.public_key]},
            "insecure": True,
            "service": {"type": "NodePort"},
            "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
            "fetch": {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}},
            "startup": {"budgetSeconds": 120},
            **changes,
        }


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if clusters.MISSING:
        pytest.exit(f"these tests need a cluster: {clusters.MISSING}", 1)
    with clusters.cluster(STATE) as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def building(request: pytest.FixtureRequest) -> Iterator[Future[Image] | None]:
    """The image, from the beginning of the run on; None if no test needs it."""
    if not any(map(_needs_image, request.session.items)):
        yield None
        return
    cluster = request.getfixturevalue("cluster")
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(built_image, cluster)


def built_image(cluster: Cluster) -> Image:
    """On the cluster's node."""
    return image(cluster, STATE / "image")


@pytest.fixture(scope="session")
def lab(cluster: Cluster, building: Future[Image]) -> Iterator[Lab]:
    with open_lab(cluster, building.result()) as found:
        yield found


@contextlib.contextmanager
def open_lab(cluster: Cluster, built: Image) -> Iterator[Lab]:
    """A registry with all versions, for pods of that image."""
    with tempfile.TemporaryDirectory(prefix="shipway-lab-") as name, pytest.MonkeyPatch.context() as patch:
        for variable, value in ENVIRONMENT.items():
            patch.setenv(variable, value)
        mlflow = Mlflow(cluster.own_ip, Path(name))
        store = Store(mlflow, Path(name))
        try:
            mlflow.start()
            assert store.public_key
            good, other = store.trained(seed=0), store.trained(seed=1)
            bad = [store.spoiled(good, kind) for kind in (UNREADY, "wrong")]
            yield Lab(cluster, built, mlflow, store, good, other, *bad)
        finally:
            mlflow.stop()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """One that enforces the restricted standard, and ends with the test."""
    with namespace_for(cluster, request.node.name.removeprefix("test_"), {"enforce": "restricted"}) as name:
        yield name


@pytest.fixture(scope="session")
def cache(lab: Lab) -> Iterator[str]:
    """A directory of the node's that every user may write to."""
    with namespace_for(lab.cluster, "cache", {}) as name:
        on_the_node(lab, name, "make", ["install", "-d", "-m", "0777", "/node/archives"])
        yield f"{CACHE}/archives"
        on_the_node(lab, name, "remove", ["rm", "-r", "/node/archives"])


@pytest.fixture
def shared_cache(lab: Lab, namespace: str, cache: str) -> Iterator[str]:
    """The claim of a volume that all pods share, for `cache.existingClaim`; it may hold archives of other tests."""
    with claim(lab.cluster, namespace, cache) as name:
        yield name


@contextlib.contextmanager
def claim(cluster: Cluster, namespace: str, directory: str) -> Iterator[str]:
    """The claim of a volume that is a directory of the node's."""
    volume = f"{CLAIM}-{namespace}"
    size = {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": ""}
    wanted = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "",
        "volumeName": volume,
        "resources": {"requests": {"storage": "5Gi"}},
    }
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {**size, "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": directory}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM, "namespace": namespace},
            "spec": wanted,
        },
    )
    yield CLAIM
    cluster.kubectl("delete", "persistentvolume", volume, "--wait=false")


@contextlib.contextmanager
def namespace_for(cluster: Cluster, words: str, standard: Mapping[str, str]) -> Iterator[str]:
    """One with a name made of `words`, and a level of pod security by mode; it ends afterwards."""
    name = f"{''.join(c if c.isalnum() else '-' for c in words.lower())[:40].strip('-')}-{secrets.token_hex(3)}"
    labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in standard.items()}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")
        # Nobody waits for the pods' own grace period, and the next test needs their memory.
        cluster.kubectl("--namespace", name, "delete", "pods", "--all", "--grace-period=1", "--wait=false")


def on_the_node(lab: Lab, namespace: str, name: str, command: list[str]) -> None:
    """Run a command as root among the node's processes, with its directory CACHE at /node."""
    container = {
        "name": "run",
        "image": str(lab.image),
        "command": command,
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    spec = {
        "restartPolicy": "Never",
        "hostPID": True,
        "containers": [container],
        "volumes": [{"name": "node", "hostPath": {"path": CACHE, "type": "DirectoryOrCreate"}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    lab.cluster.apply(pod)
    done = "--for=jsonpath={.status.phase}=Succeeded"
    lab.cluster.kubectl("--namespace", namespace, "wait", done, f"pod/{name}", "--timeout=60s")
