"""Features on both sides of every threshold of a tier, at two replicas, one of which restarts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from monitoring.names import FEATURE_ROWS, REFERENCE_ROWS, USUAL_PSI_EXCESS
from tests.rules.formulas import Drift, FloatArray
from tests.rules.promtool import Fires, Labels, Samples, Scenario, constant, counter, labels

PROFILE = np.array([475.0] * 10 + [250.0])
BINS = [*(f"{index:02d}" for index in range(10)), "missing"]
# Window in minutes, effect, and how long it must last: the product's defaults, written down once more.
TIERS = {
    "10m": (10, 0.25, 2),
    "1h": (60, 0.10, 5),
    "6h": (360, 0.05, 15),
    "1d": (1440, 0.03, 30),
    "7d": (10080, 0.02, 60),
}
EVERY = {"10m": 1, "1h": 1, "6h": 10, "1d": 10, "7d": 60}
"""Minutes between evaluations: of what is counted, every one; of what was recorded before, as often as that is read."""
USUAL = 2.0
"""What is usual of a feature that has it, in effects."""
MISSING_SHARE, Z, ROWS = 0.05, 5.0, 100.0
Build = Callable[[float, float, float], Drift]
Score = Callable[[Drift], float]
DISPERSIONS = {"number": 2.0, "category": 3.0, "output": 1.0, "prediction": 1.5}


def scenarios() -> Iterator[Scenario]:
    for window in TIERS:
        made = list(features(TIERS[window][1]).items())
        # promtool takes 10,000 samples at once, and a week of hours has 168 of each bin.
        at_once = 4 if window == "7d" else len(made)
        for number, first in enumerate(range(0, len(made), at_once), start=1):
            yield _tier(f"drift {window} {number}", window, dict(made[first : first + at_once]))
    yield _reference()
    yield _dispersion()


@cache
def features(effect: float) -> dict[tuple[str, str], Drift]:
    """Features by name and kind: the inputs and the predictions shift, and one category is missing more often."""
    return {
        **_cases("moved", ("number",) * 6, effect, _shifted, lambda drift: drift.psi_excess, lambda drift: drift.z),
        **_cases("predicted", ("output", "prediction") * 3, effect, _shifted, lambda d: d.psi_excess, lambda d: d.z),
        **_unusual("moved", ("number", "category"), effect),
        **_unusual("predicted", ("output", "prediction"), effect),
        **_cases(
            "missing", ("category",) * 6, MISSING_SHARE, _emptied, lambda d: d.missing_excess, lambda d: d.missing_z
        ),
    }


def _cases(
    name: str, kinds: tuple[str, ...], limit: float, build: Build, moved: Score, sure: Score
) -> dict[tuple[str, str], Drift]:
    """On either side of each threshold, within the factor that a mutant changes it by."""
    phi = [DISPERSIONS[kind] for kind in kinds]
    made = {
        "far_enough": _with(build, phi[0], moved, limit * 1.15, sure, 9.0),
        "sure_enough": _with(build, phi[1], moved, limit * 1.15, sure, 6.0),
        "rows_enough": _at(build, phi[2], ROWS * 1.2, sure, 9.0),
        "not_far_enough": _with(build, phi[3], moved, limit / 1.15, sure, 9.0),
        "not_sure_enough": _with(build, phi[4], moved, limit * 1.15, sure, 4.2),
        "not_rows_enough": _at(build, phi[5], ROWS / 1.2, sure, 9.0),
    }
    return {(f"{name}_{case}", kind): drift for (case, drift), kind in zip(made.items(), kinds, strict=True)}


def _unusual(name: str, kinds: tuple[str, ...], effect: float) -> dict[tuple[str, str], Drift]:
    """On either side of what is usual, beyond the effect that is wanted of others."""
    made = {}
    for kind in kinds:
        for case, factor in (("more_than_usual", 1.15), ("as_usual", 1 / 1.15)):
            made[f"{name}_{case}", kind] = _with(
                _shifted, 1.0, lambda drift: drift.psi_excess, effect * USUAL * factor, lambda drift: drift.z, 9.0
            )
    return made


def _shifted(rows: float, by: float, dispersion: float) -> Drift:
    """The lower half of the bins has 1 + `by` times its share, the upper half 1 - `by` times."""
    share = PROFILE / PROFILE.sum() * np.array([1 + by] * 5 + [1 - by] * 5 + [1.0])
    return Drift(rows * share / share.sum(), PROFILE, dispersion)


def _emptied(rows: float, by: float, dispersion: float) -> Drift:
    """`by` more of the rows are missing."""
    share = PROFILE / PROFILE.sum() * (1 - by)
    share[-1] += by
    return Drift(rows * share / share.sum(), PROFILE, dispersion)


def _solve(of: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a rising function has the value `wanted`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < wanted else (low, middle)
    return low


def _with(build: Build, phi: float, moved: Score, effect: float, sure: Score, z: float) -> Drift:
    """A drift of that effect, with as many rows as give it that z."""

    def at(rows: float) -> Drift:
        return build(rows, _solve(lambda by: moved(build(rows, by, phi)), effect, 0.0, 0.99), phi)

    return at(_solve(lambda rows: sure(at(rows)), z, 20.0, 1e5))


def _at(build: Build, phi: float, effective: float, sure: Score, z: float) -> Drift:
    """A drift in that many effective rows, far enough for that z."""
    rows = effective * phi
    return build(rows, _solve(lambda by: sure(build(rows, by, phi)), z, 0.0, 0.99), phi)


def _its(name: str, kind: str) -> dict[str, str]:
    return {"model": "m", "version": "3", "feature": name, "kind": kind}


def _tier(name: str, window: str, made: Mapping[tuple[str, str], Drift]) -> Scenario:
    minutes, effect, hold = TIERS[window]
    every = EVERY[window]
    long = every > 1
    last = minutes + hold + 10
    last += -last % every
    series: dict[tuple[str, Labels], Samples] = {}
    for (feature, kind), drift in made.items():
        series |= _profile(feature, kind, drift.profile, last)
        series["shipway_feature:dispersion", labels(model="m", feature=feature, kind=kind)] = constant(
            drift.dispersion, last
        )
        per_minute = drift.live / minutes
        series |= (
            _sampled(feature, kind, per_minute, last, every) if long else _counted(feature, kind, per_minute, last)
        )
        if feature.endswith("_usual"):
            series |= _usual(feature, kind, window, effect, last)
    if long:
        # A version that is half as old as the window: an average would invent the other half, and of what is usual of
        # whole windows it says nothing.
        young, since = _shifted(ROWS * 4, 0.5, 1.0), last - minutes // 2 + 1
        for feature in ("young", "young_usual"):
            made = {**made, (feature, "number"): young}
            series |= _profile(feature, "number", PROFILE, last)
            series |= _sampled(feature, "number", young.live / (minutes // 2), last, every, since)
        series |= _usual("young_usual", "number", window, young.psi_excess / USUAL / 2, last)
    return Scenario(
        name,
        last,
        series,
        {
            **_records(window, made),
            f"shipway_bin:rows:{window}": _by_bin({key: drift.live for key, drift in made.items()}),
        },
        _alerts(window, effect, made),
        every,
    )


def _profile(
    name: str, kind: str, profile: FloatArray, last: int, nodes: Sequence[str] = ("a",)
) -> dict[tuple[str, Labels], Samples]:
    return {
        (REFERENCE_ROWS.name, labels(**_its(name, kind), bin=bin_, instance=node, job="j")): constant(rows, last)
        for bin_, rows in zip(BINS, profile, strict=True)
        for node in nodes
    }


def _usual(name: str, kind: str, window: str, effect: float, last: int) -> dict[tuple[str, Labels], Samples]:
    """What is usual in this window, told by two nodes, and in another one, which does not count."""
    other = next(each for each in TIERS if each != window)
    return {
        (USUAL_PSI_EXCESS.name, labels(**_its(name, kind), window=each, instance=node, job="j")): constant(value, last)
        for each, value in ((window, effect * USUAL), (other, effect * USUAL * 9))
        for node in "ab"
    }


def _counted(name: str, kind: str, per_minute: FloatArray, last: int) -> dict[tuple[str, Labels], Samples]:
    """Raw counters of two nodes; the second one is started again a few minutes before the end."""
    return {
        (FEATURE_ROWS.name, labels(**_its(name, kind), bin=bin_, instance=node, job="j")): counter(
            rows * part, last, reset
        )
        for bin_, rows in zip(BINS, per_minute, strict=True)
        for node, part, reset in (("a", 0.3, None), ("b", 0.7, last - 5))
    }


def _sampled(
    name: str, kind: str, per_minute: FloatArray, last: int, over: int, since: int = 0
) -> dict[tuple[str, Labels], Samples]:
    """The increase over 10 minutes or an hour that another group records, from the minute `since` on."""
    return {
        ({10: "shipway_bin:rows:10m", 60: "shipway_bin:rows:1h"}[over], labels(**_its(name, kind), bin=bin_)): [
            *([(None, since)] if since else []), (rows * over, last + 1 - since)
        ]
        for bin_, rows in zip(BINS, per_minute, strict=True)
    }  # fmt: skip


def _by_bin(values: Mapping[tuple[str, str], FloatArray]) -> dict[Labels, float]:
    return {
        labels(**_its(name, kind), bin=bin_): float(value)
        for (name, kind), row in values.items()
        for bin_, value in zip(BINS, row, strict=True)
    }


def _records(window: str, made: Mapping[tuple[str, str], Drift]) -> dict[str, dict[Labels, float]]:
    scores: dict[str, Callable[[Drift], float]] = {
        "rows": lambda drift: drift.rows,
        "rows_effective": lambda drift: drift.effective,
        "psi": lambda drift: drift.psi,
        "psi_excess": lambda drift: drift.psi_excess,
        "z": lambda drift: drift.z,
        "missing_excess": lambda drift: drift.missing_excess,
        "missing_z": lambda drift: drift.missing_z,
    }
    return {
        f"shipway_feature:{score}:{window}": {labels(**_its(*key)): of(drift) for key, drift in made.items()}
        for score, of in scores.items()
    }


def _alerts(window: str, effect: float, made: Mapping[tuple[str, str], Drift]) -> dict[str, Fires]:
    def fires(kinds: tuple[str, ...], fires: Callable[[str, Drift], bool]) -> Fires:
        judged = {labels(**_its(*key)): fires(key[0], drift) for key, drift in made.items() if key[1] in kinds}
        return Fires(
            frozenset(its for its, yes in judged.items() if yes),
            frozenset(its for its, yes in judged.items() if not yes),
        )

    def moved(name: str, drift: Drift) -> bool:
        wanted = effect * USUAL if name.endswith("_usual") else effect
        if name == "young_usual":
            return False
        return drift.psi_excess > wanted and drift.z > Z and drift.effective >= ROWS

    def missing(_: str, drift: Drift) -> bool:
        return drift.missing_excess > MISSING_SHARE and drift.missing_z > Z and drift.effective >= ROWS

    return {
        f"FeatureDrift {window}": fires(("number", "category"), moved),
        f"PredictionDrift {window}": fires(("output", "prediction"), moved),
        f"MissingValues {window}": fires(tuple(DISPERSIONS), missing),
    }


def _reference() -> Scenario:
    its = labels(**_its("age", "number"))
    share = (PROFILE + 0.5) / (PROFILE.sum() + 5.5)
    return Scenario(
        "reference",
        2,
        _profile("age", "number", PROFILE, 2, nodes=("a", "b")),
        {
            "shipway_feature:reference_rows": {its: 5000.0},
            "shipway_feature:bins": {its: 11.0},
            "shipway_bin:reference_share": _by_bin({("age", "number"): share}),
        },
    )


def _dispersion() -> Scenario:
    """Hours of counts that differ: by more than chance in version 3, hardly in version 4."""
    bins, hours = ["00", "01", "missing"], 3
    by_hour = {
        "3": np.array([[120.0, 60, 3], [40, 170, 1], [150, 80, 6], [90, 90, 9]]),
        "4": np.array([[50.0, 50, 1], [51, 49, 1], [50, 50, 1], [49, 51, 1]]),
    }
    last = 60 * hours
    series: dict[tuple[str, Labels], Samples] = {}
    lag, means = {}, []
    for version, counts in by_hour.items():
        its = {"model": "m", "version": version, "feature": "age", "kind": "number"}
        series["shipway_feature:bins", labels(**its)] = constant(3, last)
        series["shipway_feature:rows:1h", labels(**its)] = [(rows, 60) for rows in counts.sum(axis=1)]
        for index, bin_ in enumerate(bins):
            series["shipway_bin:rows:1h", labels(**its, bin=bin_)] = [(rows, 60) for rows in counts[:, index]]
        each = [_lag(now, before) for before, now in pairwise(counts)]
        lag[labels(**its)] = each[-1]
        means.append(float(np.mean(each)))
    # A feature of one version that varies less than chance: dispersion never makes rows out of nothing.
    for (name, copied), samples in list(series.items()):
        if dict(copied)["version"] == "4":
            series[name, labels(**{**dict(copied), "feature": "fare"})] = samples
    steady = {"model": "m", "version": "4", "kind": "number"}
    lag[labels(**steady, feature="fare")] = lag[labels(**steady, feature="age")]
    dispersion = {
        labels(model="m", feature="age", kind="number"): max(means),
        labels(model="m", feature="fare", kind="number"): 1.0,
    }
    return Scenario(
        "dispersion", last, series,
        {"shipway_feature:lag_dispersion:1h": lag, "shipway_feature:dispersion": dispersion},
    )  # fmt: skip


def _lag(now: FloatArray, before: FloatArray) -> float:
    pooled = (now + before + 1) / (now.sum() + before.sum() + len(now))
    gap = now / now.sum() - before / before.sum()
    return float(np.sum(gap**2 / pooled) / (1 / now.sum() + 1 / before.sum()) / (len(now) - 1))
