"""Panels that stand on more than one dashboard."""

from monitoring import names
from monitoring.dashboards.blocks import Json, Query, graph
from monitoring.dashboards.queries import increase, now, rate, recorded

RECENTLY = "5m"
"""What a table of versions looks back at."""


def requests() -> Json:
    return graph(
        "Requests",
        "Requests that the edge answered from each version.",
        "reqps",
        [Query(rate(names.EDGE_REQUESTS))],
        min=0,
    )


def failed_requests() -> Json:
    return graph(
        "Failed requests",
        "Share of a version's requests that the server failed, gRPC's too, over five minutes. What clients did "
        "wrong does not count.",
        "percentunit",
        [Query(recorded("shipway_slo:errors:ratio_5m"))],
        min=0,
    )


def restarts() -> Json:
    return graph(
        "Restarts",
        "Workers that took the place of one that had ended, in the last five minutes.",
        "none",
        [Query(increase(names.WORKER_RESTARTS, over=RECENTLY))],
        min=0,
    )


def memory() -> Json:
    return graph(
        "Memory",
        "Resident memory of a version's workers together. A line that only rises is a leak.",
        "bytes",
        [Query(now(names.WORKER_MEMORY))],
        min=0,
    )


def ready_nodes() -> Json:
    return graph(
        "Nodes that are ready",
        "Share of the nodes that have loaded the version and whose hardware reproduces its golden outputs.",
        "percentunit",
        [Query(now(names.VERSION_READY, operator="avg"))],
        min=0,
        max=1,
    )
