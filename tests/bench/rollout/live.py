"""Five versions on a live endpoint under locust: does each get its verdict, every time, and soon?"""

from collections.abc import Iterator

import numpy as np
from rich.console import Console

from deploy.drill.drill import SUFFIX, Range, prepared
from deploy.drill.exercises import Outcome
from deploy.programs import SCRAPE_INTERVAL_SECONDS
from deploy.rollout import statistics
from tests.bench.findings import Finding
from tests.bench.rollout.ground import MODEL, Ground
from tests.bench.rollout.load import locust

KINDS = ("good", "slow", "erring", "resetting", "changed")
RATE = 60.0
"""Requests a second by locust, and as many by the drill's own users, who note what became of each."""
USERS = 8
REPETITIONS, DECISIONS = 20, 5
DECIDED_WITHIN_SECONDS = 2 * SCRAPE_INTERVAL_SECONDS


def live(ground: Ground, console: Console, repetitions: int = REPETITIONS) -> Iterator[Finding]:
    settings = ground.settings
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    with prepared(settings, MODEL, KINDS, RATE, lambda *_: None) as place:
        with locust(
            settings.state_dir / "bench", MODEL + SUFFIX, settings.grpc_target, ground.rows, users=USERS, rate=RATE
        ):
            for _ in range(repetitions):
                for kind in KINDS:
                    outcomes[kind].append(outcome := place.exercise(kind))
                    words = (
                        "; ".join(outcome.problems) or f"{outcome.entry.state}, {', '.join(outcome.because) or 'ok'}"
                    )
                    console.log(f"{kind}: {words}, after {outcome.seconds:.0f} s", markup=False)
        for kind, found in outcomes.items():
            right = sum(not outcome.problems for outcome in found)
            seconds = [outcome.seconds for outcome in found]
            spread = (min(seconds), max(seconds))
            yield Finding(f"{kind}: right verdicts of {repetitions}", right, "rollouts", bar=repetitions)
            yield Finding(f"   until its end, {kind}", float(np.median(seconds)), "s", spread=spread)
        # Without locust, of whose requests nobody here knows when each was answered.
        decisions = [_decided_after_seconds(place) for _ in range(min(DECISIONS, repetitions))]
    name = "from the request that decides to the decision, the slowest"
    yield Finding(name, max(decisions), "s", bar=DECIDED_WITHIN_SECONDS, at_most=True)


def _decided_after_seconds(place: Range) -> float:
    """How long after the answer with which Wald's test fails an erring version is rolled back."""
    policy, outcome = place.policy, place.exercise("erring")
    if outcome.problems:
        raise RuntimeError(f"an erring version was not found out: {'; '.join(outcome.problems)}")
    entries = [one for one in place.endpoint.ledger.entries() if one.rollout == outcome.entry.rollout]
    begun, decided = (next(one.at for one in entries if one.state == state) for state in ("JUDGING", "ROLLING_BACK"))
    candidate = outcome.entry.candidate
    answers = sorted(
        (one.at + one.seconds, one.status != 200)
        for one in place.load.seen(begun)
        if candidate and one.version == candidate.version
    )
    test = statistics.sequential(
        np.cumsum([failed for _, failed in answers]), np.arange(1, len(answers) + 1), 0, 0,
        p0=policy.errors.p0, p1=policy.errors.p1,
        false_alarm=statistics.step_false_alarm(policy.false_alarm, 0), missed=policy.missed,
    )  # fmt: skip
    if not test.failed.any():
        raise RuntimeError(f"errors did not decide: {'; '.join(outcome.because)}")
    return decided - answers[int(np.argmax(test.failed))][0]
