"""Deployments and pods of a release, as kubectl gives them."""

from typing import Any

from deploy.rollout.record import Release

MODEL, RELEASE, FULLNAME = "flights", "flights", "flights-shipway"
ONE, TWO, THREE = (Release(version=version, digest=f"sha256:{version:064x}") for version in (1, 2, 3))
Json = dict[str, Any]
LABELS = {"app.kubernetes.io/name": "shipway", "app.kubernetes.io/instance": RELEASE}


def deployment(release: Release = ONE, *, canary: bool = False, replicas: int = 1, **status: Any) -> Json:
    """All of its replicas run this version and are available, but for what `status` says."""
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), replicas)
    return {
        "metadata": {
            "name": f"{FULLNAME}-canary" if canary else FULLNAME,
            "labels": LABELS,
            "generation": 2,
            "annotations": {"deployment.kubernetes.io/revision": "1"}
            | ({} if canary else {"shipway.dev/timeout-seconds": "240"}),
        },
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 360,
            "template": {"metadata": _identity(release, canary=canary)},
        },
        "status": {"observedGeneration": 2, **counts, **status},
    }


def pod(
    name: str = "flights-shipway-7c9f-x2x4q", release: Release = ONE, *, canary: bool = False, **given: Any
) -> Json:
    """A pod that serves, but for what its `status` says; `deletionTimestamp` is one that ends."""
    ending = {"deletionTimestamp": given["deletionTimestamp"]} if "deletionTimestamp" in given else {}
    return {
        "metadata": {"name": name, **_identity(release, canary=canary), **ending},
        "status": given.get("status", serving()),
    }


def serving(**node: Any) -> Json:
    """The status of a pod that serves."""
    return {
        "phase": "Running",
        "conditions": [condition("PodScheduled"), condition("Ready")],
        "initContainerStatuses": [container("fetch", terminated={"exitCode": 0, "reason": "Completed"})],
        "containerStatuses": [{**container("node", running={}), "started": True, "ready": True, **node}],
    }


def starting(*, fetch: Json | None = None, node: Json | None = None, **status: Any) -> Json:
    """The status of a pod that has its machine and does not serve yet."""
    return {
        "phase": "Pending",
        "conditions": [condition("PodScheduled"), condition("Ready", "False", reason="ContainersNotReady")],
        "initContainerStatuses": [fetch or container("fetch", terminated={"exitCode": 0, "reason": "Completed"})],
        "containerStatuses": [node or container("node", waiting={"reason": "PodInitializing"})],
        **status,
    }


def condition(kind: str, status: str = "True", **about: str) -> Json:
    return {"type": kind, "status": status, "lastTransitionTime": "2026-11-24T10:00:00Z", **about}


def container(name: str, *, restarts: int = 0, last: Json | None = None, **state: Any) -> Json:
    """The status of a container; `last` is how it ended before."""
    return {
        "name": name,
        "state": state,
        "lastState": {"terminated": last} if last else {},
        "restartCount": restarts,
        "ready": False,
        "started": False,
    }


def _identity(release: Release, *, canary: bool) -> Json:
    return {
        "labels": {**LABELS, "shipway.dev/track": "canary" if canary else "stable"},
        "annotations": {
            "shipway.dev/model": MODEL,
            "shipway.dev/version": str(release.version),
            "shipway.dev/digest": release.digest,
        },
    }
