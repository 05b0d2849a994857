"""What the gate looks at: one step of a policy, and the evidence for it."""

from typing import NamedTuple

import numpy as np

from deploy.rollout.evidence import Counted, Evidence
from deploy.rollout.policy import Policy
from deploy.rollout.record import CheckState
from deploy.rollout.statistics import Compared
from monitoring import names


class Look(NamedTuple):
    """What is judged: which step, and the evidence for it."""

    policy: Policy
    step: int
    evidence: Evidence

    @property
    def mirrors(self) -> bool:
        """Whether the step gives the candidate no requests but copies."""
        return self.policy.steps[self.step].weight == 0

    @property
    def candidate(self) -> Counted:
        """The candidate's requests since the canary began."""
        return self.evidence.candidate.shadow if self.mirrors else self.evidence.candidate.canary

    @property
    def champion(self) -> Counted:
        return self.evidence.champion.step if self.mirrors else self.evidence.champion.canary

    @property
    def in_step(self) -> Counted:
        """The candidate's requests of this step alone."""
        return self.evidence.candidate.shadow if self.mirrors else self.evidence.candidate.step

    def queries(self, *metrics: names.Metric) -> dict[str, str]:
        known = self.evidence.queries
        return {metric.name: known[metric.name] for metric in metrics if metric.name in known}


class Bad(NamedTuple):
    """Bad ones among all, of the candidate and of the champion."""

    bad: int
    of: int
    reference_bad: int
    reference_of: int


def answer(*, failed: bool, passed: bool) -> CheckState:
    return "failed" if failed else "passed" if passed else "undecided"


def as_numbers(found: Compared, place: int | None = None) -> dict[str, float]:
    """For the record, which holds no NaN: JSON has none."""
    values = {"difference": found.difference, "z": found.z, "upper": found.upper}
    chosen = {name: float(value if place is None else value[place]) for name, value in values.items()}
    return {name: value for name, value in chosen.items() if np.isfinite(value)}


def percent(bad: float, of: float) -> str:
    """As it follows a count, in parentheses."""
    return f" ({bad / of:.2%})" if of else ""
