"""The dashboard `serving`: what each version answers, how fast, and how near it is to its limits."""

from monitoring import names
from monitoring.config import Config, Objectives
from monitoring.dashboards.blocks import (
    Column,
    Json,
    Query,
    Section,
    dashboard,
    graph,
    heat_map,
    query_variable,
    table,
)
from monitoring.dashboards.panels import RECENTLY, failed_requests, memory, ready_nodes, requests, restarts
from monitoring.dashboards.queries import (
    buckets,
    by_version,
    chosen,
    increase,
    mean,
    now,
    quantile,
    rate,
    recorded,
)

_FIRING = 'alertstate="firing"'


def serving(config: Config) -> Json:
    ready = names.VERSION_READY.name
    return dashboard(
        "serving",
        "Shipway: serving",
        "Rate, errors, latency, queue, workers and error budget of each version of each model.",
        [
            query_variable("model", f"label_values({ready}, model)", several=True),
            query_variable("version", f'label_values({ready}{{model=~"$model"}}, version)', several=True, newest=True),
        ],
        [
            Section("Which version is bad?", [[_versions(config)]], height=7),
            Section("Traffic and errors", _traffic()),
            Section("Latency", _latency()),
            Section("Queue and saturation", _queue()),
            Section("Workers and batches", _workers()),
            Section("Error budget", [_budget(config.objectives)]),
            Section("Monitoring itself", [_monitoring()]),
            Section("GPUs, where there are any", [_gpus()]),
        ],
    )


def _versions(config: Config) -> Json:
    goals = config.objectives
    budget = 1 - goals.available
    firing = f"count by (model, version) ({chosen('ALERTS', _FIRING)})"
    ready = now(names.VERSION_READY, operator="avg")
    return table(
        "Versions now",
        "One line for each version, over the last five minutes. A coloured cell is a reason to look further down; "
        "Alerts counts everything that fires for the version now, drift and quality too.",
        {
            "Alerts": Column(f"{firing} or 0 * {ready}", "none", ((1, "red"),)),
            "Requests/s": Column(rate(names.EDGE_REQUESTS, over=RECENTLY), "reqps"),
            "Failed": Column(
                recorded("shipway_slo:errors:ratio_5m"), "percentunit", ((budget, "yellow"), (10 * budget, "red"))
            ),
            "p50": Column(quantile(0.5, names.EDGE_SECONDS, over=RECENTLY), "s"),
            "p99": Column(
                quantile(0.99, names.EDGE_SECONDS, over=RECENTLY),
                "s",
                ((goals.fast_seconds, "yellow"), (4 * goals.fast_seconds, "red")),
            ),
            "Queue": Column(_saturation(), "percentunit", ((config.health.queue, "red"),)),
            "Workers missing": Column(_missing(), "none", ((1, "red"),)),
            "Restarts": Column(
                increase(names.WORKER_RESTARTS, over=RECENTLY),
                "none",
                ((0.5, "yellow"), (config.health.restarts, "red")),
            ),
            "Nodes ready": Column(ready, "percentunit", ((1, "green"),), base="red"),
        },
        sort_by="Failed",
    )


def _traffic() -> list[list[Json]]:
    outcomes = Query(rate(names.REQUESTS, "outcome", matchers=['outcome!="ok"']), "{{outcome}}")
    return [
        [
            requests(),
            graph(
                "Requests by status",
                "The same by HTTP status code; an error that gRPC carries in its own status stands under 200.",
                "reqps",
                [Query(rate(names.EDGE_REQUESTS, "code"), "{{code}}")],
                stacked=True,
                min=0,
            ),
        ],
        [
            failed_requests(),
            graph(
                "Answers that were not predictions",
                "From the workers: refused (the input was wrong), failed (the handler or the program), expired (the "
                "deadline had passed). More refused ones on one version alone mean that it wants other inputs.",
                "reqps",
                [outcomes],
                min=0,
            ),
        ],
    ]


def _latency() -> list[list[Json]]:
    percentiles = (0.5, 0.9, 0.99)
    return [
        [
            graph(
                "Latency at the edge",
                "From the edge to the version and back, queue included. Read off a histogram: right to its buckets.",
                "s",
                [Query(quantile(part, names.EDGE_SECONDS), f"p{part * 100:.0f}") for part in percentiles],
                min=0,
            ),
            graph(
                "Latency of predictions",
                "From a request's arrival at the edge to its encoded answer in the worker, queue included.",
                "s",
                [Query(quantile(part, names.REQUEST_SECONDS), f"p{part * 100:.0f}") for part in percentiles],
                min=0,
            ),
        ],
        [
            heat_map(
                "All latencies",
                "Requests by latency at the edge, all chosen versions together: two bands are two kinds of requests.",
                "s",
                f"sum by (le) ({buckets(names.EDGE_SECONDS)})",
            ),
            graph(
                "p99 by protocol",
                "99 of 100 requests of a protocol (JSON predictions, Open Inference over HTTP and gRPC) were faster.",
                "s",
                [Query(quantile(0.99, names.REQUEST_SECONDS, "protocol"), "{{protocol}}")],
                min=0,
            ),
        ],
    ]


