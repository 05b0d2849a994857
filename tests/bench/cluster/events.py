"""What operators and machines do to a release, in groups that each begin with the first version alone in service."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tests import helm_binaries
from tests.bench.cluster.ground import Ground, State
from tests.bench.cluster.share import share
from tests.cluster.cluster import CommandFailed
from tests.cluster.conftest import on_the_node
from tests.cluster.registry import Version
from tests.cluster.release import FULLNAME, NAME, WAIT, canary, to
from tests.waiting import wait_for

API_SERVER_AWAY_SECONDS = 20.0
BACK_WITHIN_SECONDS = 120.0
PROBED_REQUESTS = 2000
"""Of the load, while a kubelet that was restarted asks every probe anew."""
KILL_CONTAINER = """
import os, pathlib, sys
for cgroup in pathlib.Path("/proc").glob("[0-9]*/cgroup"):
    try:
        if sys.argv[1] in cgroup.read_text():
            os.kill(int(cgroup.parent.name), 9)
    except OSError:  # it has ended
        pass
"""
BARE = "bare helm rollback, canary "
"""How the events begin that are one from a state of a canary's."""
NO_KIT = "only the cluster that SHIPWAY_KUBE_KIT starts has components that may be killed"


def versions(ground: Ground) -> None:
    good, other = ground.lab.good, ground.lab.other
    with ground.event("helm upgrade to version 2"):
        ground.change(State(other), lambda: ground.release.upgrade(*to(other)))
    with ground.event("helm rollback to version 1"):
        ground.change(State(good), lambda: roll_back(ground))


def canaries(ground: Ground) -> None:
    """By helm alone."""
    good, other = ground.lab.good, ground.lab.other
    for words, wanted in (
        ("canary on, at 0%", State(good, other)),
        ("canary raised to 5%", State(good, other, 5)),
        ("canary raised to 25%", State(good, other, 25)),
        ("canary promoted", State(other)),
    ):
        with ground.event(words):
            ground.change(wanted, partial(ground.upgrade, wanted))


def rollouts(ground: Ground) -> None:
    """By `shipway rollout`, judged by the real gate; and what a bare `helm rollback` does to its canaries."""
    good, other, bad, shipway = ground.lab.good, ground.lab.other, ground.bad, ground.shipway
    with ground.event("shipway rollout, promoted"):
        ground.change(State(other), lambda: shipway.roll_out(other, promoted=True))
    with ground.event(BARE + "just promoted"):
        ground.change(State(good, other), lambda: roll_back(ground))
    begin_anew(ground)

    with ground.event("shipway rollout of a bad version, condemned"):
        ground.change(State(good), lambda: shipway.roll_out(bad, promoted=False), bad)
    with ground.event(BARE + "condemned"):
        ground.change(State(good, bad), lambda: roll_back(ground))
    begin_anew(ground)

    ground.change(State(good, other, 25), lambda: left(ground, other, 25))
    with ground.event(BARE + "at 25%"):
        ground.change(State(good), lambda: roll_back(ground))
    begin_anew(ground)

    ground.bring(State(good, other))
    with ground.event(BARE + "at 0%"):
        ground.change(State(good), lambda: roll_back(ground))


def never_ready(ground: Ground) -> None:
    unready = ground.lab.unready
    with ground.event("upgrade to what never gets ready, rolled back by helm"):
        assert "deadline" in failure(lambda: ground.release.upgrade(*to(unready), "--rollback-on-failure"))
        if ground.release.history[-1] == "failed":  # which Helm 4 says of some rollbacks that work
            roll_back(ground, *first_good(ground))
        ground.wait_until_in_force(State(ground.lab.good))
    with ground.event("canary that never gets ready, at 25%"):
        assert "deadline" in failure(lambda: ground.release.upgrade(*canary(unready), "--set", "canary.weight=25"))
        roll_back(ground)
        ground.wait_until_in_force(State(ground.lab.good))


def pods(ground: Ground) -> None:
    release = ground.release
    with ground.event("kubectl rollout restart"):
        release.kubectl("rollout", "restart", f"deployment/{FULLNAME}")
        release.kubectl("rollout", "status", f"deployment/{FULLNAME}", "--timeout=170s")
    with ground.event("pod deleted"):
        release.kubectl("delete", "pod", name(release.pods()[0]), "--wait=false")
    with ground.event("pod evicted, one of two"):
        first, second = map(name, release.pods())
        evict(ground, first)
        # The first is being replaced.
        assert "disruption budget" in failure(lambda: evict(ground, second))


