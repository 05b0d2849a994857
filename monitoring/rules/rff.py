"""Drift of pictures, texts and sequences: means of random Fourier features against 0, what they were in training.

Each of the D features is whitened on the profile, so with N live rows and M of the profile and no drift

    T^2 = sum of squared means / (1/N + 1/M)

is chi-square with D degrees of freedom (a maximum mean discrepancy with a Gaussian kernel, by Rahimi and Recht's
features).
"""

from collections.abc import Iterator

from monitoring.config import Config, DriftWindow
from monitoring.names import RFF_REFERENCE_ROWS, RFF_SUM, ROWS
from monitoring.rff import CUT
from monitoring.rules.rule import SAMPLED, VERSION, Alert, Group, Record, increase, summed, wilson_hilferty

EACH = f"on ({VERSION}) group_left ()"
DIMENSION = f"{VERSION}, dimension"
REFERENCE = "shipway_rff:reference_rows"
DISPERSION = "shipway_rff:dispersion"
LAG_DISPERSION = "shipway_rff:lag_dispersion:1h"


def reference() -> Group:
    return Group("shipway-rff-reference", (Record(REFERENCE, f"max by ({VERSION}) ({RFF_REFERENCE_ROWS.name})"),))


def dispersion() -> Group:
    """T^2 of each hour against the hour before, over its degrees of freedom; its mean of 7 days, at least 1."""
    sums, rows = "shipway_rff:sum:1h", "shipway_version:rows:1h"
    lag = f"""\
avg by ({VERSION}) (
  (
    {sums} / {EACH} ({rows} > 0)
    - {sums} offset 1h / {EACH} ({rows} offset 1h > 0)
  ) ^ 2
)
/ (1 / {rows} + 1 / {rows} offset 1h)"""
    mean = f"clamp_min(max by (model) (avg_over_time({LAG_DISPERSION}[7d:1h])), 1)"
    return Group("shipway-rff-dispersion", (Record(LAG_DISPERSION, lag), Record(DISPERSION, mean)))


def tier(window: DriftWindow, config: Config) -> Group:
    """Rows of every version, and what there is to say of those that have such features."""
    return Group(f"shipway-rff-{window}", (*_records(window), _alert(window, config)))


def _records(window: DriftWindow) -> Iterator[Record]:
    rows, sums = f"shipway_version:rows:{window}", f"shipway_rff:sum:{window}"
    effective, shift = f"shipway_rff:rows_effective:{window}", f"shipway_rff:shift_excess:{window}"
    chance = f"(1 / {effective} + 1 / {REFERENCE})"
    if window in (SAMPLED, "1h"):
        yield Record(rows, increase(ROWS, window, by=VERSION))
        yield Record(sums, increase(RFF_SUM, window, by=DIMENSION))
    else:
        yield Record(rows, summed("shipway_version:rows", window))
        yield Record(sums, summed("shipway_rff:sum", window))
    yield Record(effective, f"({rows} / on (model) group_left () {DISPERSION} or {rows})\nand {REFERENCE}")
    yield Record(shift, f"avg by ({VERSION}) (({sums} / {EACH} ({rows} > 0) - {CUT:g}) ^ 2)\n- {chance}")
    z = wilson_hilferty(f"{shift} / {chance} + 1", f"count by ({VERSION}) ({sums})")
    yield Record(f"shipway_rff:z:{window}", z)


def _alert(window: DriftWindow, config: Config) -> Alert:
    drift = config.drift
    return Alert(
        "RffDrift",
        f"shipway_rff:shift_excess:{window} > {drift.rff_effect:g}\n"
        f"and shipway_rff:z:{window} > {drift.z:g}\n"
        f"and shipway_rff:rows_effective:{window} >= {drift.rows}",
        drift.tiers[window].hold,
        "ticket",
        "What {{ $labels.model }} is asked about does not look like its training data",
        f'Within {window} the means of its random Fourier features have moved by {{{{ printf "%.3f" $value }}}} '
        f"variances more than chance gives; {drift.rff_effect:g} is allowed.",
        {"window": window},
    )
