"""The gate, fed request by request over whole rollouts of the default policy: ten thousand of each kind of canary.

What is simulated is errors and slow answers, and after every single request of the canary the gate's own tests are
asked. The gate as it serves looks once a scrape: fewer looks, fewer false alarms. Of every kind some rollouts are
replayed through `judge` itself, which must say the same at every request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.rollout import statistics
from deploy.rollout.evidence import Counted, Evidence, Version
from deploy.rollout.gate import judge
from deploy.rollout.policy import Policy, Rate
from monitoring.drift import wilson_interval
from tests.bench.findings import Finding

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROLLOUTS = 10_000
TOGETHER = 1_000
"""Rollouts simulated at once."""
BLOCK = 200
"""Requests of the canary simulated at once."""
MOST_REQUESTS = 4_000
"""Of the canary in one step; what is undecided then is held, as if the step's time were over."""
REPLAYED = 5
WINDOW = 60
"""Requests in a minute of the canary, for the rule that others have."""
ENDS = ("promote", "roll back", "hold")
ERRORS, SLOW, REQUESTS, CHAMPION_ERRORS, CHAMPION_SLOW, CHAMPION_REQUESTS = range(6)
"""Places in an array of counts [6, rollouts, requests]."""


class GateDiffers(Exception):
    """The simulation did not do what the gate says; its figures would be of something else."""


@dataclass(frozen=True)
class Canary:
    errors: float
    slow: float = 0.002
    champion_errors: float = 0.005

    @property
    def name(self) -> str:
        return f"{self.errors:.1%} errors, champion {self.champion_errors:.1%}"


@dataclass(frozen=True, eq=False)
class Ended:
    """How simulated rollouts ended, [rollouts]."""

    outcome: Ints
    """Place in ENDS."""
    requests: Ints
    """Of the canary, until then."""

    def share(self, outcome: str) -> float:
        return float((self.outcome == ENDS.index(outcome)).mean())

    def interval(self, outcome: str) -> tuple[float, float]:
        """Of that share, at 95% (Wilson)."""
        low, high = wilson_interval((self.outcome == ENDS.index(outcome)).sum(), len(self.outcome), 1.96)
        return float(low), float(high)


def gate(seed: int, rollouts: int = ROLLOUTS) -> Iterator[Finding]:
    policy = Policy()
    healthy, worse, broken, same = Canary(0.005), Canary(0.02), Canary(0.1), Canary(0.03, champion_errors=0.03)
    found = {each: simulated(policy, each, seed, rollouts) for each in (healthy, worse, broken, same)}
    yield _share(healthy, found[healthy], "roll back", 0.001, at_most=True)
    yield _share(healthy, found[healthy], "promote", 0.95)
    promoted = found[healthy].requests[found[healthy].outcome == ENDS.index("promote")]
    yield _requests(f"requests of the canary until promotion, {healthy.name}", promoted)
    yield _share(worse, found[worse], "promote", 0.05, at_most=True)
    yield _share(worse, found[worse], "roll back", 0.85)
    caught = found[broken].requests[found[broken].outcome == ENDS.index("roll back")]
    yield _share(broken, found[broken], "roll back", 0.99)
    yield _requests(f"requests of the canary until taken back, {broken.name}", caught, 40)
    yield _share(same, found[same], "roll back", 0.05, at_most=True)
    yield _share(same, found[same], "promote", 0.8)
    yield from _fixed_threshold(np.random.default_rng([seed, 0]), (healthy, worse, broken), rollouts)


def simulated(policy: Policy, canary: Canary, seed: int, rollouts: int) -> Ended:
    """Rollouts of one kind; raises GateDiffers where `judge` says something else of one of the first."""
    random = np.random.default_rng([seed, round(1e4 * canary.errors), round(1e4 * canary.champion_errors)])
    parts = [
        _together(policy, canary, random, min(TOGETHER, rollouts - at), REPLAYED if at == 0 else 0)
        for at in range(0, rollouts, TOGETHER)
    ]
    return Ended(
        np.concatenate([part.outcome for part in parts]), np.concatenate([part.requests for part in parts])
    )  # fmt: skip


