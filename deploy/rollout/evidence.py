"""What the nodes have counted since a canary began, asked of the Prometheus that scrapes them.

Requests are counted exactly, out of the samples themselves: PromQL's increase() extrapolates, and loses what a series
that is born above 0 had at its first sample. Bins of features are at 0 before traffic comes, and only their shares
matter: for them increase() does.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from deploy.drift import Edges
from deploy.errors import NoData
from deploy.prometheus import Prometheus, Scraped, selector
from deploy.rollout.samples import after, bursts, increase
from deploy.traffic import Counts, read_counts, read_dispersion
from handlers.answer import GRPC
from monitoring import names
from monitoring.drift import Array

Scrapes = frozenset[tuple[tuple[str, str], ...]]
"""Of each series its labels and the time of its newest sample."""
LOOKBACK_SECONDS = 300
"""A series with no sample in as long before the canary was born after; Prometheus too forgets a series so soon."""


@dataclass(frozen=True, eq=False)
class Counted:
    """Requests of one version since one moment."""

    answered: int
    """By this version, at the edge."""
    failed: int
    """Of those: answered with a 5xx, or as a gRPC error of the server's."""
    lost: int
    """Besides those: this version lost them and another one answered."""
    refused: int
    """Of the answered ones: a 4xx, or a gRPC error of the client's."""
    seconds: Mapping[float, int]
    """Of the timed ones, how many took no longer than each bound of the histogram; the last bound is infinite."""

    @property
    def requests(self) -> int:
        return self.answered + self.lost

    @property
    def errors(self) -> int:
        return self.failed + self.lost

    @property
    def timed(self) -> int:
        return max(self.seconds.values(), default=0)

    def slower(self, than_seconds: float) -> int:
        """Timed requests that took longer than a bound of the histogram."""
        return self.timed - max((n for bound, n in self.seconds.items() if bound <= than_seconds), default=0)