def components(ground: Ground) -> None:
    """Of Kubernetes itself."""
    cluster = ground.lab.cluster
    for words, happens in (
        ("kubelet restarted", kubelet_restarted),
        (f"API server killed for {API_SERVER_AWAY_SECONDS:.0f} s", api_server_killed),
    ):
        if cluster.kit:
            with ground.event(words):
                happens(ground)
        else:
            ground.skip(words, NO_KIT)


def canary_pod(ground: Ground) -> None:
    ground.bring(State(ground.lab.good, ground.lab.other, 25))
    with ground.event("canary's pod killed with SIGKILL, at 25%"):
        (before,) = ground.release.pods("canary")
        kill_container(ground, before)
        wait_for(lambda: restarts(ground.release.pods("canary")[0]) > restarts(before), BACK_WITHIN_SECONDS)


GROUPS: Mapping[str, Callable[[Ground], None]] = {
    "versions": versions,
    "canaries": canaries,
    "rollouts": rollouts,
    "never-ready": never_ready,
    "pods": pods,
    "components": components,
    "canary-pod": canary_pod,
    "share": share,
}


def name(pod: Any) -> str:
    return str(pod["metadata"]["name"])


def restarts(pod: Any) -> int:
    return sum(one["restartCount"] for one in pod["status"].get("containerStatuses", []))


def roll_back(ground: Ground, *revision: str) -> None:
    """Bare, without a revision: to the one before, whatever that was."""
    ground.release.helm("rollback", NAME, *revision, *WAIT)


def first_good(ground: Ground) -> tuple[str]:
    """The newest revision that was once deployed."""
    history = ground.release.history
    good = max(at for at, status in enumerate(history) if status == "superseded")
    revisions = json.loads(ground.release.helm("history", NAME, "--output", "json"))
    return (str(revisions[good]["revision"]),)


def failure(command: Callable[[], object]) -> str:
    """What a command says that must fail."""
    try:
        command()
    except CommandFailed as failed:
        return failed.done.stderr
    raise AssertionError("a command did not fail that must")


def begin_anew(ground: Ground) -> None:
    """The first version alone, and a ledger that says so."""
    ground.bring(State(ground.lab.good))
    ground.shipway.adopt()


def left(ground: Ground, version: Version, weight: int) -> None:
    """A rollout whose command is killed at a weight, which stays."""
    process = ground.shipway.begin(version)
    try:
        ground.wait_until_in_force(State(ground.lab.good, version, weight))
    finally:
        process.kill()
        process.wait()


def evict(ground: Ground, pod: str) -> None:
    """Raises CommandFailed where a PodDisruptionBudget forbids it."""
    where = {"name": pod, "namespace": ground.release.namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": where}
    path = f"/api/v1/namespaces/{ground.release.namespace}/pods/{pod}/eviction"
    ground.lab.cluster.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))


def kubelet_restarted(ground: Ground) -> None:
    cluster = ground.lab.cluster
    (node,) = cluster.json("get", "nodes")["items"]

    def renewed() -> str:
        lease = cluster.json("--namespace", "kube-node-lease", "get", "lease", name(node))
        return str(lease["spec"]["renewTime"])

    cluster.kill("kubelet")
    last = renewed()
    cluster.start("kubelet")
    wait_for(lambda: renewed() != last, BACK_WITHIN_SECONDS)
    ground.go_on(PROBED_REQUESTS)


def api_server_killed(ground: Ground) -> None:
    cluster = ground.lab.cluster
    cluster.kill("kube-apiserver")
    try:
        time.sleep(API_SERVER_AWAY_SECONDS)
    finally:
        cluster.start("kube-apiserver")
    wait_for(lambda: cluster.run(helm_binaries.kubectl(), "get", "--raw", "/readyz").returncode == 0, 60)


def kill_container(ground: Ground, pod: Any) -> None:
    """SIGKILL to all of its processes, from outside of it: a pod's own processes may not kill its first."""
    (node,) = pod["status"]["containerStatuses"]
    container = node["containerID"].rpartition("/")[2]
    command = ["python", "-c", KILL_CONTAINER, container]
    on_the_node(ground.lab, ground.nodes_namespace, f"kill-{container[:12]}", command)
