"""Why pods do not serve, in one sentence: what Kubernetes says of them, or what they said themselves."""

from deploy.kubernetes import pods
from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.routing import METRICS_PORT
from deploy.kubernetes.tracks import Track


class Causes:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def of(self, track: Track) -> str:
        """Of the first of its pods that does not serve; empty where all do, or nobody knows why not."""
        return next(filter(None, (self.of_pod(one) for one in track.own_pods)), "")

    def of_lost(self, track: Track) -> str:
        """Likewise of pods that fail, or were ready once and are not now, or had to be started again meanwhile.

        Others are on their way, as they should be.
        """
        lost = [one for one in track.own_pods if pods.cause(one) or pods.was_ready(one)]
        ended = (pods.end(one) for one in track.own_pods if pods.restarted(one))
        return next(filter(None, [*map(self.of_pod, lost), *ended]), "")

    def of_pod(self, pod: pods.Pod) -> str:
        if pods.ready(pod) or pods.ending(pod):
            return ""
        cause = pods.cause(pod)
        if not cause:
            said = self._cluster.get_from_pod(pods.name(pod), METRICS_PORT, "/readyz")
            first = said.strip().partition("\n")[0]
            if first:
                return "" if first == "ready" else first
            # A volume that cannot be mounted is in no state of the pod's.
            return self._cluster.last_warning(pods.name(pod))
        asked = pods.container_to_ask(pod)
        said = self._cluster.last_line(pods.name(pod), asked[0], previous=asked[1]) if asked else ""
        return f"{cause}; it said last: {said}" if said else cause
