"""The ConfigMap by which the command line splits the traffic between two revisions: `FULLNAME-rollout`.

The chart's own, `FULLNAME-routing`, says who the canary is; this one says how much of the traffic it gets, and is
obeyed only while it names that very canary. It is deleted before helm takes a canary away.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from deploy.kubernetes import pods
from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.tracks import Track, Tracks
from deploy.node.desired import Actual, ActualEndpoint
from deploy.rollout.machine import Traffic

PEER_PORT, METRICS_PORT = 8081, 8082
ROUTED = "shipway.dev/routed"
"""An annotation of the stable pods: the kubelet looks at ConfigMaps at once where a pod has changed."""
TOUCHED_AGAIN_SECONDS = 10.0
ASKED_AT_ONCE = 16
"""Pods."""


class Routing:
    """Of one release. Every method raises ClusterUnusable."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._touched = 0.0

    def in_force(self, tracks: Tracks, traffic: Traffic) -> bool:
        """Ask for the split of `traffic` if that was not done; whether every ready stable pod obeys it."""
        if self._ask(tracks, traffic):
            self._touch(tracks.stable)
        said = _said(self._cluster, tracks.stable)
        if said and all(_obeys(one, traffic) for one in said):
            return True
        if time.monotonic() - self._touched > TOUCHED_AGAIN_SECONDS:
            self._touch(tracks.stable)
        return False

    def give_back(self, tracks: Tracks) -> None:
        """All traffic to the stable pods, as far as it was the command line that had split it."""
        name = _name(tracks)
        if self._cluster.config_map(name) is not None:
            self._cluster.delete_config_map(name)
            self._touch(tracks.stable)

    def _ask(self, tracks: Tracks, traffic: Traffic) -> bool:
        """Whether the ConfigMap was not what it has to be for `traffic`."""
        name = _name(tracks)
        found = self._cluster.config_map(name)
        if traffic.beside is None or not (traffic.weight or traffic.mirror):
            self._cluster.delete_config_map(name)
            return found is not None
        canary = {
            **traffic.beside.model_dump(),
            "host": f"{tracks.fullname}-canary.{self._cluster.namespace}.svc",
            "port": PEER_PORT,
            "weight": traffic.weight,
            "mirror": traffic.mirror,
        }
        data = {"routing.json": json.dumps({"canary": canary}, sort_keys=True)}
        if found is not None and found.get("data") == data:
            return False
        self._cluster.write_config_map(name, {"shipway.dev/routing": "rollout"}, data)
        return True

    def _touch(self, stable: Track) -> None:
        self._touched = time.monotonic()
        for pod in stable.pods:
            if not pods.ending(pod):
                self._cluster.annotate_pod(pods.name(pod), {ROUTED: f"{time.time():.3f}"})


def _said(cluster: Cluster, stable: Track) -> list[ActualEndpoint | None]:
    """What each ready stable pod says that is in force."""

    def says(pod: pods.Pod) -> ActualEndpoint | None:
        try:
            actual = Actual.model_validate_json(cluster.get_from_pod(pods.name(pod), METRICS_PORT, "/actual"))
        except ValidationError:
            return None
        return actual.endpoint(stable.model)

    with ThreadPoolExecutor(ASKED_AT_ONCE) as executor:
        return list(executor.map(says, stable.ready_pods))


def _obeys(found: ActualEndpoint | None, traffic: Traffic) -> bool:
    if found is None or traffic.serving is None:
        return False
    split = {(traffic.serving.version, traffic.serving.digest): 100 - traffic.weight}
    if traffic.beside is not None:
        split[traffic.beside.version, traffic.beside.digest] = traffic.weight
    weights = {(one.version, one.digest): one.weight for one in found.versions if one.weight}
    mirrored = found.mirror.percent if found.mirror else 0
    return weights == {who: weight for who, weight in split.items() if weight} and mirrored == traffic.mirror


def _name(tracks: Tracks) -> str:
    return f"{tracks.fullname}-rollout"


def shares(cluster: Cluster, stable: Track) -> dict[int, int]:
    """Weights by version as a ready stable pod says that they are in force; empty where none says it."""
    found = next(filter(None, _said(cluster, stable)), None)
    return {one.version: one.weight for one in found.versions} if found else {}
