"""Models whose random Fourier features lie on both sides of every threshold, at two replicas."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monitoring.names import RFF_REFERENCE_ROWS, RFF_SUM, ROWS
from tests.rules.drift_scenarios import EVERY, TIERS
from tests.rules.formulas import FloatArray, wilson_hilferty
from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

PROFILE_ROWS = 5000.0
PATTERN = np.array([1.0, -1.0, 0.5, -0.5, 1.2])
"""Which way each dimension moves."""
EFFECT, Z, LEAST_ROWS = 0.01, 5.0, 100.0


@dataclass(frozen=True)
class Rff:
    """Means of whitened features over `rows` rows, [dimensions]."""

    means: FloatArray
    rows: float
    dispersion: float

    @property
    def effective(self) -> float:
        return self.rows / self.dispersion

    @property
    def chance(self) -> float:
        return 1 / self.effective + 1 / PROFILE_ROWS

    @property
    def excess(self) -> float:
        return float(np.mean(self.means**2)) - self.chance

    @property
    def z(self) -> float:
        return wilson_hilferty(float(np.sum(self.means**2)) / self.chance, len(self.means))


def _moved(excess: float, effective: float, dispersion: float = 2.0) -> Rff:
    square = excess + 1 / effective + 1 / PROFILE_ROWS
    return Rff(PATTERN * np.sqrt(square / np.mean(PATTERN**2)), effective * dispersion, dispersion)


MODELS = {
    "far_enough": _moved(EFFECT * 1.2, 4000),
    "not_far_enough": _moved(EFFECT / 1.2, 4000),
    "sure_enough": _moved(EFFECT * 1.2, 1050),
    "not_sure_enough": _moved(EFFECT * 1.2, 600),
    "rows_enough": _moved(0.3, 120, dispersion=1.5),
    "not_rows_enough": _moved(0.3, 80, dispersion=1.5),
}


def scenarios() -> Iterator[Scenario]:
    assert [Z < MODELS[name].z < Z * 1.5 for name in ("sure_enough", "far_enough")] == [True, False]
    assert Z / 1.5 < MODELS["not_sure_enough"].z < Z
    for window, (minutes, _, hold) in TIERS.items():
        yield _tier(window, minutes, hold)
    yield _reference()
    yield _dispersion()


def _tier(window: str, minutes: int, hold: int) -> Scenario:
    every = EVERY[window]
    sampled_over = "1h" if every == 60 else "10m"
    last = minutes + hold + 10
    last += -last % every
    series: dict[tuple[str, Labels], Samples] = {}
    for model, rff in MODELS.items():
        its = {"model": model, "version": "3"}
        series["shipway_rff:reference_rows", labels(**its)] = constant(PROFILE_ROWS, last)
        series["shipway_rff:dispersion", labels(model=model)] = constant(rff.dispersion, last)
        grows = {(ROWS.name, f"shipway_version:rows:{sampled_over}", labels(**its)): rff.rows / minutes}
        for dimension, mean in enumerate(rff.means):
            key = (RFF_SUM.name, f"shipway_rff:sum:{sampled_over}", labels(**its, dimension=str(dimension)))
            grows[key] = rff.rows * (mean + 4) / minutes
        for (raw, sampled, series_labels), per_minute in grows.items():
            if every > 1:
                series[sampled, series_labels] = constant(per_minute * every, last)
                continue
            for node, part, reset in (("a", 0.3, None), ("b", 0.7, last - 5)):
                series[raw, (*series_labels, ("instance", node))] = counter(per_minute * part, last, reset)
    return Scenario(f"rff {window}", last, series, _records(window), {f"RffDrift {window}": _alert()}, every)


def _records(window: str) -> dict[str, dict[Labels, float]]:
    def each(score: str) -> dict[Labels, float]:
        return {labels(model=model, version="3"): float(getattr(rff, score)) for model, rff in MODELS.items()}

    sums = {
        labels(model=model, version="3", dimension=str(dimension)): float(rff.rows * (mean + 4))
        for model, rff in MODELS.items()
        for dimension, mean in enumerate(rff.means)
    }
    return {
        f"shipway_version:rows:{window}": each("rows"),
        f"shipway_rff:sum:{window}": sums,
        f"shipway_rff:rows_effective:{window}": each("effective"),
        f"shipway_rff:shift_excess:{window}": each("excess"),
        f"shipway_rff:z:{window}": each("z"),
    }


def _alert() -> Fires:
    fires = {
        labels(model=model, version="3"): rff.excess > EFFECT and rff.z > Z and rff.effective >= LEAST_ROWS
        for model, rff in MODELS.items()
    }
    return Fires(
        frozenset(its for its, yes in fires.items() if yes), frozenset(its for its, yes in fires.items() if not yes)
    )


def _reference() -> Scenario:
    its = {"model": "m", "version": "3"}
    series = {(RFF_REFERENCE_ROWS.name, labels(**its, instance=node)): constant(PROFILE_ROWS, 2) for node in ("a", "b")}
    return Scenario("rff reference", 2, series, {"shipway_rff:reference_rows": {labels(**its): PROFILE_ROWS}})


def _dispersion() -> Scenario:
    """Two models over four hours: one whose means jump from hour to hour, one that hardly varies."""
    by_hour = {
        "bursty": (np.array([[0.5, 0.1], [-0.3, 0.6], [0.2, -0.4], [0.9, 0.3]]), np.array([120.0, 80, 150, 90])),
        "steady": (np.array([[0.01, 0.0], [0.0, 0.01], [0.01, 0.0], [0.0, 0.0]]), np.array([100.0, 100, 110, 120])),
    }
    series: dict[tuple[str, Labels], Samples] = {}
    lag, dispersion = {}, {}
    for model, (means, rows) in by_hour.items():
        its = {"model": model, "version": "3"}
        series["shipway_version:rows:1h", labels(**its)] = [(count, 60) for count in rows]
        for dimension in range(2):
            sums = rows * (means[:, dimension] + 4)
            series["shipway_rff:sum:1h", labels(**its, dimension=str(dimension))] = [(value, 60) for value in sums]
        gaps = np.mean(np.diff(means, axis=0) ** 2, axis=1) / (1 / rows[1:] + 1 / rows[:-1])
        lag[labels(**its)] = float(gaps[-1])
        dispersion[labels(model=model)] = max(1.0, float(np.mean(gaps)))
    return Scenario(
        "rff dispersion", 180, series,
        {"shipway_rff:lag_dispersion:1h": lag, "shipway_rff:dispersion": dispersion},
    )  # fmt: skip
