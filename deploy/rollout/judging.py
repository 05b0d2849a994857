"""The judge of a running rollout: the gate, fed with what Prometheus says at that moment."""

from functools import cache
from pathlib import Path

from deploy.drift import Edges, read_edges
from deploy.errors import PrometheusUnreachable, QueryRefused
from deploy.prometheus import Prometheus
from deploy.rollout.evidence import Evidence, Scrapes, read_evidence, scrapes
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
    reader = Reader(Prometheus(url, ANSWERED_WITHIN_SECONDS), archives_dir)

    def judged(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        try:
            found: Evidence | str = reader.evidence(entry, canary_since, at)
        except (PrometheusUnreachable, QueryRefused) as error:
            found = str(error)
        return judge(policy, entry.step or 0, found, step_since=entry.at, at=at, lost_readiness=lost_readiness)

    return judged


class Reader:
    """Asks for evidence only once a node was scraped again: it takes some twenty queries, and looks are frequent."""

    def __init__(self, prometheus: Prometheus, archives_dir: Path) -> None:
        self._prometheus = prometheus
        self._last: tuple[int, Scrapes, Evidence] | None = None
        """The entry that was judged, and its evidence after those scrapes."""

        @cache
        def edges(model: str, release: Release) -> Edges:
            return read_edges(archives_dir, model, release.version, release.digest)

        self._edges = edges

    def evidence(self, entry: Entry, canary_since: float, at: float) -> Evidence:
        champion, candidate = entry.champion, entry.candidate
        if champion is None or candidate is None:
            raise ValueError(f"nothing is compared in {entry.rollout}, so nothing is judged")
        versions = champion.version, candidate.version
        # Asked first: what is scraped meanwhile is asked for again.
        scraped = scrapes(self._prometheus, entry.model, *versions, at)
        if self._last is None or self._last[:2] != (entry.number, scraped):
            edges = {release.version: self._edges(entry.model, release) for release in (champion, candidate)}
            found = read_evidence(self._prometheus, entry.model, *versions, canary_since, entry.at, at, edges)
            self._last = (entry.number, scraped, found)
        return self._last[2]
