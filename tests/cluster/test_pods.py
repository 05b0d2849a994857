"""What a pod does: points 26 to 29 of the chart's checklist."""

import time
from typing import Any

import numpy as np
import pytest

from tests.cluster.cluster import CommandFailed
from tests.cluster.conftest import Lab
from tests.cluster.registry import MODEL, questions
from tests.cluster.release import Release
from tests.cluster.steady import Steady
from tests.waiting import wait_for

READY_WITHIN_SECONDS = 120
ASKED = 200
"""Requests before, and after."""
SOON: dict[str, Any] = {"startup": {"budgetSeconds": 10}, "progressDeadlineSeconds": 15}
"""For what must not get ready."""
KILL_JVM = """
import os, pathlib
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"ModelServer" in path.read_bytes():
        os.kill(int(path.parent.name), 9)
"""


def inside(release: Release, *command: str) -> str:
    """What a command prints that runs in the node's container."""
    (pod,) = release.pods()
    return release.kubectl("exec", pod["metadata"]["name"], "--container", "node", "--", *command)


def test_point_26_a_pod_may_do_little(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    headers, found = release.ask(lab.good)
    assert headers["x-shipway-digest"] == lab.good.digest
    np.testing.assert_allclose(found, lab.good.golden["response"]["outputs"][0]["data"], rtol=1e-3, atol=1e-3)

    assert inside(release, "id", "-u").strip() == "1000"
    assert "shipway\0node" in inside(release, "cat", "/proc/1/cmdline")
    status = dict(line.split(":", 1) for line in inside(release, "cat", "/proc/1/status").splitlines())
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        inside(release, "touch", "/opt/shipway/x")
    limits = "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"  # of cgroups 1 and 2
    assert inside(release, "sh", "-c", f"cat {limits[0]} 2>/dev/null || cat {limits[1]}").strip() == str(2 * 2**30)


def test_point_27_a_wrong_digest_starts_no_server(lab: Lab, namespace: str) -> None:
    release, wrong = Release(lab, namespace), f"sha256:{'0' * 64}"
    values = lab.values(lab.good)
    with pytest.raises(CommandFailed):
        release.install(lab.good, model={**values["model"], "sha256": wrong}, **SOON)
    (pod,) = release.pods()
    (fetch,) = pod["status"]["initContainerStatuses"]
    ended = {**fetch["state"], **fetch["lastState"]}["terminated"]
    assert ended["exitCode"] == 1
    assert len(ended["message"].strip().splitlines()) == 1
    assert wrong in ended["message"]
    (node,) = pod["status"]["containerStatuses"]
    assert node["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert node["restartCount"] == 0


def test_point_28_readiness_follows_the_workers(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good, wait=False)
    (pod,) = wait_for(release.pods, 30)
    seen: list[tuple[float, str]] = []

    def ready() -> bool:
        """Note what /readyz says: 200 and "ready", or 503 and why not."""
        try:
            answer = lab.cluster.from_pod(namespace, pod["metadata"]["name"], 8082, "/readyz")
        except CommandFailed as failed:
            answer = failed.done.stderr
        seen.append((time.monotonic(), answer.strip()))
        return seen[-1][1] == "ready"

    wait_for(ready, READY_WITHIN_SECONDS)
    assert any("LOADING" in said for _, said in seen)
    metrics = lab.cluster.from_pod(namespace, pod["metadata"]["name"], 8082, "/metrics")
    assert f'shipway_workers{{model="{MODEL}",state="alive",version="{lab.good.number}"}} 1.0' in metrics

    begun = time.monotonic()
    inside(release, "sh", "-c", "kill -TERM 1")
    wait_for(lambda: not ready(), 5)
    assert seen[-1][0] - begun < 1.0 + 0.5  # the program that sends the signal, and the one that asks


def test_point_28_a_pod_whose_jvm_dies_serves_again(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    inside(release, "python", "-c", KILL_JVM)
    wait_for(lambda: _answers(release), READY_WITHIN_SECONDS)
    release.wait_until_ready()


def test_point_29_a_pod_that_ends_loses_no_request(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good, replicaCount=2)
    name = release.pods()[0]["metadata"]["name"]
    # It outlives its containers in the API server, with what they ended with.
    held = '{"metadata":{"finalizers":["tests.shipway.dev/looked-at"]}}'
    release.kubectl("patch", "pod", name, "--type=merge", "--patch", held)
    try:
        with Steady(lab.cluster.node_ip, release.port, MODEL, questions([lab.good])) as load:
            load.meant(lab.good.number)
            start = time.monotonic()
            load.wait_for(ASKED, start, 60)
            release.kubectl("delete", "pod", name, "--wait=false")
            ended = wait_for(lambda: _ended(release, name), 90)
            load.wait_for(ASKED, time.monotonic(), 60)
            assert load.window(start).faults == []
        assert ended["exitCode"] == 0  # and not 137, which is SIGKILL
    finally:
        release.kubectl("patch", "pod", name, "--type=merge", "--patch", '{"metadata":{"finalizers":null}}')


def _ended(release: Release, pod: str) -> dict[str, Any] | None:
    (node,) = release.json("get", "pod", pod)["status"]["containerStatuses"]
    found: dict[str, Any] | None = node["state"].get("terminated")
    return found


def _answers(release: Release) -> bool:
    try:
        return release.serving() == {release.lab.good.number}
    except OSError:
        return False
