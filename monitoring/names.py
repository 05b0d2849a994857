"""Every metric this project exports: its name, help text, labels and buckets, declared once.

Names follow Prometheus: base units, `_total` for counters. All have the labels `model` and `version`.
"""

from dataclasses import dataclass

VERSION_LABELS = ("model", "version")

LATENCY_BUCKETS_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0),
)
"""Neighbours differ by a factor of two at most, so a quantile read off them is never further off."""


@dataclass(frozen=True)
class Metric:
    name: str
    help: str
    labels: tuple[str, ...] = VERSION_LABELS


# Counted by the workers, summed over them by the node.
REQUEST_SECONDS = Metric(
    "shipway_request_seconds",
    "Time from the request's arrival at the edge to its encoded answer, queue included, in seconds.",
    (*VERSION_LABELS, "protocol"),
)
REQUESTS = Metric(
    "shipway_requests_total",
    "Requests that a worker answered, by protocol and outcome (ok, refused, failed, expired).",
    (*VERSION_LABELS, "protocol", "outcome"),
)
BATCH_REQUESTS = Metric("shipway_batch_requests", "Requests in one batch of a worker.")
MONITOR_ERRORS = Metric("shipway_monitor_errors_total", "Requests answered but not counted, by a fault in counting.")
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

# Read from the workers' memory-mapped slots.
ROWS = Metric("shipway_rows_total", "Rows predicted and counted.")
FEATURE_ROWS = Metric(
    "shipway_feature_rows_total",
    "Rows by bin of the profile, for each input and output; `missing` is a bin of its own.",
    (*VERSION_LABELS, "feature", "kind", "bin"),
)
REFERENCE_ROWS = Metric(
    "shipway_feature_reference_rows",
    "Rows of the training profile by bin: what shipway_feature_rows_total is compared with.",
    (*VERSION_LABELS, "feature", "kind", "bin"),
)

# Read from Envoy.
EDGE_REQUESTS = Metric(
    "shipway_edge_requests_total",
    "Requests that the edge answered from this version, by HTTP status code, each counted once.",
    (*VERSION_LABELS, "code"),
)
EDGE_SECONDS = Metric(
    "shipway_edge_request_seconds", "Time from the edge to this version and back, in seconds.", VERSION_LABELS
)
EDGE_IN_FLIGHT = Metric("shipway_edge_requests_in_flight", "Requests at this version now.")
EDGE_CONNECTIONS = Metric("shipway_edge_connections", "Clients' connections open at the edge now.", ())
EDGE_RECEIVED = Metric(
    "shipway_edge_received_requests_total", "Requests that the edge received, whatever became of them.", ()
)

# The node itself.
VERSION_READY = Metric(
    "shipway_version_ready", "1 where the version is loaded and this hardware reproduced its golden outputs, else 0."
)
