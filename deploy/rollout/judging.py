"""The judge of a running rollout: the gate, fed with what Prometheus says at that moment."""

from functools import cache
from pathlib import Path

from deploy.drift import Edges, read_edges
from deploy.errors import NoData, PrometheusUnreachable, QueryRefused
from deploy.prometheus import Prometheus
from deploy.rollout.evidence import Evidence, read_evidence
from deploy.rollout.gate import judge
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Release, Verdict
from deploy.rollout.run import Judge

ANSWERED_WITHIN_SECONDS = 3.0
"""For each query: a rollout must notice within seconds that somebody takes it back."""


def by_prometheus(url: str, policy: Policy, archives_dir: Path) -> Judge:
    """Judges by the Prometheus at `url`; where it does not answer, there is no data.

    The archives say where the bins of numeric predictions lie to each other.
    """
    prometheus = Prometheus(url, ANSWERED_WITHIN_SECONDS)

    @cache
    def edges(model: str, release: Release) -> Edges:
        return read_edges(archives_dir, model, release.version, release.digest)

    def evidence(entry: Entry, canary_since: float, at: float) -> Evidence | None:
        champion, candidate = entry.champion, entry.candidate
        if champion is None or candidate is None:
            return None
        known = {release.version: edges(entry.model, release) for release in (champion, candidate)}
        try:
            return read_evidence(
                prometheus, entry.model, champion.version, candidate.version, canary_since, entry.at, at, known
            )
        except (PrometheusUnreachable, QueryRefused, NoData):
            return None

    def judged(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        found = evidence(entry, canary_since, at)
        return judge(policy, entry.step or 0, found, step_since=entry.at, at=at, lost_readiness=lost_readiness)

    return judged
