"""Nodes that do not answer, versions that nobody watches or asks, and programs that struggle."""

from monitoring.config import Config
from monitoring.names import (
    EDGE_IN_FLIGHT,
    EDGE_LIMIT,
    EDGE_OVERFLOWS,
    EDGE_REQUESTS,
    MONITOR_ERRORS,
    REFERENCE_ROWS,
    REQUESTS,
    RFF_REFERENCE_ROWS,
    WORKER_RESTARTS,
)
from monitoring.rules import slo
from monitoring.rules.rule import SAMPLED, VERSION, Alert, Group, increase, total

ITS_VERSION = "{{ $labels.model }} version {{ $labels.version }}"


def health(config: Config) -> Group:
    one = config.health
    return Group(
        "shipway-health",
        (
            _node_down(one.job),
            _drift_blind(),
            _no_traffic(one.requests),
            *_queue_saturated(one.queue),
            Alert(
                "WorkersRestart",
                f"{increase(WORKER_RESTARTS, '15m', by=VERSION)} > {one.restarts - 0.5:g}",
                None,
                "ticket",
                f"Workers of {ITS_VERSION} end again and again",
                '{{ printf "%.0f" $value }} workers were replaced within 15 minutes; fewer than '
                f"{one.restarts} are allowed.",
            ),
            Alert(
                "MonitorErrors",
                f"{increase(MONITOR_ERRORS, '15m', by=VERSION)} > 0",
                "5m",
                "ticket",
                f"Rows of {ITS_VERSION} are answered and not counted",
                '{{ printf "%.0f" $value }} requests within 15 minutes were not counted, by a fault in counting.',
            ),
        ),
    )


def _node_down(job: str) -> Alert:
    up = f'up{{job="{job}"}}'
    return Alert(
        "NodeDown",
        f"{up} == 0\nor absent({up})",
        "2m",
        "page",
        "Prometheus does not reach the node {{ $labels.instance }}",
        "Its metrics could not be read for 2 minutes (up is {{ $value }}; 1 says that Prometheus knows no node).",
    )


def _drift_blind() -> Alert:
    """Silence must not look like health."""
    answered = increase(REQUESTS, SAMPLED, by=VERSION, where=f'{{outcome="ok", {slo.PREDICTIONS}}}')
    return Alert(
        "DriftBlind",
        f"{answered} > 0\n"
        f"unless (\n  shipway_version:rows:{SAMPLED} > 0\n"
        f"  and on ({VERSION}) ({REFERENCE_ROWS.name} or {RFF_REFERENCE_ROWS.name})\n)",
        "10m",
        "ticket",
        f"Nobody watches {ITS_VERSION} for drift",
        'It answered {{ printf "%.0f" $value }} requests within 10 minutes; either no row of them was counted, or '
        "there is no training profile to compare them with.",
    )


def _no_traffic(requests: int) -> Alert:
    """Of a model, not of a version: a rollout takes traffic from a version on purpose.

    Who is asked at some hours only is not missed at the others: this hour of yesterday and the last 6 hours both had
    traffic. It ends by itself after 6 hours.
    """
    asked = increase(EDGE_REQUESTS, SAMPLED, by="model", where=f"{{{slo.PREDICTIONS}}}")
    lately = f"sum by (model) ({total(slo.ALL, '6h', every=slo.SAMPLED)})"
    yesterday = f"sum by (model) ({total(slo.ALL, '1h', every=slo.SAMPLED, ago='1410m')})"
    return Alert(
        "NoTraffic",
        f"{asked} == 0\nand {lately} >= {requests}\nand {yesterday} >= {requests}",
        "10m",
        "ticket",
        "Nobody asks {{ $labels.model }} any more",
        "It had {{ $value }} requests within 10 minutes, but many in the last 6 hours and at this hour of yesterday.",
    )


def _queue_saturated(share: float) -> tuple[Alert, Alert]:
    in_flight = f"avg_over_time({EDGE_IN_FLIGHT.name}[2m])"
    return (
        Alert(
            "QueueSaturated",
            f"{in_flight} / {EDGE_LIMIT.name} > {share:g}",
            "2m",
            "ticket",
            f"{ITS_VERSION} has almost as many requests at once as it may",
            f"{{{{ humanizePercentage $value }}}} of the places at {{{{ $labels.instance }}}} are taken; "
            f"{share:.0%} are allowed.",
            {"sign": "in_flight"},
        ),
        Alert(
            "QueueSaturated",
            f"{increase(EDGE_OVERFLOWS, '5m', by=VERSION)} > 0",
            None,
            "ticket",
            f"{ITS_VERSION} refuses requests because too many are there",
            '{{ printf "%.0f" $value }} requests were answered 503 within 5 minutes.',
            {"sign": "overflow"},
        ),
    )
