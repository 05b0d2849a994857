"""Nodes, versions and workers that are well, and some that are not."""

from collections.abc import Iterator

from monitoring.names import (
    EDGE_IN_FLIGHT,
    EDGE_LIMIT,
    EDGE_OVERFLOWS,
    EDGE_REQUESTS,
    MONITOR_ERRORS,
    REFERENCE_ROWS,
    REQUESTS,
    RFF_REFERENCE_ROWS,
    ROWS,
    WORKER_RESTARTS,
)
from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

NODE = {"instance": "n1", "job": "shipway-node"}


def scenarios() -> Iterator[Scenario]:
    yield from (_nodes(), _no_nodes(), _blind(), _no_traffic(), _queue(), _workers(), _monitor_errors())


def _its(model: str) -> dict[str, str]:
    return {"model": model, "version": "3"}


def _versions(*models: str) -> frozenset[Labels]:
    return frozenset(labels(**_its(model)) for model in models)


def _nodes() -> Scenario:
    here, gone, other = (
        labels(instance="n1", job="shipway-node"), labels(instance="n2", job="shipway-node"), labels(job="mlflow")
    )  # fmt: skip
    series = {("up", here): constant(1, 10), ("up", gone): [(1.0, 5), (0.0, 6)], ("up", other): constant(0, 10)}
    return Scenario("nodes", 10, series, alerts={"NodeDown": Fires(frozenset({gone}), frozenset({here, other}))})


def _no_nodes() -> Scenario:
    """Whoever finds the nodes finds none."""
    series = {("up", labels(job="mlflow")): constant(1, 10)}
    fires = Fires(frozenset({labels(job="shipway-node")}), frozenset({labels(job="mlflow")}))
    return Scenario("no nodes", 10, series, alerts={"NodeDown": fires})


def _blind() -> Scenario:
    last = 30
    models = ("not_counted", "no_profile", "table", "text", "idle", "table-explainer")
    series: dict[tuple[str, Labels], Samples] = {}
    for model in models:
        where = labels(**_its(model), **NODE)
        asked = 0.0 if model == "idle" else 6.0
        series[REQUESTS.name, (*where, ("outcome", "ok"))] = counter(asked, last)
        series[REQUESTS.name, (*where, ("outcome", "refused"))] = counter(3.0, last)
        series[ROWS.name, where] = counter(asked if model in ("no_profile", "table", "text") else 0.0, last)
        if model in ("not_counted", "table"):
            feature = labels(**_its(model), **NODE, feature="age", kind="number", bin="00")
            series[REFERENCE_ROWS.name, feature] = constant(500, last)
        if model == "text":
            series[RFF_REFERENCE_ROWS.name, where] = constant(5000, last)
    fires = Fires(_versions("not_counted", "no_profile"), _versions("table", "text", "idle", "table-explainer"))
    return Scenario("blind", last, series, alerts={"DriftBlind": fires})


def _no_traffic() -> Scenario:
    """Requests a minute: at this hour of yesterday, in the last 6 hours until 30 minutes ago, and since then."""
    models = {
        "missed": (2.0, 0.35, 0.0),
        "asked": (2.0, 0.35, 1.0),
        "seldom_lately": (2.0, 0.25, 0.0),
        "seldom_yesterday": (1.4, 2.0, 0.0),
        "missed-explainer": (2.0, 0.35, 0.0),
    }
    last, quiet, day = 1560, 30, 1440
    series: dict[tuple[str, Labels], Samples] = {}
    for model, (yesterday, lately, now) in models.items():
        its = labels(**_its(model))
        until = last - day + 60
        series["shipway_slo:requests:5m", its] = [
            (yesterday * 5, until), (lately * 5, last + 1 - until - quiet), (now * 5, quiet)
        ]  # fmt: skip
        series[EDGE_REQUESTS.name, (*its, ("code", "200"))] = counter(now, last)
    fires = Fires(
        frozenset({labels(model="missed")}),
        frozenset(labels(model=model) for model in models if model != "missed"),
    )
    return Scenario("no traffic", last, series, alerts={"NoTraffic": fires}, every=10)


def _queue() -> Scenario:
    last = 15
    series: dict[tuple[str, Labels], Samples] = {}
    for model, in_flight, refused in (("full", 9.0, 0.0), ("busy", 7.0, 0.0), ("refusing", 1.0, 2.0)):
        where = labels(**_its(model), **NODE)
        series[EDGE_IN_FLIGHT.name, where] = constant(in_flight, last)
        series[EDGE_LIMIT.name, where] = constant(10, last)
        series[EDGE_OVERFLOWS.name, where] = counter(refused, last)
    full, busy, refusing = (labels(**_its(model), **NODE) for model in ("full", "busy", "refusing"))
    return Scenario(
        "queue",
        last,
        series,
        alerts={
            "QueueSaturated in_flight": Fires(frozenset({full}), frozenset({busy, refusing})),
            "QueueSaturated overflow": Fires(_versions("refusing"), _versions("full", "busy")),
        },
    )


def _workers() -> Scenario:
    """Workers that ended within 15 minutes, at two nodes together; some long ago do not count."""
    last = 30
    series: dict[tuple[str, Labels], Samples] = {}
    for model, long_ago, lately in (("crashing", 0.0, (1.0, 2.0)), ("unlucky", 5.0, (1.0, 1.0))):
        for node, ended in zip(("n1", "n2"), lately, strict=True):
            where = labels(**_its(model), instance=node)
            series[WORKER_RESTARTS.name, where] = [(0.0, 5), (long_ago, 16), (long_ago + ended, last - 20)]
    fires = Fires(_versions("crashing"), _versions("unlucky"))
    return Scenario("workers", last, series, alerts={"WorkersRestart": fires})


def _monitor_errors() -> Scenario:
    last = 30
    series = {
        (MONITOR_ERRORS.name, labels(**_its("faulty"))): [(0.0, 20), (2.0, last - 19)],
        (MONITOR_ERRORS.name, labels(**_its("well"))): constant(3, last),
    }
    fires = Fires(_versions("faulty"), _versions("well"))
    return Scenario("monitor errors", last, series, alerts={"MonitorErrors": fires})
