"""One /metrics for the whole node: workers' counters, drift beside its reference, the edge's, and the node's own.

TorchServe's own series are left out. No request passes its queue, so that what it says of requests is 0 for ever, and
of its workers the launcher knows more.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deploy.node.admin import Admin
from deploy.node.envoy import EDGE, SHADOW
from deploy.node.layout import Layout
from deploy.node.places import Places
from deploy.node.reconcile import Loaded
from handlers.slots import UNIT, Counts, counters_directory, read_counts
from monitoring import names
from monitoring.profile import Profile

logger = logging.getLogger(__name__)

_VERSION = r"[A-Za-z0-9_-]+/[0-9]+"
_CLUSTER = re.compile(rf"^(?P<model>[A-Za-z0-9_-]+)/(?P<version>[0-9]+)(?P<shadow>{SHADOW})?$")
_ENVOY_STATISTICS = (
    rf"^cluster\.{_VERSION}\.upstream_rq_([0-9]+|time|active|retry|pending_overflow)$"
    rf"|^cluster\.{_VERSION}{SHADOW}\.upstream_rq_([0-9]+|time)$"
    rf"|^vhost\.{EDGE}\.route\.{_VERSION}\.upstream_rq_retry$"
    rf"|^http\.{EDGE}\.(downstream_rq_total|downstream_cx_active)$"
)
_OF_A_VERSION: Mapping[str, names.Metric] = {
    "envoy_cluster_upstream_rq_active": names.EDGE_IN_FLIGHT,
    "envoy_cluster_upstream_rq_retry": names.EDGE_RETRIES,
    "envoy_cluster_upstream_rq_pending_overflow": names.EDGE_OVERFLOWS,
    "envoy_vhost_route_upstream_rq_retry": names.EDGE_LOST,
}
"""Envoy's name for one value of a cluster, or of the route to it that has a fall-back: ours."""
_OF_USERS, _OF_SHADOWS = (names.EDGE_REQUESTS, names.EDGE_SECONDS), (names.SHADOW_REQUESTS, names.SHADOW_SECONDS)
_OF_THE_EDGE: Mapping[str, names.Metric] = {
    "envoy_http_downstream_rq": names.EDGE_RECEIVED,
    "envoy_http_downstream_cx_active": names.EDGE_CONNECTIONS,
}


async def metrics(
    layout: Layout, admin: Admin, places: Places, versions: Iterable[Loaded], *collectors: Collector
) -> bytes:
    """The text that Prometheus scrapes. A part that does not answer is left out and logged: the others still count."""
    registry, families = CollectorRegistry(), _Families()
    MultiProcessCollector(registry, path=str(layout.counters))  # type: ignore[no-untyped-call]
    for collector in (families, *collectors):
        registry.register(collector)
    for loaded in versions:
        _node(families, loaded, places)
        if loaded.profile is not None and not loaded.explains:
            _drift(families, layout, loaded, loaded.profile)
    try:
        _edge(families, await admin.prometheus(_ENVOY_STATISTICS))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        logger.warning("metrics are incomplete: %s", error)
    return generate_latest(registry)


