"""Every metric this project exports: its name, help text, labels and buckets, declared once.

Names follow Prometheus: base units, `_total` for counters. All have the labels `model` and `version`.
"""

from dataclasses import dataclass

VERSION_LABELS = ("model", "version")
EXPLAINER = "-explainer"
"""What the name of a model ends with where its archive is registered once more, to explain and not to predict."""

LATENCY_BUCKETS_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0),
)
"""Of the workers and of the edge, so that a limit on latency is a bucket's edge at both.

Neighbours differ by a factor of two at most, so a quantile read off them is never further off.
"""


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
QUEUE_SECONDS = Metric(
    "shipway_queue_seconds_total",
    "Time from requests' arrival at the edge until a worker took them, summed over requests, in seconds.",
)
REQUESTS = Metric(
    "shipway_requests_total",
    "Requests that a worker answered, by protocol and outcome (ok, refused, failed, expired).",
    (*VERSION_LABELS, "protocol", "outcome"),
)
BATCH_REQUESTS = Metric("shipway_batch_requests", "Requests in one batch of a worker.")
MONITOR_ERRORS = Metric("shipway_monitor_errors_total", "Requests answered but not counted, by a fault in counting.")
CAPTURED = Metric(
    "shipway_captured_requests_total",
    "Requests that should be kept for `shipway plan`, by outcome (kept; not kept: busy, too_large, failed).",
    (*VERSION_LABELS, "outcome"),
)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

# Read from the workers' memory-mapped slots. `kind` is number or category for inputs, output for the program's numbers,
# prediction for the features `class`, `confidence` and `entropy` that are made of a classifier's probabilities.
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
USUAL_PSI_EXCESS = Metric(
    "shipway_feature_usual_psi_excess",
    "Largest PSI, beyond chance, of windows of the training rows against all of them; only of rows with times.",
    (*VERSION_LABELS, "feature", "kind", "window"),
)
CONFIDENCE_SUM = Metric(
    "shipway_confidence_sum_total", "Sum over rows of the probability of the predicted class, between 0 and 1 each."
)
RFF_SUM = Metric(
    "shipway_rff_sum_total",
    "Sum over rows of a whitened random Fourier feature, cut to -4 to 4 and raised by 4.",
    (*VERSION_LABELS, "dimension"),
)
RFF_REFERENCE_ROWS = Metric(
    "shipway_rff_reference_rows", "Rows of the training profile on which the random Fourier features were whitened."
)
REFERENCE_ACCURACY = Metric(
    "shipway_reference_accuracy", "Accuracy on validation data when the version was registered, a share of 1."
)

# Kept by the launcher of what workers predicted, and of the labels that come for it.
FEEDBACK = Metric(
    "shipway_feedback_total",
    "Labelled rows by predicted and actual class, under the version that predicted; the first label of a row counts.",
    (*VERSION_LABELS, "predicted", "actual"),
)
FEEDBACK_LABELS = Metric(
    "shipway_feedback_labels_total",
    "Labels that clients sent, by outcome (joined, repeated, unknown, refused).",
    ("outcome",),
)
PREDICTIONS_KEPT = Metric(
    "shipway_feedback_predictions_total",
    "Predicted rows that may still get a label, by outcome (kept; dropped: the queue was full).",
    (*VERSION_LABELS, "outcome"),
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
EDGE_LIMIT = Metric(
    "shipway_edge_requests_limit", "Requests that may be at this version at once; beyond it they are answered 503."
)
EDGE_OVERFLOWS = Metric("shipway_edge_overflows_total", "Requests answered 503 because too many were at this version.")
EDGE_RETRIES = Metric(
    "shipway_edge_retries_total", "Requests that a worker lost, under the version that the edge asked then."
)
EDGE_LOST = Metric(
    "shipway_edge_lost_requests_total",
    "Requests that this version lost (reset, no connection) and its fall-back was asked for instead.",
)
EDGE_CONNECTIONS = Metric("shipway_edge_connections", "Clients' connections open at the edge now.", ())
EDGE_RECEIVED = Metric(
    "shipway_edge_received_requests_total", "Requests that the edge received, whatever became of them.", ()
)

# Of requests that were copied to a version which is only watched. They are nobody's requests, and in no other metric.
SHADOW_REQUESTS = Metric(
    "shipway_edge_shadow_requests_total",
    "Copies of requests that this version answered to nobody, by HTTP status code.",
    (*VERSION_LABELS, "code"),
)
SHADOW_SECONDS = Metric(
    "shipway_edge_shadow_request_seconds", "Time from the edge to this version and back for copies, in seconds."
)
SHADOW_ROWS = Metric(
    "shipway_shadow_rows_total",
    "Rows of copied requests by outcome: the class is that of the version that answered the user (agree) or is not "
    "(disagree).",
    (*VERSION_LABELS, "outcome"),
)

# The node itself.
VERSION_READY = Metric(
    "shipway_version_ready", "1 where the version is loaded and this hardware reproduced its golden outputs, else 0."
)
WORKERS = Metric(
    "shipway_workers", "Worker processes of the version by state (wanted, alive).", (*VERSION_LABELS, "state")
)
WORKER_RESTARTS = Metric("shipway_worker_restarts_total", "Workers that took the place of one that had ended.")
WORKER_MEMORY = Metric("shipway_worker_resident_bytes", "Resident memory of the version's workers together, in bytes.")
