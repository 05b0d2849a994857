"""The dashboard `drift`: which features no longer look like the training data, by how much, and how."""

from typing import get_args

from monitoring import names
from monitoring.config import Config, Drift, DriftWindow
from monitoring.dashboards.blocks import (
    Column,
    Json,
    Query,
    Section,
    custom_variable,
    dashboard,
    graph,
    matrix,
    query_variable,
    status_over_time,
    table,
)
from monitoring.dashboards.queries import by_version, chosen, increase, recorded

WINDOWS: tuple[DriftWindow, ...] = get_args(DriftWindow)

Steps = tuple[tuple[float, str], ...]

_KIND = 'kind=~"$kind"'
_FEATURE = f'feature="$feature",{_KIND}'
_DISPERSION = 'max by (model, feature) (shipway_feature:dispersion{model=~"$model",kind=~"$kind"})'


def drift(config: Config) -> Json:
    effect, surprise = _effect_steps(config.drift), _surprise_steps(config.drift)
    reference = names.REFERENCE_ROWS.name
    model = 'model=~"$model"'
    return dashboard(
        "drift",
        "Shipway: drift",
        "What comes in and goes out now, against the distribution that each version was trained on.",
        [
            query_variable("model", f"label_values({reference}, model)", several=False),
            query_variable("version", f"label_values({reference}{{{model}}}, version)", several=True, newest=True),
            query_variable("kind", f"label_values({reference}{{{model}}}, kind)", several=True),
            query_variable("feature", f'label_values({reference}{{{model},kind=~"$kind"}}, feature)', several=False),
            custom_variable("window", WINDOWS, "1h"),
        ],
        [
            Section("Which version sees something else?", [[_versions(effect, surprise)]], height=6),
            Section("Where?", [[_most_drifted(effect, surprise)]], height=10),
            Section("Every feature over time", [[_effect(effect)], [_surprise(surprise)]], height=12),
            Section("One feature: $feature", [[_shares(), _shares_over_time()]], height=10),
            Section("Missing values", [[_missing(), _missing_surprise()]]),
            Section("The inputs as a whole, and how much was seen", [[_rff(), _rows(), _dispersion()]]),
        ],
    )


def _effect_steps(drift: Drift) -> Steps:
    """The alerts' limits, which are lower the longer the window is."""
    limits = [drift.tiers[window].effect for window in ("6h", "1h", "10m")]
    return tuple(zip(limits, ("yellow", "orange", "red"), strict=True))


def _surprise_steps(drift: Drift) -> Steps:
    return (0.6 * drift.z, "yellow"), (drift.z, "red")


def _versions(effect: Steps, surprise: Steps) -> Json:
    largest = {
        what: recorded(f"shipway_feature:{what}:$window", matchers=[_KIND]) for what in ("psi_excess", "z", "rows")
    }
    firing = chosen("ALERTS", 'alertstate="firing"', 'alertname=~"FeatureDrift|PredictionDrift|RffDrift|MissingValues"')
    return table(
        "Versions",
        "One line for each version: the alerts about drift that fire now, and its most moved feature, in the chosen "
        "window. Two versions that both moved see other inputs; one alone was trained on something else.",
        {
            "Alerts": Column(f"count by (model, version) ({firing}) or 0 * {largest['rows']}", "none", ((1, "red"),)),
            "Largest PSI excess": Column(largest["psi_excess"], "short", effect),
            "Largest z": Column(largest["z"], "short", surprise),
            "All inputs together, z": Column(recorded("shipway_rff:z:$window"), "short", surprise),
            "Rows": Column(largest["rows"]),
        },
        sort_by="Largest PSI excess",
    )


def _most_drifted(effect: Steps, surprise: Steps) -> Json:
    def column(series: str, steps: Steps = ()) -> Column:
        return Column(_of_features(series), "short", steps)

    return table(
        "Most drifted features",
        "PSI excess is how far a feature moved (the population stability index without what chance alone gives), z is "
        "how sure that is, in standard deviations. Both together are drift; an alert wants enough rows, too.",
        {
            "PSI excess": column("psi_excess", effect),
            "z": column("z", surprise),
            "Missing values, z": column("missing_z", surprise),
            "PSI": column("psi"),
            "Rows": column("rows"),
            "Effective rows": column("rows_effective"),
        },
        sort_by="PSI excess",
    )


