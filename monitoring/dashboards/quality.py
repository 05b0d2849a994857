"""The dashboard `quality`: how often each version was right, as far as labels have come."""

from monitoring import names
from monitoring.config import Config, Quality
from monitoring.dashboards.blocks import (
    Column,
    Json,
    Query,
    Section,
    dashboard,
    graph,
    matrix,
    query_variable,
    table,
)
from monitoring.dashboards.queries import increase, now, rate, recorded


def quality(config: Config) -> Json:
    ready = names.VERSION_READY.name
    return dashboard(
        "quality",
        "Shipway: quality",
        "Accuracy, precision, recall and F1 of each version, from the labels that clients send as feedback.",
        [
            query_variable("model", f"label_values({ready}, model)", several=False),
            query_variable("version", f'label_values({ready}{{model=~"$model"}}, version)', several=True, newest=True),
        ],
        [
            Section("Which version is worse?", [[_versions(config.quality)]], height=7),
            Section("Over time", [[_accuracy()], [_macro_f1(), _expected()]], height=9),
            Section("Classes", [[_classes(), _confusion()], [_over_time(name) for name in _BY_CLASS]], height=9),
            Section("Labels", [[_coverage(), _labelled()], [_feedback(), _kept()]]),
        ],
    )


_BY_CLASS = {
    "precision": "Of the rows predicted to be of a class, the share that were.",
    "recall": "Of the rows that are of a class, the share that were found.",
    "f1": "The harmonic mean of precision and recall.",
}


def _daily(name: str, *labels: str) -> str:
    return recorded(f"shipway_quality:{name}:1d", *labels)


def _versions(limits: Quality) -> Json:
    return table(
        "Versions",
        "One line for each version, over the last day. The true accuracy lies between the bounds, chance aside. "
        "Below what validation gave even at the upper bound: the version has lost quality.",
        {
            "Accuracy": Column(_daily("accuracy"), "percentunit"),
            "At least": Column(_daily("accuracy_low"), "percentunit"),
            "At most": Column(_daily("accuracy_high"), "percentunit"),
            "At registration": Column(now(names.REFERENCE_ACCURACY, operator="max"), "percentunit"),
            "Lost": Column(
                f"{now(names.REFERENCE_ACCURACY, operator='max')} - {_daily('accuracy_high')}",
                "percentunit",
                ((0.0001, "yellow"), (max(limits.accuracy_drop, 0.001), "red")),
            ),
            "Macro F1": Column(_daily("macro_f1"), "percentunit", ((limits.macro_f1, "green"),), base="red"),
            "Expected accuracy": Column(_daily("expected_accuracy"), "percentunit"),
            "Labelled rows": Column(_daily("labelled"), "short"),
            "Coverage": Column(_daily("label_coverage"), "percentunit"),
        },
        sort_by="Lost",
    )


def _accuracy() -> Json:
    return graph(
        "Accuracy",
        "Share of the labelled rows of the last day that were right, with the bounds that chance allows (Wilson), and "
        "what validation gave when the version was registered.",
        "percentunit",
        [
            Query(_daily("accuracy")),
            Query(_daily("accuracy_low"), "at least"),
            Query(_daily("accuracy_high"), "at most"),
            Query(now(names.REFERENCE_ACCURACY, operator="max"), "at registration"),
        ],
        max=1,
    )


def _macro_f1() -> Json:
    return graph(
        "Macro F1",
        "The mean of the classes' F1: a rare class counts as much as a frequent one.",
        "percentunit",
        [Query(_daily("macro_f1"))],
        max=1,
    )


def _expected() -> Json:
    return graph(
        "Expected accuracy",
        "The mean probability of the predicted class, known without labels. It equals the accuracy if probabilities "
        "are calibrated, and does not see when the meaning of the classes changes.",
        "percentunit",
        [Query(_daily("expected_accuracy"), "expected"), Query(_daily("accuracy"), "found")],
        max=1,
    )


def _classes() -> Json:
    return table(
        "Scores of the classes",
        "One line for each class of each version, over the last day.",
        {name.capitalize(): Column(_daily(name, "class"), "percentunit") for name in _BY_CLASS},
        sort_by="F1",
    )


def _over_time(name: str) -> Json:
    return graph(
        f"{name.capitalize()} by class",
        _BY_CLASS[name],
        "percentunit",
        [Query(_daily(name, "class"), "{{class}}")],
        min=0,
        max=1,
    )


def _confusion() -> Json:
    return matrix(
        "Confusion",
        "Labelled rows in the time that is shown: a row for each actual class, a column for each predicted one. "
        "Choose one version; of several, the rows are added up.",
        f"sum by (predicted, actual) ({increase(names.FEEDBACK, 'predicted', 'actual')})",
        row="actual",
        column="predicted",
        kind="table",
        unit="short",
    )


def _coverage() -> Json:
    return graph(
        "Coverage",
        "Share of the predicted rows of the last day for which a label has come. Labels often come late.",
        "percentunit",
        [Query(_daily("label_coverage"))],
        min=0,
    )


def _labelled() -> Json:
    return graph(
        "Labelled rows", "In the last day. Few rows make wide bounds.", "short", [Query(_daily("labelled"))], min=0
    )


def _feedback() -> Json:
    labels = names.FEEDBACK_LABELS.name
    return graph(
        "Labels sent",
        "All labels that clients sent: joined to their prediction, repeated (the first one counts), unknown (no such "
        "prediction, or too old), or refused.",
        "cps",
        [Query(f"sum by (outcome) (rate({labels}[$__rate_interval]))", "{{outcome}}", whose="")],
        min=0,
    )


def _kept() -> Json:
    return graph(
        "Predictions kept for labels",
        "Rows that may still get a label. A dropped one came faster than the store can write; its label is unknown.",
        "rowsps",
        [Query(rate(names.PREDICTIONS_KEPT, "outcome"), "{{outcome}}")],
        min=0,
    )
