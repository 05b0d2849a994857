"""The dashboard `rollout`: the stable version and the canary side by side, while traffic moves from one to the other.

Verdicts and changes of the traffic stand in every panel as annotations, which are copies of the ledger's entries.
"""

from monitoring import names
from monitoring.config import Config
from monitoring.dashboards.blocks import Column, Json, Query, Section, dashboard, graph, query_variable, table
from monitoring.dashboards.panels import RECENTLY, failed_requests, memory, ready_nodes, requests, restarts
from monitoring.dashboards.queries import increase, now, quantile, rate, recorded

_CLASS = ('kind="prediction"', 'feature="class"')


def rollout(config: Config) -> Json:
    ready = names.VERSION_READY.name
    return dashboard(
        "rollout",
        "Shipway: rollout",
        "The versions of one model side by side, as the gate compares them; annotations say what was decided when.",
        [
            query_variable("model", f"label_values({ready}, model)", several=False),
            query_variable("version", f'label_values({ready}{{model="$model"}}, version)', several=True, newest=True),
        ],
        [
            Section("Which version is worse?", [[_versions(config)]], height=6),
            Section("Traffic and errors", _traffic()),
            Section("Latency", [_latency()]),
            Section("Workers", [_workers()]),
            Section("Predictions", [_predictions()]),
            Section("Shadow, where requests are copied", [_shadow()]),
        ],
    )


def _versions(config: Config) -> Json:
    goals = config.objectives
    return table(
        "Versions now",
        "One line for each version, over the last five minutes.",
        {
            "Traffic": Column(_share_of_traffic(), "percentunit"),
            "Requests/s": Column(rate(names.EDGE_REQUESTS, over=RECENTLY), "reqps"),
            "Failed": Column(
                recorded("shipway_slo:errors:ratio_5m"), "percentunit", ((1 - goals.available, "yellow"), (0.05, "red"))
            ),
            "Refused": Column(_refused(RECENTLY), "percentunit"),
            "Lost": Column(increase(names.EDGE_LOST, over=RECENTLY), "none", ((0.5, "red"),)),
            "p50": Column(quantile(0.5, names.EDGE_SECONDS, over=RECENTLY), "s"),
            "p99": Column(quantile(0.99, names.EDGE_SECONDS, over=RECENTLY), "s", ((goals.fast_seconds, "yellow"),)),
            "Restarts": Column(increase(names.WORKER_RESTARTS, over=RECENTLY), "none", ((0.5, "red"),)),
            "Memory": Column(now(names.WORKER_MEMORY), "bytes"),
            "Nodes ready": Column(now(names.VERSION_READY, operator="avg"), "percentunit", ((1, "green"),), base="red"),
        },
        sort_by="Traffic",
    )


def _traffic() -> list[list[Json]]:
    return [
        [
            graph(
                "Share of the traffic",
                "Of the model's requests, those that each version answered. The canary's line rises in steps.",
                "percentunit",
                [Query(_share_of_traffic("$__rate_interval"))],
                stacked=True,
                min=0,
                max=1,
            ),
            requests(),
        ],
        [
            failed_requests(),
            graph(
                "Refused inputs",
                "Share of a version's requests whose input it refused. More on one version alone mean that it wants "
                "other inputs.",
                "percentunit",
                [Query(_refused())],
                min=0,
            ),
            graph(
                "Lost requests",
                "Requests that a version lost and its fall-back was asked for: users saw no error, and the gate counts "
                "one.",
                "reqps",
                [Query(rate(names.EDGE_LOST))],
                min=0,
            ),
        ],
    ]


def _latency() -> list[Json]:
    return [
        graph(
            f"{title} of latency",
            f"From the edge to the version and back, queue included: {words} were faster.",
            "s",
            [Query(quantile(part, names.EDGE_SECONDS))],
            min=0,
        )
        for part, title, words in (
            (0.5, "Median", "half of the requests"),
            (0.9, "p90", "90 of 100 requests"),
            (0.99, "p99", "99 of 100 requests"),
        )
    ]


def _workers() -> list[Json]:
    return [
        restarts(),
        memory(),
        ready_nodes(),
    ]


def _predictions() -> list[Json]:
    classes = rate(names.FEATURE_ROWS, "bin", matchers=_CLASS, over=RECENTLY)
    every = rate(names.FEATURE_ROWS, matchers=_CLASS, over=RECENTLY)
    confidence, rows = rate(names.CONFIDENCE_SUM, over=RECENTLY), rate(names.ROWS, over=RECENTLY)
    return [
        graph(
            "Predicted classes",
            "Share of each class among a version's predictions, over five minutes. Both versions see the same inputs, "
            "so lines of one class that part are the versions' own difference.",
            "percentunit",
            [Query(f"{classes} / ignoring (bin) group_left () ({every})", "{{bin}}")],
            min=0,
            max=1,
        ),
        graph(
            "Confidence",
            "Mean probability of the predicted class, over five minutes.",
            "percentunit",
            [Query(f"{confidence} / {rows}")],
            min=0,
            max=1,
        ),
    ]


def _shadow() -> list[Json]:
    agreed = rate(names.SHADOW_ROWS, over=RECENTLY, matchers=['outcome="agree"'])
    return [
        graph(
            "Agreement",
            "Share of the copied rows that the watched version puts into the class that the user was told.",
            "percentunit",
            [Query(f"{agreed} / {rate(names.SHADOW_ROWS, over=RECENTLY)}")],
            min=0,
            max=1,
        ),
        graph(
            "Copied requests",
            "Copies that the watched version answered to nobody, by HTTP status code.",
            "reqps",
            [Query(rate(names.SHADOW_REQUESTS, "code"), "{{code}}")],
            min=0,
        ),
        graph(
            "p99 of copies",
            "Latency of the watched version on copied requests.",
            "s",
            [Query(quantile(0.99, names.SHADOW_SECONDS))],
            min=0,
        ),
    ]


def _share_of_traffic(over: str = RECENTLY) -> str:
    ours = rate(names.EDGE_REQUESTS, over=over)
    every = f'sum by (model) (rate({names.EDGE_REQUESTS.name}{{model=~"$model"}}[{over}]))'
    return f"{ours} / ignoring (version) group_left () ({every})"


def _refused(over: str = "$__rate_interval") -> str:
    every = rate(names.REQUESTS, over=over)
    refused = rate(names.REQUESTS, over=over, matchers=['outcome="refused"'])
    return f"({refused} or 0 * {every}) / {every}"
