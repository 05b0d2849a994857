"""The judge of a running rollout: the gate, fed with what Prometheus says at that moment."""

from deploy.errors import NoData, PrometheusUnreachable, QueryRefused
from deploy.prometheus import Prometheus
from deploy.rollout.evidence import Evidence, read_evidence
from deploy.rollout.gate import judge
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Verdict
from deploy.rollout.run import Judge

ANSWERED_WITHIN_SECONDS = 3.0
"""For each query: a rollout must notice within seconds that somebody takes it back."""


def by_prometheus(url: str, policy: Policy) -> Judge:
    """Judges by the Prometheus at `url`; where it does not answer, there is no data."""
    prometheus = Prometheus(url, ANSWERED_WITHIN_SECONDS)

    def judged(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        evidence = _evidence(prometheus, entry, canary_since, at)
        return judge(policy, entry.step or 0, evidence, step_since=entry.at, at=at, lost_readiness=lost_readiness)

    return judged


def _evidence(prometheus: Prometheus, entry: Entry, canary_since: float, at: float) -> Evidence | None:
    if entry.champion is None or entry.candidate is None:
        return None
    try:
        return read_evidence(
            prometheus, entry.model, entry.champion.version, entry.candidate.version, canary_since, entry.at, at
        )
    except (PrometheusUnreachable, QueryRefused, NoData):
        return None