def _effect(steps: Steps) -> Json:
    return status_over_time(
        "How far: PSI excess",
        "A line for each feature and version. Green is as in training; yellow, orange and red are the limits of the "
        "alerts over 6 hours, 1 hour and 10 minutes.",
        Query(_of_features("psi_excess"), "{{version}}", whose="{{feature}}"),
        steps,
    )


def _surprise(steps: Steps) -> Json:
    return status_over_time(
        "How sure: z",
        "The same features. Red is beyond the alerts' limit: not chance. Many rows make small moves sure, too.",
        Query(_of_features("z"), "{{version}}", whose="{{feature}}"),
        steps,
    )


def _shares() -> Json:
    live = increase(names.FEATURE_ROWS, "bin", over="$window", matchers=[_FEATURE])
    trained = by_version(chosen(names.REFERENCE_ROWS.name, _FEATURE), "bin", operator="max")
    of = 'label_replace({}, "of", "$1 {}", "version", "(.*)")'
    return matrix(
        "Reference against live",
        "Share of each bin in training and in traffic of the chosen window. Bins of numbers are the deciles of the "
        "training data, from low to high.",
        f"{of.format(_of_all(trained), 'trained')} or {of.format(_of_all(live), 'live')}",
        row="bin",
        column="of",
        kind="barchart",
        unit="percentunit",
    )


def _shares_over_time() -> Json:
    live = increase(names.FEATURE_ROWS, "bin", over="$window", matchers=[_FEATURE])
    return graph(
        "Live over time",
        "Share of each bin of the feature in traffic, over the chosen window that ends at each point.",
        "percentunit",
        [Query(_of_all(live), "{{bin}}")],
        stacked=True,
        min=0,
    )


def _missing() -> Json:
    absent = increase(names.FEATURE_ROWS, "feature", "kind", over="$window", matchers=[_KIND, 'bin="missing"'])
    return graph(
        "Share missing",
        "Share of a feature's rows without a value, in traffic of the chosen window.",
        "percentunit",
        [Query(f"{absent} / {_of_features('rows')}", "{{feature}}")],
        min=0,
    )


def _missing_surprise() -> Json:
    return graph(
        "More missing than in training: z",
        "In standard deviations, up only: values are lost somewhere before the model.",
        "short",
        [Query(_of_features("missing_z"), "{{feature}}")],
    )


def _rff() -> Json:
    return graph(
        "All inputs together: z",
        "Distance of the inputs from the training data by random Fourier features, in standard deviations: it sees "
        "what no single feature shows. For models with such a profile (pictures, texts).",
        "short",
        [Query(recorded(f"shipway_rff:z:{window}"), window) for window in WINDOWS],
    )


def _rows() -> Json:
    series = (("rows", "rows"), ("rows_effective", "effective"))
    return graph(
        "Rows",
        "Rows seen in the chosen window, and how many independent ones they are worth: repeated rows count for less.",
        "short",
        [
            Query(by_version(chosen(f"shipway_feature:{name}:$window", _KIND), operator="max"), words)
            for name, words in series
        ],
        min=0,
    )


def _dispersion() -> Json:
    return graph(
        "Dispersion",
        "How much more the features vary from hour to hour than independent rows would: 1 is none. Rows are divided "
        "by it. It belongs to the model, so that a new version has it at once.",
        "short",
        [Query(_DISPERSION, "{{feature}}", whose="{{model}}")],
        min=0,
    )


def _of_features(series: str) -> str:
    return recorded(f"shipway_feature:{series}:$window", "feature", "kind", matchers=[_KIND])


def _of_all(rows: str) -> str:
    """What part each bin has of a version's rows."""
    return f"{rows} / on (model, version) group_left () sum by (model, version) ({rows})"
