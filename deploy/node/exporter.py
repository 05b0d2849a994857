"""One /metrics for the whole node: workers' counters, drift beside its reference, Envoy's and TorchServe's own."""

import logging
import re
from collections.abc import Iterable, Iterator

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deploy.node import torchserve
from deploy.node.admin import Admin
from deploy.node.envoy import EDGE
from deploy.node.layout import Layout
from deploy.node.reconcile import Loaded
from handlers.slots import counters_directory, read_counts
from monitoring import names
from monitoring.profile import Profile

logger = logging.getLogger(__name__)

_CLUSTER = re.compile(r"^(?P<model>[A-Za-z0-9_-]+)/(?P<version>[0-9]+)$")
_ENVOY_STATISTICS = (
    rf"^cluster\.[A-Za-z0-9_-]+/[0-9]+\.(upstream_rq_[0-9]+|upstream_rq_time|upstream_rq_active)$"
    rf"|^http\.{EDGE}\.(downstream_rq_total|downstream_cx_active)$"
)


async def metrics(layout: Layout, admin: Admin, versions: Iterable[Loaded]) -> bytes:
    """The text that Prometheus scrapes. A part that does not answer is left out and logged: the others still count."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(layout.counters))  # type: ignore[no-untyped-call]
    registry.register(_Families(_drift(layout, versions)))
    text = generate_latest(registry)
    edge, own = CollectorRegistry(), b""
    try:
        edge.register(_Families(_edge(await admin.prometheus(_ENVOY_STATISTICS))))
        text += generate_latest(edge)
        own = (await torchserve.metrics(layout)).encode()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        logger.warning("metrics are incomplete: %s", error)
    return text + own


class _Families(Collector):
    """Families that are already made."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _drift(layout: Layout, versions: Iterable[Loaded]) -> Iterator[Metric]:
    rows = CounterMetricFamily(names.ROWS.name, names.ROWS.help, labels=names.ROWS.labels)
    counted = CounterMetricFamily(names.FEATURE_ROWS.name, names.FEATURE_ROWS.help, labels=names.FEATURE_ROWS.labels)
    reference = GaugeMetricFamily(
        names.REFERENCE_ROWS.name, names.REFERENCE_ROWS.help, labels=names.REFERENCE_ROWS.labels
    )
    ready = GaugeMetricFamily(names.VERSION_READY.name, names.VERSION_READY.help, labels=names.VERSION_READY.labels)
    for loaded in versions:
        labels = [loaded.model, str(loaded.version)]
        ready.add_metric(labels, float(loaded.state == "READY"))
        if loaded.profile is not None and not loaded.explains:
            counters = counters_directory(layout.counters, loaded.model, str(loaded.version), loaded.profile_json)
            counts = read_counts(counters, loaded.profile)
            rows.add_metric(labels, float(counts.rows))
            for feature_labels, count, share in _bins(loaded.profile, counts.bins.tolist()):
                counted.add_metric([*labels, *feature_labels], count)
                reference.add_metric([*labels, *feature_labels], share)
    yield from (ready, rows, counted, reference)


def _bins(profile: Profile, counts: list[int]) -> Iterator[tuple[list[str], float, float]]:
    """Labels, count and reference of every bin."""
    position = 0
    for feature in profile.features:
        for label, reference in zip(feature.labels, feature.reference, strict=True):
            yield [feature.name, feature.kind, label], float(counts[position]), float(reference)
            position += 1


def _edge(text: str) -> Iterator[Metric]:
    """Envoy's statistics under our names: per version, in seconds, by status code."""
    requests = CounterMetricFamily(
        names.EDGE_REQUESTS.name, names.EDGE_REQUESTS.help, labels=names.EDGE_REQUESTS.labels
    )
    in_flight = GaugeMetricFamily(
        names.EDGE_IN_FLIGHT.name, names.EDGE_IN_FLIGHT.help, labels=names.EDGE_IN_FLIGHT.labels
    )
    seconds = HistogramMetricFamily(names.EDGE_SECONDS.name, names.EDGE_SECONDS.help, labels=names.EDGE_SECONDS.labels)
    connections = GaugeMetricFamily(names.EDGE_CONNECTIONS.name, names.EDGE_CONNECTIONS.help)
    received = CounterMetricFamily(names.EDGE_RECEIVED.name, names.EDGE_RECEIVED.help)
    times: dict[tuple[str, str], _Times] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total")  # which the parser gives every counter, Envoy some
            if name == "envoy_http_downstream_rq":
                received.add_metric([], sample.value)
            elif name == "envoy_http_downstream_cx_active":
                connections.add_metric([], sample.value)
            elif match := _CLUSTER.match(sample.labels.get("envoy_cluster_name", "")):
                version = (match["model"], match["version"])
                if name == "envoy_cluster_upstream_rq":
                    requests.add_metric([*version, sample.labels["envoy_response_code"]], sample.value)
                elif name == "envoy_cluster_upstream_rq_active":
                    in_flight.add_metric([*version], sample.value)
                elif name.startswith("envoy_cluster_upstream_rq_time_"):
                    times.setdefault(version, _Times()).add(name, sample.labels.get("le", ""), sample.value)
    for version, measured in times.items():
        seconds.add_metric([*version], measured.buckets, measured.sum_seconds)
    yield from (received, connections, requests, in_flight, seconds)


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
