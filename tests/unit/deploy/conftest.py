"""A Prometheus that watched two nodes serve flights for eight hours: version 3, and a few rows of version 4."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploy.prometheus import Prometheus
from monitoring.names import LATENCY_BUCKETS_SECONDS
from tests.unit.deploy.history import History, Traffic, real_prometheus

MINUTES = 480
ROWS_A_MINUTE = 100
"""On each node."""
TENTHS = {**{f"{place:02d}": 500 for place in range(10)}, "missing": 0}
NASTY = "<img src=x>"
"""A category whose name must stay a name on a page."""
FEATURES = [
    Traffic("dep_delay", "number", TENTHS, {**dict.fromkeys(list(TENTHS)[:9], 0.07), "09": 0.32, "missing": 0.05}),
    Traffic("distance", "number", TENTHS, dict.fromkeys(list(TENTHS)[:10], 0.1)),
    Traffic(
        "carrier",
        "category",
        {"AA": 2500, "UA": 800, NASTY: 1700, "other": 0, "missing": 0},
        {"AA": 0.5, "UA": 0.02, NASTY: 0.48},
    ),
    # Moved like the carrier, and such hours were among the training rows.
    Traffic("origin", "category", {"EWR": 2500, "JFK": 2500, "other": 0, "missing": 0}, {"EWR": 0.8, "JFK": 0.2}),
    Traffic("class", "prediction", {"late": 1000, "on time": 4000, "missing": 0}, {"late": 0.2, "on time": 0.8}),
]  # fmt: skip


@dataclass(frozen=True)
class Fleet:
    """What was written, and who tells it."""

    prometheus: Prometheus
    end: float


@pytest.fixture(scope="session")
def fleet(short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]) -> Iterator[Fleet]:
    end = time.time() // 60 * 60
    directory = short_directory()
    _history(end).write(directory)
    with real_prometheus(directory, free_ports(1)[0]) as url:
        yield Fleet(Prometheus(url), end)


def _history(end: float) -> History:
    history = History(end, MINUTES)
    steady = ROWS_A_MINUTE * np.arange(MINUTES + 1, dtype=np.float64)
    # The second node was restarted two hours ago, and its counters with it.
    restarted = np.where(np.arange(MINUTES + 1) < 360, steady, steady - steady[359])
    history.add_traffic("flights", 3, steady, FEATURES, "a")
    history.add_traffic("flights", 3, restarted, FEATURES, "b")
    history.add_traffic("flights", 4, steady // 1000, FEATURES, "a")
    for instance, rows in (("a", steady), ("b", restarted)):
        one = {"model": "flights", "version": "3", "instance": instance}
        for code, share in (("200", 0.9), ("422", 0.08), ("503", 0.02)):
            history.add("shipway_edge_requests_total", rows * share, **one, code=code)
        for bound in LATENCY_BUCKETS_SECONDS:
            history.add("shipway_edge_request_seconds_bucket", rows * min(bound / 0.1, 1), **one, le=f"{bound:g}")
        history.add("shipway_edge_request_seconds_bucket", rows, **one, le="+Inf")
        for predicted, actual, share in (
            ("late", "late", 0.1),
            ("late", "on time", 0.05),
            ("on time", "on time", 0.05),
        ):
            history.add("shipway_feedback_total", rows * share, **one, predicted=predicted, actual=actual)
        history.add("shipway_reference_accuracy", 0.9, **one)
        for window, excess in (("1h", 0.2), ("6h", 0.7), ("1d", 0.2)):
            its = {"feature": "origin", "kind": "category", "window": window}
            history.add("shipway_feature_usual_psi_excess", excess, **one, **its)
        for dimension in range(8):
            history.add("shipway_rff_sum_total", rows * 4.2, **one, dimension=f"{dimension:02d}")
        history.add("shipway_rff_reference_rows", 5000, **one)
    firing = np.where((np.arange(MINUTES + 1) >= 300) & (np.arange(MINUTES + 1) < 360), 1.0, np.nan)
    history.add("ALERTS", firing, alertname="FeatureDrift", alertstate="firing", model="flights", feature="dep_delay")
    history.add("ALERTS", 1.0, alertname="SomebodyElses", alertstate="firing")
    return history