def _queue() -> list[list[Json]]:
    return [
        [
            graph(
                "Requests in flight",
                "Requests at a version now, waiting or in a batch, and how many there may be at once.",
                "none",
                [Query(now(names.EDGE_IN_FLIGHT), "in flight"), Query(now(names.EDGE_LIMIT), "limit")],
                min=0,
            ),
            graph(
                "Saturation",
                "Requests in flight against their limit. From 100% on, further ones are answered 503.",
                "percentunit",
                [Query(_saturation())],
                min=0,
            ),
            graph(
                "Waiting time",
                "From a request's arrival at the edge until a worker took it, mean. Pods are scaled by it.",
                "s",
                [Query(_waiting())],
                min=0,
            ),
        ],
        [
            graph(
                "Overflows and retries",
                "Requests answered 503 because too many were there; and those that a worker lost and another answered.",
                "reqps",
                [Query(rate(names.EDGE_OVERFLOWS), "overflows"), Query(rate(names.EDGE_RETRIES), "retries")],
                min=0,
            ),
            graph(
                "Clients",
                "Connections open at the edge of all nodes, and requests received there, whatever became of them.",
                "none",
                [
                    Query(f"sum ({names.EDGE_CONNECTIONS.name})", "connections", whose=""),
                    Query(f"sum (rate({names.EDGE_RECEIVED.name}[$__rate_interval]))", "requests/s", whose=""),
                ],
                min=0,
            ),
        ],
    ]


def _workers() -> list[list[Json]]:
    return [
        [
            graph(
                "Workers",
                "Worker processes that should be there and that are. A gap that stays is a worker that cannot start.",
                "none",
                [Query(now(names.WORKERS, "state"), "{{state}}")],
                min=0,
                decimals=0,
            ),
            restarts(),
            memory(),
        ],
        [
            graph(
                "Requests in a batch",
                "Half of the batches, and 95 of 100, were not larger. Ones alone: there is room for more load.",
                "none",
                [
                    Query(quantile(0.5, names.BATCH_REQUESTS), "p50"),
                    Query(quantile(0.95, names.BATCH_REQUESTS), "p95"),
                    Query(mean(names.BATCH_REQUESTS), "mean"),
                ],
                min=0,
            ),
            graph(
                "Rows",
                "Rows predicted; a request may hold many.",
                "rowsps",
                [Query(rate(names.ROWS))],
                min=0,
            ),
        ],
    ]


def _budget(goals: Objectives) -> list[Json]:
    """As the burn-rate alerts see it, from their recorded ratios."""
    factors = [burn.factor for burn in goals.burns]
    what = {
        "errors": ("failures", goals.available, "are not failed by the server"),
        "slow": ("slowness", goals.fast, f"are answered within {goals.fast_seconds:g} s"),
    }
    return [
        graph(
            f"Budget for {title}: how many times too fast it burns",
            f"Promised is that {objective:.2%} of requests {promise}. At 1 the budget of 30 days lasts 30 days; alerts "
            f"begin at {min(factors):g} over the longest window and at {max(factors):g} over the shortest.",
            "short",
            [
                Query(f"{recorded(f'shipway_slo:{series}:ratio_{burn.long}')} / {1 - objective:.6g}", burn.long)
                for burn in goals.burns
            ],
            min=0,
        )
        for series, (title, objective, promise) in what.items()
    ]


def _monitoring() -> list[Json]:
    return [
        ready_nodes(),
        graph(
            "Answered but not counted",
            "Requests whose counting failed. They are missing from drift and quality.",
            "reqps",
            [Query(rate(names.MONITOR_ERRORS))],
            min=0,
        ),
    ]


def _gpus() -> list[Json]:
    """From dcgm-exporter, which knows devices and not versions."""
    busy = {
        "engine": "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        "tensor cores": "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "memory": "DCGM_FI_PROF_DRAM_ACTIVE",
    }
    used, free = (f"sum by (Hostname, gpu) (DCGM_FI_DEV_FB_{part})" for part in ("USED", "FREE"))
    device = "{{Hostname}} {{gpu}}"
    return [
        graph(
            "GPU activity",
            "Share of the time in which a part of the device worked.",
            "percentunit",
            [Query(f"max by (Hostname, gpu) ({series})", part, whose=device) for part, series in busy.items()],
            min=0,
            max=1,
        ),
        graph(
            "GPU memory",
            "Share of the device's memory that is in use.",
            "percentunit",
            [Query(f"{used} / ({used} + {free})", whose=device)],
            min=0,
            max=1,
        ),
    ]


def _saturation() -> str:
    return f"{now(names.EDGE_IN_FLIGHT)} / {now(names.EDGE_LIMIT)}"


def _waiting() -> str:
    requests = by_version(f"rate({chosen(names.BATCH_REQUESTS.name + '_sum')}[$__rate_interval])")
    return f"{rate(names.QUEUE_SECONDS)} / {requests}"


def _missing() -> str:
    wanted, alive = (now(names.WORKERS, matchers=[f'state="{state}"']) for state in ("wanted", "alive"))
    return f"{wanted} - {alive}"