def _together(policy: Policy, canary: Canary, random: np.random.Generator, rollouts: int, replayed: int) -> Ended:
    outcome = np.full(rollouts, ENDS.index("hold"))
    totals = np.zeros((6, rollouts, 1), dtype=np.int64)
    going = np.arange(rollouts)
    for step in range(len(policy.steps)):
        began, waiting, passed = totals.copy(), going, []
        for _ in range(MOST_REQUESTS // BLOCK):
            counts = totals[:, waiting] + _requests_of(canary, policy.steps[step].weight, random, len(waiting))
            failed, done = decide(policy, step, counts, counts - began[:, waiting])
            ended = failed | done
            first = waiting < replayed
            _replay(policy, step, counts[:, first], began[:, waiting[first]], failed[first], done[first])
            last = np.where(ended.any(axis=1), ended.argmax(axis=1), BLOCK - 1)
            rows = np.arange(len(waiting))
            totals[:, waiting, 0] = counts[:, rows, last]
            outcome[waiting[failed[rows, last]]] = ENDS.index("roll back")
            passed.append(waiting[done[rows, last] & ~failed[rows, last]])
            waiting = waiting[~ended.any(axis=1)]
            if not len(waiting):
                break
        going = np.concatenate(passed)
    outcome[going] = ENDS.index("promote")
    return Ended(outcome, totals[REQUESTS, :, 0])


def _requests_of(canary: Canary, weight: int, random: np.random.Generator, rollouts: int) -> Ints:
    """Counts after each of the canary's next requests, with those of the champion that came before it."""
    shape = (rollouts, BLOCK)
    champion = random.geometric(weight / 100, shape) - 1
    counts = np.empty((6, *shape), dtype=np.int64)
    counts[ERRORS], counts[SLOW] = random.random(shape) < canary.errors, random.random(shape) < canary.slow
    counts[REQUESTS], counts[CHAMPION_REQUESTS] = 1, champion
    counts[CHAMPION_ERRORS] = random.binomial(champion, canary.champion_errors)
    counts[CHAMPION_SLOW] = random.binomial(champion, canary.slow)
    return counts.cumsum(axis=2)


def decide(policy: Policy, step: int, counts: Ints, in_step: Ints) -> tuple[Bools, Bools]:
    """Whether the gate takes back, and whether it lets go on, after each request: [rollouts, requests]."""
    enough = in_step[REQUESTS] >= policy.steps[step].requests
    failed, done = np.zeros_like(enough), enough
    false_alarm = statistics.step_false_alarm(policy.false_alarm, step)
    limits: Sequence[tuple[int, int, Rate]] = (
        (ERRORS, CHAMPION_ERRORS, policy.errors), (SLOW, CHAMPION_SLOW, policy.slow),
    )  # fmt: skip
    for bad, champion, rate in limits:
        of_champion = (counts[champion], counts[CHAMPION_REQUESTS])
        test = statistics.sequential(
            in_step[bad], in_step[REQUESTS], *of_champion,
            p0=rate.p0, p1=rate.p1, false_alarm=false_alarm, missed=policy.missed,
        )  # fmt: skip
        compared = statistics.compared(
            counts[bad], counts[REQUESTS], *of_champion,
            margin=rate.margin, z=policy.z, confidence_z=policy.confidence_z,
        )  # fmt: skip
        failed = failed | test.failed | compared.failed
        done = done & test.passed & (compared.passed | (step < len(policy.steps) - 1))
    return failed, done & ~failed


def _replay(policy: Policy, step: int, counts: Ints, began: Ints, failed: Bools, done: Bools) -> None:
    """Compare with `judge` after each of these requests, up to where a rollout's step ends."""
    for row in range(counts.shape[1]):
        for request in range(BLOCK):
            verdict = judge(
                policy, step, evidence(counts[:, row, request], counts[:, row, request] - began[:, row, 0]),
                step_since=0, at=1000, lost_readiness="",
            )  # fmt: skip
            ours = "roll back" if failed[row, request] else "promote" if done[row, request] else "wait"
            if verdict.outcome != ours:
                raise GateDiffers(f"step {step}, request {request}: simulated {ours}, the gate: {verdict}")
            if ours != "wait":
                break


def evidence(counts: Ints, in_step: Ints) -> Evidence:
    """Counts [6] as the gate gets them: all is well but for what is simulated."""
    times = np.arange(0.0, 1000.0, 5.0)

    def version(number: int, place: int) -> Version:
        return Version(
            version=number, canary=_counted(counts[place : place + 3]), step=_counted(in_step[place : place + 3]),
            shadow=_counted(np.zeros(3, dtype=np.int64)), seen=1000, restarts=0,
            memory=((times, np.full_like(times, 1e9)),), agreed=0, disagreed=0, confusion={}, features=(), edges={},
        )  # fmt: skip

    return Evidence(
        champion=version(1, CHAMPION_ERRORS), candidate=version(2, ERRORS),
        canary_since=0, step_since=0, at=1000, latency_dispersion=1, queries={},
    )  # fmt: skip


def _counted(counts: Ints) -> Counted:
    errors, slow, requests = counts.tolist()
    seconds = {0.05: requests - slow, 0.1: requests - slow, 0.25: requests - slow, float("inf"): requests}
    return Counted(answered=requests, failed=errors, lost=0, refused=0, seconds=seconds)


def _fixed_threshold(random: np.random.Generator, canaries: Sequence[Canary], rollouts: int) -> Iterator[Finding]:
    """What a threshold on each minute's share does: more than 1% of its requests failed takes back."""
    minutes = sum(step.requests for step in Policy().steps) // WINDOW
    for canary in canaries:
        over = random.binomial(WINDOW, canary.errors, (rollouts, minutes)) > 0.01 * WINDOW
        back = over.any(axis=1)
        name = f"   a threshold of 1% on every {WINDOW} requests, {canary.name}"
        yield Finding(f"{name}: rolled back", 100 * float(back.mean()), "%")
        yield _requests(f"{name}: requests until then", (over.argmax(axis=1)[back] + 1) * WINDOW)


def _share(canary: Canary, found: Ended, outcome: str, bar: float | None = None, *, at_most: bool = False) -> Finding:
    low, high = found.interval(outcome)
    return Finding(
        f"{outcome}, {canary.name}", 100 * found.share(outcome), "%", None if bar is None else 100 * bar,
        at_most=at_most, spread=(100 * low, 100 * high),
    )  # fmt: skip


def _requests(name: str, requests: Ints, bar: float | None = None) -> Finding:
    """The median, and nine of ten."""
    if not len(requests):
        return Finding(name, float("nan"), "requests", bar, at_most=True)
    low, middle, high = np.quantile(requests, (0.05, 0.5, 0.95))
    return Finding(name, float(middle), "requests", bar, at_most=True, spread=(float(low), float(high)))
