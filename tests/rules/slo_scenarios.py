"""Versions whose requests fail or are slow a little more, or a little less, often than each pair of windows allows."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from monitoring.names import EDGE_REQUESTS, EDGE_SECONDS, REQUESTS
from tests.rules.formulas import FloatArray
from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

# Long and short window in minutes, factor, and how long it must last: the product's defaults, written down once more.
BURNS = {"1h": (60, 5, 14.4, 2), "6h": (360, 30, 6.0, 15), "1d": (1440, 120, 3.0, 60), "3d": (4320, 360, 1.0, 180)}
WINDOWS = {"5m": 5, "30m": 30, "1h": 60, "2h": 120, "6h": 360, "1d": 1440, "3d": 4320}
BUDGETS = {"errors": 0.001, "slow": 0.01}
LEAST_BAD = 10
LAST, EVERY = 4320 + 240, 30
OF = {"errors": "shipway_slo:requests:5m", "slow": "shipway_slo:timed:5m"}


def scenarios() -> Iterator[Scenario]:
    yield _counts()
    for name in BUDGETS:
        yield _burns(name)


def _counts() -> Scenario:
    """Two nodes, one of which restarts; an explainer, of which nothing is promised; versions without any error."""
    series: dict[tuple[str, Labels], Samples] = {}
    last = 12
    for model in ("m", "m-explainer", "flawless"):
        for node, reset in (("a", None), ("b", 9)):
            its = {"model": model, "version": "3", "instance": node}
            codes = {"200": 50.0, "404": 6.0, "503": 3.0, "504": 1.0}
            for code, per_minute in codes.items():
                if model != "flawless" or code < "500":
                    series[EDGE_REQUESTS.name, labels(**its, code=code)] = counter(per_minute, last, reset)
            for protocol in ("oip_grpc", "oip_http"):
                for outcome, per_minute in {"ok": 20.0, "refused": 5.0, "failed": 2.0, "expired": 0.5}.items():
                    if model != "flawless" or outcome == "ok":
                        key = labels(**its, protocol=protocol, outcome=outcome)
                        series[REQUESTS.name, key] = counter(per_minute, last, reset)
            for bound, per_minute in {"0.1": 30.0, "0.25": 52.0, "0.5": 57.0, "+Inf": 60.0}.items():
                series[f"{EDGE_SECONDS.name}_bucket", labels(**its, le=bound)] = counter(per_minute, last, reset)
            series[f"{EDGE_SECONDS.name}_count", labels(**its)] = counter(60.0, last, reset)
    series[EDGE_REQUESTS.name, labels(model="idle", version="3", instance="a", code="200")] = constant(8, last)
    m, flawless, idle = (labels(model=model, version="3") for model in ("m", "flawless", "idle"))
    return Scenario(
        "slo counts", last, series,
        {
            "shipway_slo:requests:5m": {m: 600.0, flawless: 560.0, idle: 0.0},
            "shipway_slo:errors:5m": {m: 10 * (4.0 + 2.5), flawless: 0.0, idle: 0.0},
            "shipway_slo:timed:5m": {m: 600.0, flawless: 600.0},
            "shipway_slo:slow:5m": {m: 80.0, flawless: 80.0},
        },
    )  # fmt: skip


def _burns(name: str) -> Scenario:
    budget = BUDGETS[name]
    bad: dict[str, FloatArray] = {}
    requests: dict[str, float] = {}
    for window, (long, short, factor, _) in BURNS.items():
        limit = factor * budget
        plenty = 1e4
        requests |= dict.fromkeys((f"{window}_{case}" for case in ("burns", "burnt", "starts")), plenty)
        bad[f"{window}_burns"] = np.full(LAST + 1, plenty * limit * 1.2)
        # Much before and little lately; and the other way round. Averages over the windows are what counts.
        bad[f"{window}_burnt"] = _steps(plenty * limit * 3, plenty * limit / 1.2, short)
        bad[f"{window}_starts"] = _steps(0.0, plenty * limit / 1.2 * long / (2 * short), 2 * short)
        for case, times in (("bad_enough", 1.2), ("too_few_bad", 1 / 1.2)):
            bad[f"{window}_{case}"] = np.full(LAST + 1, LEAST_BAD * times * 5 / long)
            requests[f"{window}_{case}"] = LEAST_BAD * times * 5 / long / (limit * 3)
    series: dict[tuple[str, Labels], Samples] = {}
    for version, values in bad.items():
        series[f"shipway_slo:{name}:5m", _its(version)] = _runs(values)
        series[OF[name], _its(version)] = constant(requests[version], LAST)
    ratios = {
        window: {version: float(values[-minutes:].mean() / requests[version]) for version, values in bad.items()}
        for window, minutes in {**WINDOWS, "5m": 1}.items()
    }
    return Scenario(
        f"slo {name}",
        LAST,
        series,
        {
            f"shipway_slo:{name}:ratio_{window}": {_its(version): ratio for version, ratio in by_version.items()}
            for window, by_version in ratios.items()
        },
        {_alert(name, window): _fires(name, window, bad, ratios) for window in BURNS},
        EVERY,
    )


def _its(version: str) -> Labels:
    return labels(model="m", version=version)


def _steps(before: float, lately: float, minutes: int) -> FloatArray:
    return np.array([before] * (LAST + 1 - minutes) + [lately] * minutes)


def _runs(values: FloatArray) -> list[tuple[float | None, int]]:
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(float(values[start]), end - start) for start, end in pairwise(starts)]


def _alert(name: str, window: str) -> str:
    return f"{'AvailabilityBurn' if name == 'errors' else 'LatencyBurn'} {window}"


def _fires(name: str, window: str, bad: dict[str, FloatArray], ratios: dict[str, dict[str, float]]) -> Fires:
    long, short, factor, _ = BURNS[window]
    limit = factor * BUDGETS[name]
    brief = next(one for one, minutes in WINDOWS.items() if minutes == short)
    fires: set[Labels] = set()
    silent: set[Labels] = set()
    for version, values in bad.items():
        burns = ratios[window][version] > limit and ratios[brief][version] > limit
        (fires if burns and values[-long:].sum() / 5 >= LEAST_BAD else silent).add(_its(version))
    return Fires(frozenset(fires), frozenset(silent))
