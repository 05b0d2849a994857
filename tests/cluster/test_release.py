"""What helm alone does with a release: points 16 to 25, 30 and 31 of the chart's checklist."""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import CommandFailed
from tests.cluster.conftest import CHART, Lab
from tests.cluster.registry import MODEL, questions
from tests.cluster.release import FULLNAME, NAME, Release, canary, to
from tests.cluster.steady import Steady
from tests.helm_binaries import helm

MAJORS = (3, 4)
SOON = ("--set", "startup.budgetSeconds=12", "--set", "progressDeadlineSeconds=17")
"""For what must not get ready."""
BACK = {3: "--atomic", 4: "--rollback-on-failure"}
ASKED = 200
"""Requests before and after what happens."""
MLFLOW_DOWN_SECONDS = 30.0
"""In which all traffic must be back on the version before."""


@pytest.mark.parametrize("major", MAJORS)
def test_point_16_a_rollback_restores_the_pod_template(lab: Lab, namespace: str, major: int) -> None:
    release = Release(lab, namespace, major)
    release.install(lab.good, model={**lab.values(lab.good)["model"], "handlerConfig": {"workers": 1, "batchSize": 4}})
    first = release.template
    release.serves(lab.good)

    release.upgrade(*to(lab.other), "--set-json", 'model.handlerConfig={"workers":2,"batchSize":8}')
    release.serves(lab.other)
    assert release.template != first

    release.rollback(1)
    assert release.template == first
    release.serves(lab.good)


@pytest.mark.parametrize("major", MAJORS)
def test_point_17_a_version_that_never_gets_ready_goes_back(lab: Lab, namespace: str, major: int) -> None:
    release = Release(lab, namespace, major)
    release.install(lab.good)
    (serving,) = release.json("get", "replicasets")["items"]
    with Steady(lab.cluster.node_ip, release.port, MODEL, questions([lab.good])) as load:
        load.meant(lab.good.number)
        begun = time.monotonic()
        with _never_without_pods(release, serving["metadata"]["name"]), pytest.raises(CommandFailed) as failed:
            # Helm 3 sees no deadline but its own.
            release.upgrade(*to(lab.unready), *SOON, BACK[major], "--timeout", "30s")
        load.wait_for(ASKED, time.monotonic(), 60)
    assert load.window(begun).faults == []
    release.serves(lab.good)
    if (major, release.history[-1]) == (4, "failed"):
        # Its own rollback reads that the pods before had no progress, and takes it for these. The notes say what to do.
        assert "good at a second try" in release.notes
        release.rollback(1)
    assert release.history[-1] == "deployed", failed.value
    release.serves(lab.good)


def test_point_17_helm_4_gives_up_at_the_progress_deadline(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"[Pp]rogress"):
        release.upgrade(*to(lab.unready), *SOON)
    assert time.monotonic() - begun < 17 + 15
    assert release.history == ["deployed", "failed"]
    release.serves(lab.good)
    (unready,) = [
        pod
        for pod in release.pods()
        if pod["metadata"]["annotations"]["shipway.dev/version"] == str(lab.unready.number)
    ]
    said = release.kubectl("logs", unready["metadata"]["name"], "--container", "node")
    assert "this hardware gives" in said  # why


