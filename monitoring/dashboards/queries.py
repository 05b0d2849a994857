"""PromQL for panels: of the models and versions that the person has chosen, added up over nodes.

`$model`, `$version` and the like are variables of the dashboard. Grafana chooses `$__rate_interval`, the shortest
window that holds enough scrapes, and `$__range`, the time that is shown.
"""

from collections.abc import Sequence

from monitoring.names import VERSION_LABELS, Metric

CHOSEN = 'model=~"$model",version=~"$version"'


def chosen(series: str, *matchers: str) -> str:
    """The chosen versions' part of a series, narrowed by further matchers."""
    return f"{series}{{{','.join((CHOSEN, *matchers))}}}"


def by_version(expression: str, *labels: str, operator: str = "sum") -> str:
    """One value for each version, and for each value of further labels."""
    return f"{operator} by ({', '.join((*VERSION_LABELS, *labels))}) ({expression})"


def now(metric: Metric, *labels: str, matchers: Sequence[str] = (), operator: str = "sum") -> str:
    """A gauge."""
    return by_version(chosen(metric.name, *matchers), *labels, operator=operator)


def rate(metric: Metric, *labels: str, over: str = "$__rate_interval", matchers: Sequence[str] = ()) -> str:
    """A counter's growth in a second."""
    return by_version(f"rate({chosen(metric.name, *matchers)}[{over}])", *labels)


def increase(metric: Metric, *labels: str, over: str = "$__range", matchers: Sequence[str] = ()) -> str:
    """A counter's growth over a window."""
    return by_version(f"increase({chosen(metric.name, *matchers)}[{over}])", *labels)


def buckets(histogram: Metric, *labels: str, over: str = "$__rate_interval") -> str:
    """How fast each bucket of a histogram grows."""
    return by_version(f"rate({chosen(histogram.name + '_bucket')}[{over}])", "le", *labels)


def quantile(part: float, histogram: Metric, *labels: str, over: str = "$__rate_interval") -> str:
    """The value that this part of a histogram's observations stays below."""
    return f"histogram_quantile({part:g}, {buckets(histogram, *labels, over=over)})"


def mean(histogram: Metric) -> str:
    sums, counts = (
        by_version(f"rate({chosen(histogram.name + part)}[$__rate_interval])") for part in ("_sum", "_count")
    )
    return f"{sums} / {counts}"


def recorded(series: str, *labels: str, matchers: Sequence[str] = ()) -> str:
    """A series that the recording rules have computed already for each version."""
    return by_version(chosen(series, *matchers), *labels, operator="max")
