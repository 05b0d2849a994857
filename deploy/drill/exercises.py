"""What a drill expects of each kind of bad version, and what it finds. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.rollout.machine import traffic
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, State, Verdict

EXPECTED: Mapping[str, State] = {
    "good": "PROMOTED",
    "slow": "ROLLED_BACK",
    "erring": "ROLLED_BACK",
    "refusing": "ROLLED_BACK",
    "resetting": "ROLLED_BACK",
    "dying": "ROLLED_BACK",
    "leaking": "ROLLED_BACK",
    "changed": "HELD",
    "wrong": "ROLLED_BACK",
}
"""By kind, how its rollout must end."""
CHANCE_Z = 4.0
"""Standard deviations by which the candidate's share of the requests may be above its weight by chance."""
SETTLE_SECONDS = 1.0
"""From a request's beginning until its version was chosen."""


@dataclass(frozen=True)
class Seen:
    """One request as its user saw it."""

    at: float
    """When it was sent, a Unix time."""
    seconds: float
    version: int | None
    """That answered; None where nobody said."""
    status: int
    """0 for no answer at all."""


@dataclass(frozen=True)
class Harm:
    """What the users saw since the candidate got its first requests."""

    requests: int
    candidate: int
    """Answered by the candidate."""
    allowed: int
    """As many as the weights, and chance, may have sent there."""
    failed: int
    """Got no answer, or another status than 200."""
    failed_elsewhere: int
    """Of those: not by the candidate."""


@dataclass(frozen=True)
class Outcome:
    """One exercise."""

    kind: str
    expected: State
    entry: Entry
    """Of the ledger, in which the rollout ended or was held."""
    verdict: Verdict | None
    """Its last one; none where it never came to one."""
    harm: Harm
    seconds: float
    """From the rollout's beginning to its verdict."""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        harm = {**asdict(self.harm), "problems": self.problems}
        return {
            "kind": self.kind,
            "expected": self.expected,
            "seconds": self.seconds,
            **harm,
            "entry": self.entry.model_dump(),
        }

    @property
    def because(self) -> list[str]:
        """Checks that failed in the newest verdict of the rollout."""
        return [check.name for check in self.verdict.checks if check.state == "failed"] if self.verdict else []

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, in words."""
        found, harm = [], self.harm
        if self.entry.state != self.expected:
            found.append(f"it is {self.entry.state} and should be {self.expected}: {self.entry.words}")
        if harm.candidate > harm.allowed:
            share = f"at most {harm.allowed} were its share"
            found.append(f"it answered {harm.candidate} of {harm.requests} requests; {share}")
        if harm.failed_elsewhere:
            found.append(f"{harm.failed_elsewhere} requests failed that were not the candidate's")
        if not harm.requests:
            found.append("no user asked while it was on, so nothing was shown")
        return found


def expected(kind: str, policy: Policy) -> State:
    """How the rollout of this kind must end under this policy."""
    return "ROLLED_BACK" if kind == "changed" and policy.on_prediction_change == "roll back" else EXPECTED[kind]


def harm(seen: Sequence[Seen], entries: Sequence[Entry], policy: Policy) -> Harm:
    """What the users saw of one rollout; `entries` are its own, `seen` at least all that was asked since its canary."""
    begun = [entry for entry in entries if entry.state == "CANARY"]
    seen = [one for one in seen if begun and one.at >= begun[0].at]
    candidate = entries[0].candidate
    version = candidate.version if candidate else None
    weights = [(entry.at, traffic(entry, policy.steps).weight) for entry in begun]
    # Weights rise, and a request may meet the next one within a moment.
    shares = [_weight(weights, one.at + SETTLE_SECONDS) / 100 for one in seen]
    spread = math.sqrt(sum(share * (1 - share) for share in shares))
    failed = [one for one in seen if one.status != 200]
    return Harm(
        requests=len(seen),
        candidate=sum(one.version == version for one in seen),
        allowed=math.ceil(sum(shares) + CHANCE_Z * spread),
        failed=len(failed),
        failed_elsewhere=sum(one.version != version for one in failed),
    )


def _weight(weights: Sequence[tuple[float, int]], at: float) -> int:
    return next((weight for since, weight in reversed(weights) if since <= at), 0)