class _Families(Collector):
    """Families, made as values for them are found."""

    def __init__(self) -> None:
        self._values: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        self._histograms: dict[str, HistogramMetricFamily] = {}

    def collect(self) -> Iterator[Metric]:
        yield from self._values.values()
        yield from self._histograms.values()

    def add(self, metric: names.Metric, labels: Sequence[str], value: float) -> None:
        """One value of a counter, whose name ends in `_total`, or of a gauge."""
        family = self._values.get(metric.name)
        if family is None:
            kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
            family = self._values[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
        family.add_metric(labels, value)

    def add_histogram(
        self, metric: names.Metric, labels: Sequence[str], buckets: list[tuple[str, float]], total: float
    ) -> None:
        """One histogram; `buckets` hold upper bounds and cumulated counts, the last is +Inf."""
        family = self._histograms.get(metric.name)
        if family is None:
            family = self._histograms[metric.name] = HistogramMetricFamily(
                metric.name, metric.help, labels=metric.labels
            )
        family.add_metric(labels, buckets, total)


def _node(families: _Families, loaded: Loaded, places: Places) -> None:
    """What the launcher knows of a version, without asking anyone."""
    version = (loaded.model, str(loaded.version))
    families.add(names.VERSION_READY, version, loaded.state == "READY")
    if not loaded.registered:
        return
    workers = places.workers(*loaded.key)
    families.add(names.WORKERS, (*version, "wanted"), len(workers.sockets))
    families.add(names.WORKERS, (*version, "alive"), len(workers.alive))
    families.add(names.WORKER_RESTARTS, version, workers.restarts)
    families.add(names.WORKER_MEMORY, version, workers.resident_bytes)
    families.add(names.EDGE_LIMIT, version, loaded.queue_size)


def _drift(families: _Families, layout: Layout, loaded: Loaded, profile: Profile) -> None:
    """What workers have counted, and the reference beside it: every bin, whether or not a row fell into it yet."""
    version = (loaded.model, str(loaded.version))
    counts = read_counts(counters_directory(layout.counters, *version, loaded.profile_json), profile)
    families.add(names.ROWS, version, counts.rows)
    for labels, count, reference in _bins(profile, counts):
        families.add(names.FEATURE_ROWS, (*version, *labels), count)
        families.add(names.REFERENCE_ROWS, (*version, *labels), reference)
    if profile.classes and profile.features:
        families.add(names.CONFIDENCE_SUM, version, counts.confidence / UNIT)
    if profile.accuracy is not None:
        families.add(names.REFERENCE_ACCURACY, version, profile.accuracy)
    if profile.rff:
        families.add(names.RFF_REFERENCE_ROWS, version, profile.rows)
        for dimension, total in enumerate(counts.rff.tolist()):
            families.add(names.RFF_SUM, (*version, f"{dimension:02d}"), total / UNIT)


def _bins(profile: Profile, counts: Counts) -> Iterator[tuple[tuple[str, str, str], float, float]]:
    """Labels, count and reference of every bin."""
    counted = iter(counts.bins.tolist())
    for feature in profile.features:
        for label, reference in zip(feature.labels, feature.reference, strict=True):
            yield (feature.name, feature.kind, label), next(counted), reference


def _edge(families: _Families, text: str) -> None:
    """Envoy's statistics under our names: per version, in seconds, by status code."""
    times: dict[tuple[names.Metric, str, str], _Times] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total")  # which the parser gives every counter, Envoy some
            if name in _OF_THE_EDGE:
                families.add(_OF_THE_EDGE[name], (), sample.value)
            elif match := _CLUSTER.match(sample.labels.get("envoy_cluster_name", sample.labels.get("envoy_route", ""))):
                version = (match["model"], match["version"])
                requests, seconds = _OF_SHADOWS if match["shadow"] else _OF_USERS
                if name == "envoy_cluster_upstream_rq":
                    families.add(requests, (*version, sample.labels["envoy_response_code"]), sample.value)
                elif name in _OF_A_VERSION:
                    families.add(_OF_A_VERSION[name], version, sample.value)
                else:
                    measured = times.setdefault((seconds, *version), _Times())
                    measured.add(name, sample.labels.get("le", ""), sample.value)
    for (metric, *version_), measured in times.items():
        families.add_histogram(metric, version_, measured.buckets, measured.sum_seconds)


class _Times:
    """One histogram of Envoy's, whose unit is the millisecond."""

    def __init__(self) -> None:
        self.buckets: list[tuple[str, float]] = []
        self.sum_seconds = 0.0

    def add(self, name: str, bound: str, value: float) -> None:
        if name.endswith("_bucket"):
            self.buckets.append((bound if bound == "+Inf" else repr(float(bound) / 1000), value))
        elif name.endswith("_sum"):
            self.sum_seconds = value / 1000