@dataclass(frozen=True, eq=False)
class Version:
    """What there is to know of one version."""

    version: int
    canary: Counted
    """Since the canary began."""
    step: Counted
    """Since this step began."""
    shadow: Counted
    """Copies of others' requests since this step began, whose answers nobody got."""
    seen: float
    """When a node that has it was last scraped, a Unix time; -inf where none was."""
    restarts: int
    memory: tuple[tuple[Array, Array], ...]
    """Of each node: Unix times and resident bytes of the version's workers, [samples] each."""
    agreed: int
    disagreed: int
    """Mirrored rows."""
    confusion: Mapping[tuple[str, str], int]
    """Labelled rows by predicted and actual class."""
    features: tuple[Counts, ...]
    """Of inputs, outputs and predictions; none where the version counts none."""
    edges: Edges
    """Between the bins of its numbers, by feature and kind, as far as they are known."""

    @property
    def labelled(self) -> int:
        return sum(self.confusion.values())

    @property
    def wrong(self) -> int:
        return sum(rows for (predicted, actual), rows in self.confusion.items() if predicted != actual)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Champion and candidate on the same window."""

    champion: Version
    candidate: Version
    canary_since: float
    step_since: float
    at: float
    latency_dispersion: float
    """How many requests in a burst have latencies that count as one."""
    queries: Mapping[str, str]
    """What each number is the answer to."""


def read_evidence(
    prometheus: Prometheus,
    model: str,
    champion: int,
    candidate: int,
    canary_since: float,
    step_since: float,
    at: float,
    edges: Mapping[int, Edges] | None = None,
) -> Evidence:
    """All that was counted of the two versions up to `at`; moments are Unix times.

    What counts as before the canary is what was scraped before it: up to one scrape's time of the champion's earlier
    traffic is in its counts. `edges`, by version, come from the archives; without them numeric predictions of versions
    with profiles of their own cannot be compared.

    Raises:
        PrometheusUnreachable, QueryRefused: there is no answer, so that nothing is known.
    """
    scraped = _Scraped(prometheus, model, (champion, candidate), canary_since, at)
    features = {version: _features(prometheus, model, version, canary_since, at) for version in (champion, candidate)}
    recorded = read_dispersion(prometheus, model, at - canary_since, at)
    dispersion = recorded.by("feature", "kind")

    def inbursts(one: Counts, number: int) -> Counts:
        # The recorded dispersion looks back a week, which a new endpoint has not.
        key = (one.feature, one.kind)
        series = [
            each
            for each in scraped.of(names.FEATURE_ROWS, number)
            if (each.labels["feature"], each.labels["kind"]) == key
        ]
        return replace(one, dispersion=max(dispersion.get(key, 1.0), bursts(series, "bin", canary_since)))

    def version(number: int) -> Version:
        return Version(
            version=number,
            canary=scraped.counted(number, canary_since),
            step=scraped.counted(number, step_since),
            shadow=scraped.copied(number, step_since),
            seen=max((one.times[-1] for one in scraped.of(names.VERSION_READY, number)), default=-math.inf),
            restarts=scraped.total(names.WORKER_RESTARTS, number, canary_since),
            memory=tuple(after(one, canary_since) for one in scraped.of(names.WORKER_MEMORY, number)),
            agreed=scraped.total(names.SHADOW_ROWS, number, canary_since, outcome="agree"),
            disagreed=scraped.total(names.SHADOW_ROWS, number, canary_since, outcome="disagree"),
            confusion=scraped.confusion(number, canary_since),
            features=tuple(inbursts(one, number) for one in features[number][0]),
            edges=(edges or {}).get(number, {}),
        )

    queries = {
        **scraped.queries,
        **features[champion][1],
        **features[candidate][1],
        "dispersion of features": recorded.query,
    }
    waits = bursts(scraped.of(names.EDGE_SECONDS, champion), "le", canary_since, cumulated=True)
    return Evidence(version(champion), version(candidate), canary_since, step_since, at, waits, queries)


def scrapes(prometheus: Prometheus, model: str, champion: int, candidate: int, at: float) -> Scrapes:
    """When each node that has one of the versions was scraped last: while that stays, so does the evidence.

    Raises:
        PrometheusUnreachable, QueryRefused: there is no answer.
    """
    ready = selector(names.VERSION_READY.name, _of((champion, candidate)), model=model)
    found = prometheus.instant(f"timestamp({ready})", at)
    return frozenset((*sorted(one.labels.items()), ("", str(one.value))) for one in found.samples)


def _of(versions: Iterable[int]) -> str:
    return f'version=~"{"|".join(map(str, versions))}"'


class _Scraped:
    """The samples of both versions, asked once for each metric, and what is added up out of them."""

    _COUNTERS_AND_GAUGES = (
        names.EDGE_REQUESTS, names.EDGE_LOST, names.REQUESTS, names.VERSION_READY, names.WORKER_RESTARTS,
        names.WORKER_MEMORY, names.SHADOW_REQUESTS, names.SHADOW_ROWS, names.FEEDBACK, names.FEATURE_ROWS,
    )  # fmt: skip
    _HISTOGRAMS = (names.EDGE_SECONDS, names.SHADOW_SECONDS)
    _ALONE: Mapping[names.Metric, tuple[str, ...]] = {
        names.REQUESTS: (f'protocol="{GRPC}"',),
        names.FEATURE_ROWS: ('kind=~"output|prediction"',),
    }
    """Which series of a metric are wanted alone."""

    def __init__(self, prometheus: Prometheus, model: str, versions: Iterable[int], since: float, at: float) -> None:
        self._found: dict[str, tuple[Scraped, ...]] = {}
        self.queries: dict[str, str] = {}
        of = _of(versions)
        for metric in (*self._COUNTERS_AND_GAUGES, *self._HISTOGRAMS):
            series = f"{metric.name}_bucket" if metric in self._HISTOGRAMS else metric.name
            wanted = selector(series, of, *self._ALONE.get(metric, ()), model=model)
            query = f"{wanted}[{math.ceil(at - since) + LOOKBACK_SECONDS}s]"
            self.queries[metric.name] = query
            self._found[metric.name] = prometheus.scraped(query, at)

    def of(self, metric: names.Metric, version: int) -> list[Scraped]:
        return [one for one in self._found[metric.name] if one.labels["version"] == str(version)]

    def total(self, metric: names.Metric, version: int, since: float, **labels: str) -> int:
        """Increase summed over nodes, of the series with those labels."""
        return self._sum(metric, version, since, lambda found: labels.items() <= found.items())

    def counted(self, version: int, since: float) -> Counted:
        def grpc(outcome: str) -> int:
            return self.total(names.REQUESTS, version, since, outcome=outcome)

        answered = self._codes(names.EDGE_REQUESTS, version, since, "")
        # gRPC carries its errors in an HTTP answer of 200: the workers know better than the edge, and may be asked a
        # moment later.
        failed = self._codes(names.EDGE_REQUESTS, version, since, "5") + grpc("failed") + grpc("expired")
        refused = self._codes(names.EDGE_REQUESTS, version, since, "4") + grpc("refused")
        return Counted(
            answered=answered,
            failed=min(failed, answered),
            lost=self.total(names.EDGE_LOST, version, since),
            refused=min(refused, answered),
            seconds=self._seconds(names.EDGE_SECONDS, version, since),
        )

    def copied(self, version: int, since: float) -> Counted:
        return Counted(
            answered=self._codes(names.SHADOW_REQUESTS, version, since, ""),
            failed=self._codes(names.SHADOW_REQUESTS, version, since, "5"),
            lost=0,
            refused=self._codes(names.SHADOW_REQUESTS, version, since, "4"),
            seconds=self._seconds(names.SHADOW_SECONDS, version, since),
        )

    def _codes(self, metric: names.Metric, version: int, since: float, first: str) -> int:
        """Requests whose status code begins so."""
        return self._sum(metric, version, since, lambda labels: labels["code"].startswith(first))

    def _seconds(self, metric: names.Metric, version: int, since: float) -> dict[float, int]:
        found: Counter[float] = Counter()
        for one in self.of(metric, version):
            found[float(one.labels["le"])] += increase(one, since)
        return dict(sorted(found.items()))

    def confusion(self, version: int, since: float) -> dict[tuple[str, str], int]:
        found: Counter[tuple[str, str]] = Counter()
        for one in self.of(names.FEEDBACK, version):
            found[one.labels["predicted"], one.labels["actual"]] += increase(one, since)
        return dict(found)

    def _sum(
        self, metric: names.Metric, version: int, since: float, wanted: Callable[[Mapping[str, str]], bool]
    ) -> int:
        return sum(increase(one, since) for one in self.of(metric, version) if wanted(one.labels))


def _features(
    prometheus: Prometheus, model: str, version: int, since: float, at: float
) -> tuple[tuple[Counts, ...], dict[str, str]]:
    """Every feature's rows since the canary began, and the queries that gave them."""
    try:
        found = read_counts(prometheus, model, version, max(1, round(at - since)), 1, at)
    except NoData:
        return (), {}
    return found.counts, {f"{name} of features, version {version}": query for name, query in found.queries.items()}
