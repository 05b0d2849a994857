"""The two Deployments of a release: the stable track and, while a rollout is on, the canary's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from deploy.errors import ReleaseMissing
from deploy.kubernetes import pods
from deploy.kubernetes.aim import Aim
from deploy.kubernetes.cluster import Cluster, Json
from deploy.rollout.record import Release

TIMEOUT = "shipway.dev/timeout-seconds"


@dataclass(frozen=True)
class Track:
    """One Deployment and its pods."""

    fullname: str
    model: str
    release: Release
    replicas: int
    settled: bool
    """Whether every replica that is wanted runs this version and is available, and none of another version is left."""
    too_slow_since: str
    """When Kubernetes gave up waiting for progress; empty if it has not."""
    progress_seconds: int
    """How long Kubernetes waits for progress."""
    timeout_seconds: int
    """How long helm must wait for all of it, which the chart knows; only of the stable track."""
    pods: tuple[Json, ...]
    """Of whatever version; those that are ending among them."""

    @classmethod
    def of(cls, deployment: Mapping[str, Any], found: list[Json]) -> Self:
        spec, status = deployment["spec"], deployment.get("status", {})
        template = spec["template"]
        replicas = int(spec.get("replicas", 1))
        observed = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        counts = {status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")}
        slow = [
            str(one.get("lastUpdateTime", "unknown"))
            for one in status.get("conditions") or ()
            if observed and one["type"] == "Progressing" and one.get("reason") == "ProgressDeadlineExceeded"
        ]
        return cls(
            fullname=deployment["metadata"]["name"],
            model=pods.annotation(template, pods.MODEL),
            release=Release(
                version=int(pods.annotation(template, pods.VERSION)), digest=pods.annotation(template, pods.DIGEST)
            ),
            replicas=replicas,
            settled=observed and counts == {replicas},
            too_slow_since=slow[0] if slow else "",
            timeout_seconds=int(pods.annotation(deployment, TIMEOUT) or 600),
            progress_seconds=int(spec.get("progressDeadlineSeconds", 600)),
            pods=tuple(found),
        )

    @property
    def own_pods(self) -> list[Json]:
        """Pods of the version that is wanted now."""
        return [one for one in self.pods if pods.annotation(one, pods.DIGEST) == self.release.digest]

    @property
    def ready_pods(self) -> list[Json]:
        return [one for one in self.pods if pods.ready(one)]


@dataclass(frozen=True)
class Tracks:
    stable: Track
    canary: Track | None

    @property
    def fullname(self) -> str:
        return self.stable.fullname

    @property
    def aim(self) -> Aim:
        """What the two run, or are to run."""
        return Aim(stable=self.stable.release, canary=self.canary.release if self.canary else None)


def read_tracks(cluster: Cluster, release: str) -> Tracks:
    """The Deployments of a release as they are now. Raises ReleaseMissing where there is none of our chart."""
    selector = f"app.kubernetes.io/name=shipway,app.kubernetes.io/instance={release}"
    deployments = {_track(one["spec"]["template"]): one for one in cluster.deployments(selector)}
    if "stable" not in deployments:
        raise ReleaseMissing(release, cluster.namespace, "there is no Deployment of it")
    found: dict[str, list[Json]] = {"stable": [], "canary": []}
    for pod in cluster.pods(selector):
        found.setdefault(_track(pod), []).append(pod)
    tracks = {name: Track.of(one, found.get(name, [])) for name, one in deployments.items()}
    return Tracks(tracks["stable"], tracks.get("canary"))


def _track(thing: Mapping[str, Any]) -> str:
    return str((thing["metadata"].get("labels") or {}).get(pods.TRACK, ""))
