"""Rules as values, and the words that all groups share. The metric families' names come from `monitoring.names`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monitoring.config import Duration, Severity, seconds
from monitoring.names import Metric

VERSION = "model, version"
INTERVAL: Duration = "1m"
"""How often rules are evaluated; sums over recorded samples count on it."""
SAMPLED: Duration = "10m"
"""Long windows are sums of increases over this time, recorded at every interval: raw counters are read once."""


@dataclass(frozen=True)
class Record:
    name: str
    expr: str

    def as_dict(self, _: str) -> dict[str, Any]:
        return {"record": self.name, "expr": self.expr}


@dataclass(frozen=True)
class Alert:
    """`description` says the value, as a template of Prometheus; the runbook has a section of the alert's name."""

    name: str
    expr: str
    hold: Duration | None
    severity: Severity
    summary: str
    description: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self, runbook: str) -> dict[str, Any]:
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.hold} if self.hold else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated one after the other; later ones read what earlier ones recorded just now."""

    name: str
    rules: tuple[Record | Alert, ...]
    interval: Duration = INTERVAL

    def as_dict(self, runbook: str) -> dict[str, Any]:
        return {"name": self.name, "interval": self.interval, "rules": [rule.as_dict(runbook) for rule in self.rules]}


def increase(metric: Metric, window: Duration, *, by: str, where: str = "", part: str = "") -> str:
    """Growth of a counter over `window`, resets seen through, and only then summed over nodes.

    `part` is a histogram's `_bucket` or `_count`.
    """
    return f"sum by ({by}) (increase({metric.name}{part}{where}[{window}]))"


def total(sampled: str, window: Duration, *, every: Duration = SAMPLED, ago: Duration | None = None) -> str:
    """What a counter grew in `window`, `ago` or now, from a recorded increase over `every`.

    A sum, because an average times the window would invent rows for a version that is younger. One second less than
    the window, because Prometheus 2 counts a sample at its very start and Prometheus 3 does not.
    """
    offset = f" offset {ago}" if ago else ""
    return f"sum_over_time({sampled}[{seconds(window) - 1}s]{offset}) / {seconds(every) // seconds(INTERVAL)}"


def summed(series: str, window: Duration) -> str:
    """What a counter grew in a longer window, from `SERIES:10m` or, over a week, from `SERIES:1h`.

    That is to the last full hour, and a sixtieth of the samples. Before a version's first, what there is of it.
    """
    if window != "7d":
        return total(f"{series}:{SAMPLED}", window)
    return f"sum_over_time({series}:1h[{seconds(window) - 1}s:1h])\nor {series}:1h"


def wilson_hilferty(ratio: str, degrees: str) -> str:
    """The standard normal value of chi-square over its degrees of freedom (Wilson and Hilferty, 1931)."""
    return f"""\
(
  ({ratio}) ^ (1 / 3)
  - (1 - 2 / (9 * {degrees}))
)
/ sqrt(2 / (9 * {degrees}))"""
