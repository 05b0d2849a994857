"""Rollouts of a release in memory: what helm is told, in which order, and what is said where it does not get there."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import LoadFailed, NoGoodVersion, ReleasePending, ReleaseServesOther, ReleaseUnsuited
from deploy.kubernetes import driver, ledger
from deploy.kubernetes.driver import HelmDriver
from deploy.kubernetes.helm import Revision
from deploy.rollout.driver import Driver, Serving
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.ledger import AnyLedger
from deploy.rollout.machine import Traffic
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Outcome, Release, Step, Verdict
from tests.unit.deploy.kubernetes.bench import CHART, Bench, values
from tests.unit.deploy.kubernetes.objects import (
    FULLNAME,
    MODEL,
    ONE,
    THREE,
    TWO,
    condition,
    container,
    deployment,
    pod,
    serving,
    starting,
)

STEPS = tuple(Step(weight=weight, seconds=1, requests=1, give_up_seconds=60) for weight in (25, 50, 100))
CANARY = Traffic(serving=ONE, beside=TWO, guarded=True)
QUARTER = CANARY.model_copy(update={"weight": 25})
BACK = Traffic(serving=ONE)
PROMOTION = Traffic(serving=TWO, beside=ONE)
TO_CANARY = f"upgrade to flights version 1 {ONE.digest}; canary version 2 {TWO.digest}, within 240 s"
TO_TWO = f"upgrade to flights version 2 {TWO.digest}, within 240 s"
FAILED = {"exitCode": 1, "reason": "Error", "message": "the signature is of another key"}
NEVER_FETCHED = starting(fetch=container("fetch", restarts=2, last=FAILED, waiting={"reason": "CrashLoopBackOff"}))
LOADING = starting(node=container("node", running={}))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(driver, "PODS_BACK_WITHIN_SECONDS", 0.05)
    monkeypatch.setattr(driver, "OTHERS_END_WITHIN_SECONDS", 0.05)
    monkeypatch.setattr("deploy.rollout.run.POLL_SECONDS", 0.001)
    monkeypatch.setattr("deploy.rollout.run.LOOK_SECONDS", 0.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def reach(found: HelmDriver, traffic: Traffic) -> None:
    """Look until it is in force."""
    deadline = time.monotonic() + 30
    while not found.reached(MODEL, traffic):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def endpoint(bench: Bench, *outcomes: Outcome) -> Endpoint:
    """Judged so, step by step."""
    left = list(outcomes)

    def judge(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        outcome = "roll back" if lost_readiness else left.pop(0)
        words = lost_readiness or f"the judge says {outcome}"
        return Verdict(outcome=outcome, words=words, checks=(), step=entry.step or 0, since=canary_since, at=at)

    ledger: AnyLedger = bench.ledger
    carries: Driver = bench.driver
    return Endpoint(
        model=MODEL,
        ledger=ledger,
        driver=carries,
        locks_dir=Path("unused"),
        packaged=lambda version: {1: ONE, 2: TWO, 3: THREE}[version],
        read_policy=lambda: Policy(steps=STEPS),
        judging=lambda _: judge,
        breaking=lambda *_: (),
    )


@pytest.fixture
def roll_out(bench: Bench, tmp_path: Path) -> Callable[..., Entry]:
    def carried_out(candidate: Release, *outcomes: Outcome) -> Entry:
        found = endpoint(bench, *outcomes)
        found.locks_dir = tmp_path
        return found.roll_out(candidate)

    return carried_out


def states(bench: Bench) -> list[str]:
    return [f"{one.state}" for one in bench.ledger.entries()]


def test_a_good_version_takes_two_revisions(bench: Bench, roll_out: Callable[..., Entry]) -> None:
    assert roll_out(TWO, "promote", "promote").state == "PROMOTED"
    assert bench.helm.deeds == [TO_CANARY, TO_TWO]
    assert bench.place.tracks.aim.stable == TWO
    assert bench.place.tracks.canary is None
    assert f"{FULLNAME}-rollout" not in bench.api.names("configmaps")
    assert endpoint(bench).roll_back().state == "ROLLED_BACK"
    assert bench.helm.deeds[2:] == ["rollback to 1, within 240 s"]


def upgraded_by_hand(bench: Bench, status: str, *versions: Release) -> None:
    """One after the other, and none with success."""
    for version in versions:
        bench.helm.add(status, values(version))
        bench.api.run(version)


def test_two_bad_upgrades_by_hand_are_taken_back_to_the_last_good_version(bench: Bench) -> None:
    upgraded_by_hand(bench, "failed", TWO, THREE)
    assert endpoint(bench).roll_back().champion == ONE
    assert bench.helm.deeds == ["rollback to 1, within 240 s"]
    assert bench.place.tracks.aim.stable == ONE
    with pytest.raises(NoGoodVersion):
        endpoint(bench).roll_back()


def test_what_the_ledger_has_in_service_is_what_a_bad_upgrade_by_hand_is_taken_back_to(
    bench: Bench, roll_out: Callable[..., Entry]
) -> None:
    roll_out(TWO, "promote", "promote")
    upgraded_by_hand(bench, "failed", THREE)
    entry = endpoint(bench).roll_back(to=2)
    assert (entry.champion, entry.candidate) == (TWO, THREE)
    upgraded_by_hand(bench, "failed", THREE)
    assert endpoint(bench).roll_back().champion == TWO
    assert endpoint(bench).roll_back().champion == ONE


def test_nobody_waits_for_the_ledger_while_helm_is_asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded_by_hand(bench, "failed", TWO)
    monkeypatch.setattr(ledger, "BUSY_SECONDS", 0.2)
    history = bench.helm.history

    def asked() -> list[Revision]:
        with bench.ledger.writing():
            return history()

    found = endpoint(bench)
    monkeypatch.setattr(bench.helm, "history", asked)
    assert found.roll_back().champion == ONE


def test_a_failed_revision_of_what_serves_is_no_reason_to_stay(bench: Bench, roll_out: Callable[..., Entry]) -> None:
    roll_out(TWO, "promote", "promote")
    upgraded_by_hand(bench, "failed", TWO)  # as Helm 4 calls some rollbacks that work
    assert bench.driver.before_failure(MODEL) is None
    assert endpoint(bench).roll_back().champion == ONE


def test_a_condemned_one_is_taken_back_by_helms_own_rollback(bench: Bench, roll_out: Callable[..., Entry]) -> None:
    assert roll_out(TWO, "promote", "roll back").state == "ROLLED_BACK"
    assert bench.helm.deeds == [TO_CANARY, "rollback to 1, within 240 s"]
    assert f"{FULLNAME}-rollout" not in bench.api.names("configmaps")


def test_one_that_never_gets_ready_is_taken_back_with_its_own_words(
    bench: Bench, roll_out: Callable[..., Entry]
) -> None:
    bench.helm.broken = {2: NEVER_FETCHED}
    bench.helm.hangs = True

    def unhang(words: str, _: float) -> object:
        bench.helm.hangs = False
        return original(words, _)  # type: ignore[arg-type]

    original = bench.helm.rollback
    bench.helm.rollback = unhang  # type: ignore[assignment, method-assign]
    assert roll_out(TWO).state == "ROLLED_BACK"
    words = "version 2 did not come into service: fetch failed: the signature is of another key"
    assert bench.ledger.entries()[-2].words == words
    assert states(bench) == ["PENDING", "ROLLING_BACK", "ROLLED_BACK"]
    assert [one.status for one in bench.helm.history()] == ["superseded", "failed", "deployed"]


def test_an_upgrade_that_helm_calls_failed_is_not_tried_again(bench: Bench) -> None:
    bench.helm.failing = ["helm: UPGRADE FAILED: conflict with kubectl: .spec.replicas"]
    with pytest.raises(LoadFailed, match=r"^helm: UPGRADE FAILED: conflict with kubectl: \.spec\.replicas$"):
        reach(bench.driver, CANARY)
    assert bench.helm.deeds == [TO_CANARY]


def test_the_cause_that_pods_say_stands_before_what_helm_says(bench: Bench) -> None:
    bench.helm.broken = {2: starting(node=container("node", terminated={"exitCode": 2}))}
    bench.helm.failing = ["helm: context deadline exceeded"]
    with pytest.raises(LoadFailed, match=r"^node ended with exit code 2 \(helm: context deadline exceeded\)$"):
        reach(bench.driver, CANARY)


def test_a_rollback_that_helm_calls_failed_is_asked_for_up_to_three_times(bench: Bench) -> None:
    bench.canary_is_on()
    bench.helm.failing = ["helm: progress deadline exceeded"] * 2
    reach(bench.driver, BACK)
    assert bench.helm.deeds == ["rollback to 1, within 240 s"] * 3
    bench.canary_is_on()
    bench.helm.deeds.clear()
    bench.helm.failing = ["helm: progress deadline exceeded"] * 3
    with pytest.raises(LoadFailed, match="progress deadline exceeded"):
        reach(bench.driver, BACK)
    assert bench.helm.deeds == ["rollback to 5, within 240 s"] * 3


def test_pods_get_time_to_come_back_before_a_rollback_is_asked_for_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PODS_BACK_WITHIN_SECONDS", 60.0)
    bench.canary_is_on()
    bench.helm.broken = {1: LOADING}
    bench.helm.failing = ["helm: progress deadline exceeded"]
    found = bench.driver
    for _ in range(6):
        assert not found.reached(MODEL, BACK)
    assert len(bench.helm.deeds) == 1
    bench.helm.broken = {}
    bench.api.run(ONE)
    reach(found, BACK)
    assert len(bench.helm.deeds) == 2  # helm says now that it is deployed


def test_the_cluster_is_not_asked_at_every_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LOOK_SECONDS", 60.0)
    found = bench.driver
    assert not found.reached(MODEL, BACK)
    bench.api.asked.clear()
    assert not found.reached(MODEL, BACK)
    assert bench.api.asked == []


def test_an_api_server_that_was_away_costs_an_upgrade_no_attempt(bench: Bench) -> None:
    bench.helm.failing = ["helm: Kubernetes cluster unreachable: connection refused"] * 2
    reach(bench.driver, CANARY)
    assert bench.helm.deeds == [TO_CANARY] * 3


def test_what_is_there_already_costs_no_revision(bench: Bench) -> None:
    bench.canary_is_on(weight=25)
    reach(bench.driver, QUARTER)
    reach(bench.driver, CANARY)
    assert bench.helm.deeds == []


def test_a_canary_that_has_traffic_by_hand_loses_it_first(bench: Bench) -> None:
    bench.canary_is_on()
    bench.helm.made[-1].values["canary"]["weight"] = 30
    reach(bench.driver, CANARY)
    assert bench.helm.deeds == [TO_CANARY]
    assert bench.helm.own_values(3)["canary"]["weight"] == 0


def test_traffic_is_given_back_before_helm_goes_back_or_promotes(bench: Bench) -> None:
    for traffic in (BACK, PROMOTION):
        bench.canary_is_on(weight=25)
        found = bench.driver
        assert not found.reached(MODEL, traffic)
        assert f"{FULLNAME}-rollout" not in bench.api.names("configmaps")
        found.leave()


def test_a_share_waits_for_all_replicas_of_the_canary(bench: Bench) -> None:
    bench.canary_is_on()
    bench.api.add("deployments", deployment(TWO, canary=True, replicas=2))
    found = bench.driver
    for _ in range(4):
        assert not found.reached(MODEL, QUARTER)
    assert f"{FULLNAME}-rollout" not in bench.api.names("configmaps")
    bench.api.add("pods", pod("flights-2b", TWO, canary=True))
    reach(found, QUARTER)


def test_a_canary_that_fails_for_good_meanwhile_is_not_waited_for(bench: Bench) -> None:
    bench.canary_is_on()
    found = bench.driver
    reach(found, CANARY)
    bench.api.add("pods", pod("flights-2", TWO, canary=True, status=NEVER_FETCHED))
    with pytest.raises(LoadFailed, match="the signature is of another key"):
        reach(found, QUARTER)


def test_a_release_that_somebody_else_has_changed_meanwhile_is_left(bench: Bench) -> None:
    found = bench.driver
    reach(found, CANARY)
    bench.api.run(THREE)
    with pytest.raises(LoadFailed, match="somebody else has changed the release flights meanwhile"):
        found.reached(MODEL, CANARY)


@pytest.mark.parametrize(
    ("slow", "status", "words"),
    [
        ("10:05", LOADING, "version 2 is loading"),
        ("10:05", starting(), "no pod got ready within 360 s"),
        ("10:00", starting(), ""),  # it said so before, of something else
    ],
)
def test_an_upgrade_has_failed_when_kubernetes_gives_up_waiting(
    bench: Bench, slow: str, status: dict[str, object], words: str
) -> None:
    def given_up(at: str) -> dict[str, str]:
        return condition("Progressing", "False", reason="ProgressDeadlineExceeded", lastUpdateTime=at)

    bench.canary_is_on()
    bench.helm.made.pop()
    bench.api.add("deployments", deployment(TWO, canary=True, conditions=[given_up("10:00")]))
    if status is LOADING:
        bench.api.pages["flights-2:8082/readyz"] = "version 2 is loading"
    found = bench.driver
    assert not found.reached(MODEL, CANARY)
    assert bench.helm.deeds == [TO_CANARY]
    work = found._task.work if found._task else None
    assert work is not None
    bench.helm.hangs = True
    work.done = lambda: False  # type: ignore[method-assign] # the pods stay as they are made here
    bench.api.add("deployments", deployment(TWO, canary=True, conditions=[given_up(slow)]))
    bench.api.add("pods", pod("flights-2", TWO, canary=True, status=status))
    if not words:
        assert not found.reached(MODEL, CANARY)
        return
    with pytest.raises(LoadFailed, match=f"^{words}$"):
        found.reached(MODEL, CANARY)
    assert bench.helm.made[-1].status == "failed"  # helm was ended


def test_leaving_ends_helm(bench: Bench) -> None:
    bench.helm.hangs = True
    found = bench.driver
    found.reached(MODEL, CANARY)
    assert bench.helm.made[-1].status == "pending-upgrade"
    found.leave()
    assert bench.helm.made[-1].status == "failed"
    found.leave()


def test_another_aim_ends_the_helm_of_the_last(bench: Bench) -> None:
    bench.helm.hangs = True
    found = bench.driver
    found.reached(MODEL, CANARY)
    bench.helm.hangs = False
    reach(found, BACK)
    assert [one.status for one in bench.helm.history()] == ["superseded", "failed", "deployed"]


def test_a_helm_of_somebody_else_is_taken_over_with_consent_alone(bench: Bench) -> None:
    bench.helm.add("pending-upgrade", values(THREE))
    with pytest.raises(ReleasePending, match="the release flights is pending-upgrade"):
        reach(bench.driver, BACK)
    assert bench.helm.deeds == []
    assert "is pending-upgrade since 2026-11-24" in bench.asked[0]
    assert "revision 2: another helm is at work on it, or was killed" in bench.asked[0]
    bench.consents = True
    reach(bench.driver, BACK)
    assert bench.helm.deeds == ["rollback to 1, within 240 s"]


def test_somebody_elses_helm_that_ends_by_itself_is_not_asked_about(bench: Bench) -> None:
    bench.helm.add("pending-upgrade", values(THREE))
    found = bench.driver
    assert not found.reached(MODEL, BACK)
    bench.helm.made[-1].status = "failed"
    reach(found, BACK)
    assert bench.asked == []


def test_our_own_that_was_killed_is_cleared_unasked(bench: Bench) -> None:
    found = bench.driver
    bench.helm.hangs = True
    found.reached(MODEL, CANARY)
    found.leave()
    bench.helm.made[-1].status = "pending-upgrade"  # SIGKILL
    bench.helm.hangs = False
    reach(found, BACK)
    assert (bench.asked, bench.helm.deeds) == ([], [TO_CANARY, "rollback to 1, within 240 s"])


def test_a_release_that_was_never_installed_cannot_be_mended(bench: Bench) -> None:
    bench.helm.made[0].status = "pending-install"
    bench.consents = True
    with pytest.raises(ReleaseUnsuited, match=r"was never installed to the end; .* helm uninstall flights"):
        reach(bench.driver, CANARY)


def test_taking_out_of_service_is_refused_before_anything_is_written(bench: Bench) -> None:
    found = endpoint(bench)
    for _ in range(2):
        with pytest.raises(ReleaseUnsuited, match=r"always serves a version; .* helm uninstall flights"):
            found.withdraw()
        assert states(bench) == []


@pytest.mark.parametrize(("largest", "weights"), [(100, [25, 50, 100]), (50, [25, 50]), (49, [25]), (25, [25])])
def test_steps_above_what_the_replicas_can_take_are_skipped(bench: Bench, largest: int, weights: list[int]) -> None:
    bench.helm.made[0].values["maxCanaryShare"] = largest
    assert [step.weight for step in bench.driver.feasible(STEPS)] == weights


def test_where_no_step_is_left_the_release_is_unsuited(bench: Bench) -> None:
    bench.helm.made[0].values["maxCanaryShare"] = 24
    shadow = STEPS[0].model_copy(update={"weight": 0, "mirror": 10})
    with pytest.raises(ReleaseUnsuited, match=r"gives a canary at most 24% of the requests \(maxCanaryShare\)"):
        bench.driver.feasible((shadow, *STEPS))
    bench.helm.made[0].values["maxCanaryShare"] = 25
    assert bench.driver.feasible((shadow, *STEPS)) == (shadow, STEPS[0])


def test_a_pending_release_or_another_chart_takes_no_rollout(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.helm.add("pending-rollback", values(ONE))
    with pytest.raises(ReleasePending, match="is pending-rollback"):
        bench.driver.feasible(STEPS)
    bench.helm.made.pop()
    monkeypatch.setattr(bench.helm, "chart", lambda _: "shipway-9.9.9")
    with pytest.raises(ReleaseUnsuited, match=rf"is of the chart {CHART}, and shipway-9\.9\.9 is here"):
        bench.driver.feasible(STEPS)


def test_what_serves_is_what_the_deployments_say(bench: Bench) -> None:
    assert bench.driver.serving(MODEL) == Serving(champion=ONE)
    bench.canary_is_on()
    assert bench.driver.serving(MODEL) == Serving(champion=ONE, others=(TWO,))
    bench.api.run(ONE, TWO, broken={1: LOADING, 2: LOADING})
    bench.api.pages["flights-2:8082/readyz"] = "version 2 is loading"
    # A canary that is on its way was not lost.
    assert bench.driver.serving(MODEL).unready == {1: "no pod is ready"}
    lost = {**serving(ready=False), "conditions": [condition("Ready", "False")]}
    bench.api.run(ONE, TWO, broken={2: lost})
    bench.api.pages["flights-2:8082/readyz"] = "its worker has ended"
    assert bench.driver.serving(MODEL).unready == {2: "its worker has ended"}


def test_another_model_is_not_ours(bench: Bench) -> None:
    for ask in (bench.driver.serving, lambda model: bench.driver.reached(model, BACK)):
        with pytest.raises(ReleaseServesOther, match="serves the model flights, and not topics"):
            ask("topics")


def test_patience_is_for_every_attempt(bench: Bench) -> None:
    assert bench.driver.patience_seconds == 3 * 240 + 60
