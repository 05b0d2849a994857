"""What a pod does: points 26 to 29 of the chart's checklist."""

import contextlib
import re
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
ASK_READINESS = """
import urllib.error, urllib.request
try:
    with urllib.request.urlopen("http://127.0.0.1:8082/readyz", timeout=5) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print("000", error)
"""
READINESS_AFTER_SIGTERM = """
import os, time, urllib.error, urllib.request
begun, status = time.monotonic(), 200
os.kill(1, 15)
while status == 200 and time.monotonic() < begun + 10:
    try:
        urllib.request.urlopen("http://127.0.0.1:8082/readyz", timeout=5).close()
    except urllib.error.HTTPError as error:
        status = error.code
print(status, time.monotonic() - begun)
"""
JVMS = """
import pathlib
for path in pathlib.Path("/proc").glob("[0-9]*/comm"):
    if path.read_text() == "java\\n":
        print(path.parent.name)
"""


def inside(release: Release, *command: str) -> str:
    """What a command prints that runs in the node's container."""
    (pod,) = release.pods()
    return release.kubectl("exec", pod["metadata"]["name"], "--container", "node", "--", *command)


def jvms(release: Release) -> set[tuple[int, int]]:
    """How often the container was started, and the process; none while there is no container."""
    (pod,) = release.pods()
    (node,) = pod["status"]["containerStatuses"]
    with contextlib.suppress(CommandFailed):
        return {(node["restartCount"], int(process)) for process in inside(release, "python", "-c", JVMS).split()}
    return set()


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
    assert f"{MODEL}-1-{'0' * 12}.mar" in ended["message"]  # what was wanted
    assert lab.good.digest in ended["message"]  # what there is
    (node,) = pod["status"]["containerStatuses"]
    assert node["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert node["restartCount"] == 0


def test_point_28_readiness_follows_the_workers(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good, wait=False)
    wait_for(release.pods, 30)
    seen: list[str] = []

    def ready() -> bool:
        with contextlib.suppress(CommandFailed):  # there is no container yet
            seen.append(inside(release, "python", "-c", ASK_READINESS).strip())
        return bool(seen) and seen[-1] == "200 ready"

    wait_for(ready, READY_WITHIN_SECONDS)
    assert {said[:3] for said in seen} == {"000", "503", "200"}  # nobody listens, not ready, ready
    (pod,) = release.pods()
    metrics = lab.cluster.from_pod(namespace, pod["metadata"]["name"], 8082, "/metrics")
    assert re.search(rf'shipway_workers{{model="{MODEL}",state="alive",version="{lab.good.number}"}} [1-9]', metrics)

    status, seconds = inside(release, "python", "-c", READINESS_AFTER_SIGTERM).split()
    assert status == "503"
    assert float(seconds) < 1.0


def test_point_28_a_pod_whose_jvm_dies_serves_again(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    (killed,) = jvms(release)
    inside(release, "python", "-c", f"import os; os.kill({killed[1]}, 9)")
    wait_for(lambda: jvms(release) - {killed}, READY_WITHIN_SECONDS)
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
        return bool(release.ask(release.lab.good))
    except OSError:
        return False
