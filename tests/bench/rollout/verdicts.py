"""Whole rollouts through `judge`, scrape by scrape: versions that are good, and bad in every way that a node counts.

Latencies come in batches that wait together, predictions in runs of one client's equal rows, and workers warm up: what
real traffic does to a test that believes in independent requests.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.rollout.evidence import Counted, Evidence, Version
from deploy.rollout.gate import judge
from deploy.rollout.policy import Policy
from deploy.rollout.samples import dispersion
from deploy.traffic import Counts
from monitoring.drift import wilson_interval
from monitoring.names import LATENCY_BUCKETS_SECONDS
from tests.bench.findings import Finding

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

ROLLOUTS = 300
SCRAPE_SECONDS = 5
REQUESTS_A_SCRAPE = 200
BATCH, RUN = 4, 3
"""Requests with one latency, and rows with one prediction."""
BOUNDS = (*LATENCY_BUCKETS_SECONDS, float("inf"))


@dataclass(frozen=True)
class Behaviour:
    """What a version does; by default what the champion does."""

    name: str
    verdict: str
    errors: float = 0.005
    lost: float = 0.0
    refused: float = 0.02
    latency_factor: float = 1.0
    classes: tuple[float, ...] = (0.5, 0.3, 0.2)
    leak_bytes_per_second: float = 0.0


CHAMPION = Behaviour("good", "promote")
CANDIDATES = (
    CHAMPION,
    Behaviour("answers 10% slower", "promote", latency_factor=1.1),
    Behaviour("classes moved by 2 points", "promote", classes=(0.52, 0.29, 0.19)),
    Behaviour("answers 5 times slower", "roll back", latency_factor=5),
    Behaviour("5% errors", "roll back", errors=0.05),
    Behaviour("loses 5%", "roll back", lost=0.05),
    Behaviour("refuses 8% more", "roll back", refused=0.1),
    Behaviour("leaks 5 MB/s", "roll back", leak_bytes_per_second=5e6),
    Behaviour("classes moved by 20 points", "hold", classes=(0.3, 0.5, 0.2)),
)


def verdicts(seed: int, rollouts: int = ROLLOUTS) -> Iterator[Finding]:
    for behaviour in CANDIDATES:
        random = np.random.default_rng([seed, CANDIDATES.index(behaviour)])
        ends = [_ended(random, behaviour) for _ in range(rollouts)]
        right = sum(verdict == behaviour.verdict for verdict, _ in ends)
        low, high = wilson_interval(right, rollouts, 1.96)
        yield Finding(
            f"{behaviour.name}: {behaviour.verdict}", 100 * right / rollouts, "%", 95,
            spread=(100 * float(low), 100 * float(high)),
        )  # fmt: skip
        seconds = [time for verdict, time in ends if verdict == behaviour.verdict]
        if seconds:
            early, middle, late = np.quantile(seconds, (0.05, 0.5, 0.95))
            spread = (float(early), float(late))
            yield Finding(f"   seconds until then, {behaviour.name}", float(middle), "s", spread=spread)


def _ended(random: np.random.Generator, behaviour: Behaviour) -> tuple[str, float]:
    """The first verdict that ends the rollout, and when."""
    policy, at, step, step_since = Policy(), 0.0, 0, 0.0
    champion, candidate = _Watched(CHAMPION, 1), _Watched(behaviour, 2)
    while True:
        at += SCRAPE_SECONDS
        requests = int(random.binomial(REQUESTS_A_SCRAPE, policy.steps[step].weight / 100))
        champion.scrape(random, REQUESTS_A_SCRAPE - requests, at)
        candidate.scrape(random, requests, at)
        evidence = Evidence(
            champion.version(at), candidate.version(at), 0, step_since, at, champion.latency_dispersion(), {}
        )
        found = judge(policy, step, evidence, step_since=step_since, at=at, lost_readiness="")
        last = step == len(policy.steps) - 1
        if found.outcome == "promote" and not last:
            step, step_since = step + 1, at
            champion.begin_step()
            candidate.begin_step()
        elif found.outcome != "wait":
            return found.outcome, at


class _Watched:
    """What a node has counted of one version."""

    def __init__(self, behaviour: Behaviour, number: int) -> None:
        self._behaviour = behaviour
        self._number = number
        self._bad = np.zeros(3, dtype=np.int64)
        self._latencies: list[Ints] = [np.zeros(len(BOUNDS), dtype=np.int64)]
        self._classes: list[Ints] = [np.zeros(len(CHAMPION.classes) + 1, dtype=np.int64)]
        self._memory: list[tuple[float, float]] = []
        self.begin_step()

    def begin_step(self) -> None:
        self._before = (self._bad.copy(), np.array(self._latencies).sum(axis=0))

    def scrape(self, random: np.random.Generator, requests: int, at: float) -> None:
        behaviour = self._behaviour
        lost = random.binomial(requests, behaviour.lost)
        answered = requests - lost
        self._bad += (random.binomial(answered, behaviour.errors), lost, random.binomial(answered, behaviour.refused))
        batches = random.lognormal(np.log(0.008), 0.8, -(-answered // BATCH)) * behaviour.latency_factor
        seconds = np.repeat(batches, BATCH)[:answered]
        self._latencies.append(np.bincount(np.searchsorted(BOUNDS, seconds), minlength=len(BOUNDS)))
        rows = np.repeat(random.choice(len(behaviour.classes), -(-answered // RUN), p=behaviour.classes), RUN)
        self._classes.append(np.bincount(rows[:answered], minlength=len(behaviour.classes) + 1))
        warm = 2e8 * (1 - np.exp(-at / 20)) if self._number == 2 else 2e8
        self._memory.append((at, 8e8 + warm + behaviour.leak_bytes_per_second * at + random.normal(0, 2e6)))

    def version(self, at: float) -> Version:
        bad, latencies = self._before
        times, resident = np.array(self._memory).T
        classes = np.array(self._classes)
        labels = (*map(str, range(len(CHAMPION.classes))), "missing")
        counts = Counts(
            "class", "prediction", labels, np.ones(len(labels)), classes.sum(axis=0)[np.newaxis], dispersion(classes)
        )
        now = np.array(self._latencies).sum(axis=0)
        return Version(
            version=self._number, canary=_counted(self._bad, now), step=_counted(self._bad - bad, now - latencies),
            shadow=_counted(np.zeros(3, dtype=np.int64), np.zeros(len(BOUNDS), dtype=np.int64)), seen=at, restarts=0,
            memory=((times, resident),), agreed=0, disagreed=0, confusion={}, features=(counts,), edges={},
        )  # fmt: skip

    def latency_dispersion(self) -> float:
        return dispersion(self._latencies)


def _counted(bad: Ints, latencies: Ints) -> Counted:
    answered = int(latencies.sum())
    seconds = dict(zip(BOUNDS, latencies.cumsum().tolist(), strict=True))
    errors, lost, refused = bad.tolist()
    return Counted(answered=answered, failed=errors, lost=lost, refused=refused, seconds=seconds)