def test_point_20_helm_names_who_scaled_and_the_option_that_takes_it_back(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    release.kubectl("scale", "deployment", FULLNAME, "--replicas=2")
    with pytest.raises(CommandFailed, match=r'conflict with "kubectl".*\.spec\.replicas'):
        release.upgrade(*to(lab.other))
    assert "--force-conflicts" in release.notes
    release.upgrade(*to(lab.other), "--force-conflicts")
    assert release.json("get", "deployment", FULLNAME)["spec"]["replicas"] == 1
    release.serves(lab.other)


def test_point_21_helm_4_takes_over_a_release_of_helm_3(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace, major=3)
    release.install(lab.good)
    release.major = 4
    release.upgrade(*to(lab.other))
    release.serves(lab.other)
    release.rollback(1)
    release.serves(lab.good)
    assert release.history == ["superseded", "superseded", "deployed"]


def test_point_22_helm_test_fails_on_a_wrong_answer(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    assert "all golden outputs are right" in release.helm("test", NAME, "--logs")
    release.upgrade(*to(lab.wrong))  # its own look at the golden set finds nothing
    with pytest.raises(CommandFailed) as failed:
        release.helm("test", NAME, "--logs")
    assert re.search(r"output \w+, value \d+: expected", failed.value.done.stdout)


def test_point_23_a_rollback_needs_no_mlflow(lab: Lab, namespace: str, shared_cache: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good, replicaCount=2, cache={"type": "pvc", "existingClaim": shared_cache})
    release.upgrade(*to(lab.other))
    lab.mlflow.stop()
    try:
        with Steady(lab.cluster.node_ip, release.port, MODEL, questions([lab.good, lab.other])) as load:
            begun = time.monotonic()
            with load.during((lab.good.number, lab.other.number), (lab.good.number,)):
                release.rollback(1)
            assert time.monotonic() - begun < MLFLOW_DOWN_SECONDS
            load.wait_for(ASKED, time.monotonic(), 60)
        assert load.window(begun).faults == []
    finally:
        lab.mlflow.start()


def test_point_24_what_is_switched_on_and_back_leaves_nothing(lab: Lab, namespace: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    before = release.objects
    for options in (
        ("--set", "autoscaling.type=hpa", "--set", "autoscaling.min=2", "--set", "autoscaling.max=3"),
        canary(lab.other),
        ("--set", "metrics.dashboards.enabled=true", "--set", "cache.type=pvc"),
    ):
        release.upgrade(*options, wait=False)
        during = release.objects
        assert before < during, options
        release.rollback(1)
        kept = {one for one in during if one.startswith("PersistentVolumeClaim/")}
        assert release.objects == before | kept, options
        before |= kept


def test_point_25_a_newer_chart_changes_nothing_that_cannot_be_changed(
    lab: Lab, namespace: str, tmp_path: Path
) -> None:
    older = tmp_path / "shipway"
    shutil.copytree(CHART, older)
    about = (older / "Chart.yaml").read_text()
    (older / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion): .*$", r"\1: 0.0.1", about))
    release = Release(lab, namespace, chart=str(older))
    release.install(lab.good)
    release.chart = str(CHART)
    release.upgrade("--set", "commonLabels.team=pricing", "--set", "podLabels.tier=gold")
    assert release.history == ["superseded", "deployed"]
    release.serves(lab.good)


@pytest.mark.parametrize("happens", ["restart", "upgrade"])
def test_point_30_pods_are_replaced_without_a_failed_request(lab: Lab, namespace: str, happens: str) -> None:
    release = Release(lab, namespace)
    release.install(lab.good, replicaCount=2)
    with Steady(lab.cluster.node_ip, release.port, MODEL, questions([lab.good, lab.other])) as load:
        load.meant(lab.good.number)
        begun = time.monotonic()
        load.wait_for(ASKED, begun, 60)
        if happens == "restart":
            release.kubectl("rollout", "restart", f"deployment/{FULLNAME}")
            release.kubectl("rollout", "status", f"deployment/{FULLNAME}", "--timeout=180s")
        else:
            with load.during((lab.good.number, lab.other.number), (lab.other.number,)):
                release.upgrade(*to(lab.other))
        load.wait_for(ASKED, time.monotonic(), 60)
    assert load.window(begun).faults == []


def test_point_31_what_the_notes_say_works_as_printed(lab: Lab, namespace: str, tmp_path: Path) -> None:
    release = Release(lab, namespace)
    release.install(lab.good)
    (tmp_path / "helm").symlink_to(helm(4))
    environment = {**lab.cluster.environment, "PATH": f"{tmp_path}:/usr/bin:/bin", "CHART": str(CHART)}

    def run(wanted: str, **variables: object) -> None:
        """The one command of the notes in which this stands."""
        (line,) = [line for line in release.notes.splitlines() if re.search(wanted, line)]
        given = {**environment, **{name: str(value) for name, value in variables.items()}}
        done = subprocess.run(["bash", "-ec", line], env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    run("^  helm test")
    run("canary.enabled=true", VERSION=lab.other.number, DIGEST=lab.other.digest)
    run(r"canary.weight=\$WEIGHT", WEIGHT=25)
    routing = release.json("get", "configmap", f"{FULLNAME}-routing")["data"]["routing.json"]
    assert json.loads(routing)["canary"]["weight"] == 25
    run(r"model.version=\d+.*canary.enabled=false")  # promoted
    release.serves(lab.other)
    run(r"--set model.version=\$VERSION", VERSION=lab.good.number, DIGEST=lab.good.digest)
    release.serves(lab.good)
    run("^  helm history")
    run(r"^  helm rollback", REVISION=len(release.history) - 1)
    release.serves(lab.other)


@contextlib.contextmanager
def _never_without_pods(release: Release, replica_set: str) -> Iterator[None]:
    """Look at a ReplicaSet all the while: it has a pod that is ready."""
    ended, seen = threading.Event(), [1]

    def look() -> None:
        while not ended.wait(0.5):
            seen.append(release.json("get", "replicaset", replica_set)["status"].get("readyReplicas", 0))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
    assert len(seen) > 10
    assert min(seen) == 1
