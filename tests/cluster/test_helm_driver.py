"""Rollouts of a release by helm 3 and 4 on a real cluster: how they end, who may step in, and what a kill costs.

The chart is the real one; its node is a program that stands in for it (`standins.py`), so that a rollout takes seconds.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import (
    NoGoodVersion,
    ReleaseAmbiguous,
    ReleasePending,
    ReleaseServesOther,
    ReleaseUnsuited,
    TakenOver,
)
from deploy.kubernetes import there
from deploy.kubernetes.status import ReleaseStatus, read_status
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Outcome, Release, Step, Verdict
from deploy.settings import Settings
from tests import helm_binaries
from tests.cluster.cluster import Cluster, CommandFailed
from tests.cluster.conftest import CHART, STATE
from tests.cluster.image import ROOT, Image
from tests.cluster.release import FULLNAME, NAME
from tests.cluster.standins import MODEL, NEVER_READY, NOT_FETCHED, digest, standin, values
from tests.waiting import wait_for

POLICY = Policy(steps=tuple(Step(weight=weight, seconds=1, requests=1, give_up_seconds=60) for weight in (25, 50, 100)))
FETCH_FAILED = "fetch failed: the registry holds another file under its name: expected sha256:5, found sha256:6"


both_helms = pytest.mark.parametrize("bench", [3, 4], ids=["helm3", "helm4"], indirect=True)
helm_3 = pytest.mark.parametrize("bench", [3], ids=["helm3"], indirect=True)


def release(version: int) -> Release:
    return Release(version=version, digest=digest(version))


@dataclass
class Bench:
    """A release, and the processes that work on it one after the other."""

    cluster: Cluster
    image: Image
    namespace: str
    major: int
    directory: Path
    verdicts: dict[int, Outcome] = field(default_factory=dict)
    """By step; `promote` where nothing stands."""
    meanwhile: Callable[[Entry], None] = lambda _: None
    """Called when an entry was written."""
    consents: bool = False
    asked: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    """Why the candidate is not ready, as the judge was told."""

    def install(self, version: int = 1, **changes: Any) -> None:
        given = values(
            version,
            image={"repository": self.image.repository, "tag": self.image.tag, "pullPolicy": "Never"},
            replicaCount=1,
            resources={"requests": {"cpu": "10m", "memory": "32Mi"}},
            fetch={"resources": {}},
            drain={"noticeSeconds": 1, "requestTimeoutSeconds": 2},
            **changes,
        )
        self.helm("install", NAME, str(CHART), "--values", "-", "--wait", "--timeout", "90s", stdin=json.dumps(given))

    def helm(self, *arguments: str, stdin: str | None = None, major: int | None = None) -> str:
        arguments = (*arguments, "--namespace", self.namespace)
        return self.cluster.helm(major or self.major, *arguments, stdin=stdin)

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments)

    @property
    def settings(self) -> Settings:
        return Settings(
            state_dir=self.directory,
            helm_release=NAME,
            helm_namespace=self.namespace,
            helm=str(helm_binaries.helm(self.major)),
            helm_chart=CHART,
            mlflow_uri="http://127.0.0.1:9",
        )

    @property
    def endpoint(self) -> Endpoint:
        """A new process's view of the release."""
        found = there.endpoint(
            self.settings, MODEL, tell=lambda entry, verdict, _: self._tell(entry, verdict), take_over=self._take_over
        )
        found.packaged = release
        found.read_policy = lambda: POLICY
        found.judging = lambda _: self._judge
        found.breaking = lambda *_: ()
        return found

    @property
    def history(self) -> list[Any]:
        return list(json.loads(self.helm("history", NAME, "--output", "json")))

    @property
    def status(self) -> ReleaseStatus:
        return read_status(self.settings)

    @property
    def states(self) -> list[str]:
        return [entry.state or entry.kind for entry in self.endpoint.ledger.entries()]

    @property
    def weights(self) -> dict[int, int]:
        """As the stable pods say that they are in force."""
        return {one.version: one.weight for one in self.status.tracks}

    def _tell(self, entry: Entry, verdict: Verdict | None) -> None:
        if verdict is None:
            self.meanwhile(entry)

    def _take_over(self, words: str) -> bool:
        self.asked.append(words)
        return self.consents

    def _judge(self, entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        step = entry.step or 0
        outcome = "roll back" if lost_readiness else self.verdicts.get(step, "promote")
        words = lost_readiness or f"the judge says {outcome}"
        self.heard.append(lost_readiness)
        return Verdict(outcome=outcome, words=words, checks=(), step=step, since=canary_since, at=at)


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """Version 1 is installed."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    major = getattr(request, "param", 4)
    found = Bench(cluster, standin(cluster, STATE / "image"), namespace, major, tmp_path)
    found.install()
    yield found
    assert helms(namespace) == []  # none is left behind


def helms(namespace: str, verb: str = "") -> list[int]:
    """Helms at work there, or those alone that do this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if namespace in words and Path(words[0]).name.startswith("helm") and verb in ("", *words):
            found.append(int(path.parent.name))
    return found


@both_helms
def test_a_good_version_is_promoted_in_two_revisions(bench: Bench) -> None:
    seen: dict[str, dict[int, int]] = {}

    def look(entry: Entry) -> None:
        if entry.state == "JUDGING":
            seen[f"{entry.step}"] = bench.weights

    bench.meanwhile = look
    assert bench.endpoint.roll_out(release(2)).state == "PROMOTED"
    assert seen == {"0": {1: 75, 2: 25}, "1": {1: 50, 2: 50}}  # no step is above maxCanaryShare, which is 50
    assert [one["status"] for one in bench.history] == ["superseded", "superseded", "deployed"]
    assert [one["description"] for one in bench.history[1:]] == [
        f"flights version 1 {digest(1)}; canary version 2 {digest(2)}",
        f"flights version 2 {digest(2)}",
    ]
    assert bench.weights == {2: 100}
    assert "rollout" not in bench.kubectl("get", "configmaps", "--selector", "shipway.dev/routing=rollout")
    assert bench.status.problems == []
    entry = bench.endpoint.roll_back()
    assert (entry.state, entry.champion) == ("ROLLED_BACK", release(1))
    assert (bench.weights, bench.history[-1]["description"]) == ({1: 100}, "Rollback to 1")
    with pytest.raises(NoGoodVersion):
        bench.endpoint.roll_back()


def test_a_condemned_canary_leaves_and_the_release_is_what_it_was(bench: Bench) -> None:
    bench.verdicts = {1: "roll back"}
    before = bench.kubectl("get", "deployment", FULLNAME, "--output", "jsonpath={.spec.template}")
    assert bench.endpoint.roll_out(release(2)).state == "ROLLED_BACK"
    assert bench.weights == {1: 100}
    assert bench.kubectl("get", "deployment", FULLNAME, "--output", "jsonpath={.spec.template}") == before
    assert [one["status"] for one in bench.history] == ["superseded", "superseded", "deployed"]


@pytest.mark.parametrize(
    ("version", "cause"),
    [
        (NEVER_READY, "version 4 does not reproduce its golden set"),
        (NOT_FETCHED, FETCH_FAILED),
    ],
)
def test_a_version_that_never_gets_ready_is_taken_back_and_the_cause_is_said(
    bench: Bench, version: int, cause: str
) -> None:
    seen: list[str] = []

    def look(entry: Entry) -> None:
        if entry.state == "ROLLING_BACK":
            seen.extend(bench.status.problems)

    bench.meanwhile = look
    assert bench.endpoint.roll_out(release(version)).state == "ROLLED_BACK"
    assert cause in bench.endpoint.ledger.entries()[-2].words
    assert any(cause in problem for problem in seen)
    assert bench.weights == {1: 100}


def test_point_18_a_rollback_finds_the_last_good_revision_behind_failed_ones(bench: Bench) -> None:
    bench.endpoint.roll_out(release(2))
    bench.endpoint.roll_out(release(NEVER_READY))
    for version in (NEVER_READY, NOT_FETCHED):
        with pytest.raises(CommandFailed):
            bench.helm(*upgrade_to(version), "--wait", "--timeout", "30s")
    assert [one["status"] for one in bench.history].count("failed") == 3
    assert bench.endpoint.roll_back().champion == release(2)
    assert (bench.weights, bench.status.problems) == ({2: 100}, [])
    assert bench.endpoint.roll_back().champion == release(1)
    assert (bench.weights, bench.history[-1]["description"]) == ({1: 100}, "Rollback to 1")


def test_a_canary_that_loses_readiness_is_taken_back_with_the_reason(bench: Bench) -> None:
    def kill(entry: Entry) -> None:
        if entry.state == "JUDGING":
            pod = bench.kubectl("get", "pods", "--selector", "shipway.dev/track=canary", "--output=name").split()[0]
            bench.cluster.from_pod(bench.namespace, pod.removeprefix("pod/"), 8082, "/break")
            wait_for(lambda: bench.endpoint.driver.serving(MODEL).unready, 60)

    bench.meanwhile = kill
    assert bench.endpoint.roll_out(release(2)).state == "ROLLED_BACK"
    assert bench.heard[-1] == "its worker has ended"
    assert bench.weights == {1: 100}


@both_helms
def test_point_19_a_killed_helm_is_cleared_by_the_command_that_started_it(bench: Bench) -> None:
    def killer(entry: Entry) -> None:
        if entry.state == "PENDING":
            threading.Thread(target=kill_upgrade, args=(bench,), daemon=True).start()

    bench.meanwhile = killer
    assert bench.endpoint.roll_out(release(NEVER_READY)).state == "ROLLED_BACK"
    assert "pending-upgrade" in [one["status"] for one in bench.history]
    assert (bench.weights, bench.asked) == ({1: 100}, [])


def test_a_pending_release_is_taken_over_with_consent_alone(bench: Bench) -> None:
    bench.verdicts = {0: "hold"}
    assert bench.endpoint.roll_out(release(2)).state == "HELD"
    somebodys_killed_helm(bench)
    assert bench.status.status == "pending-upgrade"
    assert "shipway rollback flights --yes" in bench.status.problems[0]
    with pytest.raises(ReleasePending, match="shipway rollback flights --yes"):
        bench.endpoint.resume()
    with pytest.raises(ReleasePending):
        bench.endpoint.roll_back()
    assert "another helm is at work on it, or was killed" in bench.asked[0]
    assert bench.endpoint.ledger.newest().state == "ROLLING_BACK"  # type: ignore[union-attr]
    bench.consents = True
    assert bench.endpoint.roll_back().state == "ROLLED_BACK"
    assert (bench.weights, bench.status.problems) == ({1: 100}, [])


@pytest.mark.parametrize(
    ("at", "then", "end"),
    [
        ("upgrade", "rollback", {1: 100}),
        ("PROMOTING", "resume", {2: 100}),
        ("PROMOTING upgrade", "rollback", {1: 100}),
    ],
)
def test_point_19_a_killed_command_is_ended_by_one_more(bench: Bench, at: str, then: str, end: dict[int, int]) -> None:
    where = [bench.namespace, str(bench.major), str(bench.directory)]
    command = [sys.executable, "-m", "tests.cluster.killed_release", *where, *at.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for(lambda: helms(bench.namespace) == [], 20)  # helm dies with it
    entry = bench.endpoint.resume() if then == "resume" else bench.endpoint.roll_back()
    assert entry.state == ("PROMOTED" if then == "resume" else "ROLLED_BACK")
    assert (bench.weights, bench.status.problems, bench.asked) == (end, [], [])


def test_a_rollback_elsewhere_wins_and_the_rollouts_helm_ends(bench: Bench) -> None:
    def elsewhere(entry: Entry) -> None:
        if entry.state == "PENDING":
            threading.Thread(target=roll_back_during_upgrade, args=(bench, ended), daemon=True).start()

    ended: list[Entry] = []
    bench.meanwhile = elsewhere
    with pytest.raises(TakenOver):
        bench.endpoint.roll_out(release(NEVER_READY))
    wait_for(lambda: ended, 60)
    assert (ended[0].state, bench.weights) == ("ROLLED_BACK", {1: 100})


@pytest.mark.parametrize("step", [None, 0])
def test_the_ledger_follows_a_rollback_by_hand(bench: Bench, step: int | None) -> None:
    bench.verdicts = {} if step is None else {step: "hold"}
    bench.endpoint.roll_out(release(2))
    # What was there before: version 1 and no canary; or, once version 2 is promoted, the canary at weight 0.
    bench.helm("rollback", NAME, "--wait", "--timeout", "60s")
    if step is None:
        assert bench.weights == {1: 100, 2: 0}
        with pytest.raises(ReleaseAmbiguous, match="has version 1, and version 2 as its canary, and the ledger says"):
            read_status(bench.settings, adopt=True)
        bench.helm("rollback", NAME, "1", "--wait", "--timeout", "60s")
    assert "the ledger says version" in "".join(bench.status.problems)
    assert read_status(bench.settings, adopt=True).problems == []
    wait_for(lambda: bench.weights == {1: 100}, 90)
    entry = bench.endpoint.ledger.newest()
    assert entry is not None
    assert (entry.state, entry.champion) == ("ROLLED_BACK", release(1))
    assert bench.endpoint.driver.serving(MODEL).champion == release(1)


def test_what_is_asked_must_fit_the_release(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ReleaseServesOther, match="serves the model flights, and not topics"):
        there.endpoint(bench.settings, "topics")
    other = tmp_path / "shipway"
    shutil.copytree(CHART, other)
    chart = (other / "Chart.yaml").read_text()
    (other / "Chart.yaml").write_text(re.sub(r"^version: .*$", "version: 9.9.9", chart, flags=re.MULTILINE))
    endpoint = bench.endpoint
    endpoint.driver._chart = other  # type: ignore[attr-defined]
    with pytest.raises(ReleaseUnsuited, match=r"shipway-9\.9\.9 is here"):
        endpoint.roll_out(release(2))
    assert bench.states == []


def test_scaled_by_hand_the_upgrade_says_whose_field_it_is_and_going_back_takes_it(bench: Bench) -> None:
    bench.kubectl("scale", "deployment", FULLNAME, "--replicas=2")
    entry = bench.endpoint.roll_out(release(2))
    words = bench.endpoint.ledger.entries()[-2].words
    assert (entry.state, ".spec.replicas" in words) == ("ROLLED_BACK", True)
    assert bench.status.tracks[0].replicas == 1


@helm_3
def test_a_release_made_with_helm_3_is_rolled_out_and_back_with_4(bench: Bench) -> None:
    bench.major = 4
    assert bench.endpoint.roll_out(release(2)).state == "PROMOTED"
    assert bench.endpoint.roll_back().champion == release(1)


def upgrade_to(version: int) -> list[str]:
    """By hand."""
    model = ["--set", f"model.version={version}", "--set", f"model.sha256={digest(version)}"]
    return ["upgrade", NAME, str(CHART), "--reset-then-reuse-values", *model]


def kill_upgrade(bench: Bench) -> None:
    """As soon as it has written that it is at work."""
    wait_for(lambda: bench.history[-1]["status"] == "pending-upgrade", 60)
    for pid in helms(bench.namespace, "upgrade"):
        os.kill(pid, signal.SIGKILL)


def roll_back_during_upgrade(bench: Bench, ended: list[Entry]) -> None:
    wait_for(lambda: bench.history[-1]["status"] == "pending-upgrade", 60)
    ended.append(replace(bench, meanwhile=lambda _: None).endpoint.roll_back())


def somebodys_killed_helm(bench: Bench) -> None:
    """A helm by hand, killed in the middle of an upgrade to what never gets ready."""
    upgrade = [str(helm_binaries.helm(bench.major)), *upgrade_to(NEVER_READY), "--wait", "--namespace", bench.namespace]
    process = subprocess.Popen(upgrade, env=bench.cluster.environment)
    wait_for(lambda: bench.history[-1]["status"] == "pending-upgrade", 60)
    process.kill()
    process.wait()
