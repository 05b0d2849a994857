"""A node that does what desired.json asks, a judge that says what it is told, and processes that can be killed."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.node.desired import (
    Actual,
    ActualEndpoint,
    ActualVersion,
    DesiredEndpoint,
    DesiredVersion,
    State,
    read_desired,
    write_state,
)
from deploy.rollout.driver import Local, Serving
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.interrupts import Wish
from deploy.rollout.ledger import Ledger
from deploy.rollout.machine import Traffic
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Outcome, Release, Step, Verdict

MODEL = "flights"
ONE, TWO, THREE = (Release(version=version, digest=f"sha256:{version:064x}") for version in (1, 2, 3))
POLICY = Policy(steps=tuple(Step(weight=weight, seconds=1, requests=1, give_up_seconds=60) for weight in (5, 50, 100)))


class Killed(BaseException):
    """SIGKILL: nothing after it runs."""


def verdict(outcome: Outcome, step: int = 0) -> Verdict:
    return Verdict(outcome=outcome, words=f"the judge says {outcome}", checks=(), step=step, since=0.0, at=1.0)


@dataclass
class Bench:
    """One endpoint's files, and the processes that work on it one after the other."""

    directory: Path
    verdicts: dict[int, Sequence[Outcome]] = field(default_factory=dict)
    """By step, what the judge says one after the other; the last again and again. `promote` where nothing stands."""
    broken: dict[int, str] = field(default_factory=dict)
    """Versions that do not load, and why."""
    unready: dict[int, str] = field(default_factory=dict)
    """Versions that were loaded and lost their workers, and why; no reason for one that is being loaded."""
    breaking: tuple[str, ...] = ()
    """What would break the champion's clients."""
    wishes: list[Wish] = field(default_factory=list)
    """What the person wants, look by look."""
    kill_at: int | None = None
    """The number of the operation in which the process is killed."""
    operations: list[str] = field(default_factory=list)
    told: list[Entry] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    """Why the candidate is not ready, as the judge was told."""
    routed: dict[str, DesiredEndpoint] = field(default_factory=dict)
    largest_share: int = 100
    """Of the requests, that a candidate may get."""
    left: int = 0
    """How often the driver was told to stop working."""
    meanwhile: Callable[[str], None] = lambda _: None
    """Called at every operation: what happens elsewhere."""

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.directory / "rollouts", MODEL)

    @property
    def endpoint(self) -> Endpoint:
        """A new process's view of the endpoint."""
        return Endpoint(
            model=MODEL,
            ledger=self.ledger,
            driver=_Driver(self),
            locks_dir=self.directory / "rollouts",
            packaged=lambda version: {1: ONE, 2: TWO, 3: THREE}[version],
            read_policy=lambda: POLICY,
            judging=lambda _: self.judge,
            breaking=self.breaks,
            tell=lambda entry, found, _: self.tell(entry, found),
            wish=lambda: self.wishes.pop(0) if self.wishes else "",
        )

    @property
    def states(self) -> list[str]:
        return [entry.state or entry.kind for entry in self.ledger.entries()]

    def weights(self) -> dict[int, int]:
        """Of the versions that are asked for."""
        found = self.desired()
        return {one.version: one.weight for one in found.versions} if found else {}

    def desired(self) -> DesiredEndpoint | None:
        return read_desired(self.directory / "desired.json").endpoint(MODEL)

    def operation(self, name: str) -> None:
        self.operations.append(name)
        if len(self.operations) == self.kill_at:
            raise Killed(name)
        self.meanwhile(name)

    def tell(self, entry: Entry, found: Verdict | None) -> None:
        self.operation(f"tell {entry.state}")
        if found is None:
            self.told.append(entry)

    def judge(self, entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        assert canary_since <= entry.at <= at
        self.operation("judge")
        self.heard.append(lost_readiness)
        step = entry.step or 0
        left = list(self.verdicts.get(step, ["promote"]))
        self.verdicts[step] = left[1:] or left
        return verdict(left[0], step)

    def breaks(self, champion: Release, candidate: Release) -> tuple[str, ...]:
        self.meanwhile(f"breaks {champion.version} {candidate.version}")
        return self.breaking

    def node(self) -> None:
        """What a node does when it looks at desired.json."""
        desired = read_desired(self.directory / "desired.json")
        for endpoint in desired.endpoints:
            if not any(one.version in self.broken for one in endpoint.versions if one.weight):
                loaded = tuple(one for one in endpoint.versions if one.version not in self.broken)
                self.routed[endpoint.model] = endpoint.model_copy(update={"versions": loaded})
        actual = tuple(self._actual(endpoint) for endpoint in desired.endpoints)
        write_state(self.directory / "actual.json", Actual(pid=os.getpid(), ready=True, endpoints=actual))

    def _actual(self, desired: DesiredEndpoint) -> ActualEndpoint:
        routed = self.routed.get(desired.model)
        in_force = {one.version: one.weight for one in routed.versions} if routed else {}
        return ActualEndpoint(
            model=desired.model,
            versions=tuple(self._version(one, in_force.get(one.version, 0)) for one in desired.versions),
            fallback=routed.fallback if routed else None,
            mirror=routed.mirror if routed else None,
        )

    def _version(self, desired: DesiredVersion, weight: int) -> ActualVersion:
        reason = self.broken.get(desired.version, "") or self.unready.get(desired.version, "")
        loading = desired.version in self.unready
        state: State = "FAILED" if desired.version in self.broken else "LOADING" if loading else "READY"
        return ActualVersion(version=desired.version, digest=desired.digest, weight=weight, state=state, reason=reason)


@dataclass
class _Driver:
    """The real one, whose process may be killed before and after all that it does."""

    bench: Bench

    def __post_init__(self) -> None:
        directory = self.bench.directory
        self._local = Local(directory / "desired.json", directory / "actual.json")

    patience_seconds = Local.patience_seconds

    def feasible(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(step for step in steps if step.weight <= self.bench.largest_share)

    def leave(self) -> None:
        self.bench.left += 1

    def serving(self, model: str) -> Serving:
        self.bench.node()
        return self._local.serving(model)

    def before_failure(self, model: str) -> Release | None:
        return self._local.before_failure(model)

    def ask(self, model: str, traffic: Traffic) -> None:
        self.bench.operation("ask")
        self._local.ask(model, traffic)
        self.bench.operation("asked")

    def reached(self, model: str, traffic: Traffic) -> bool:
        self.bench.operation("reached")
        found = self._local.reached(model, traffic)  # before the node has looked, as it is with a real one
        self.bench.node()
        return found
