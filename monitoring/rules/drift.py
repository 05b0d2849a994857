"""Drift of features: live counts against the training profile, in one group for each window.

With n of N live rows in a bin, m of M in the profile, and B bins:

    p = (m + 1/2) / (M + B/2)    q = (n + 1/2) / (N + B/2)    s = n / N    Ne = N / dispersion
    PSI excess = sum (q - p) ln(q / p) - (B - 1) (1/Ne + 1/M)      expected without drift: 0, at any traffic
    chi-square = sum (s - p)^2 / (s/M + p/Ne)                      two samples, B - 1 degrees of freedom

Dispersion says how much more than chance successive hours differ: inputs come in bursts, and a lasting drift cancels.
What hours share, a time of day or one weather, it does not see: a profile of rows with times says how far windows of
the training have moved themselves, and an alert wants more.
"""

from collections.abc import Iterator

from monitoring.config import Config, DriftTier, DriftWindow, Duration
from monitoring.names import FEATURE_ROWS, REFERENCE_ROWS, USUAL_PSI_EXCESS
from monitoring.profile import MISSING
from monitoring.rules.rule import SAMPLED, Alert, Group, Record, increase, summed, wilson_hilferty

FEATURE = "model, version, feature, kind"
BIN = f"{FEATURE}, bin"
EACH = f"on ({FEATURE}) group_left ()"
"""One value of a feature for all of its bins."""
INPUTS, PREDICTIONS = "number|category", "output|prediction"

SHARE = "shipway_bin:reference_share"
REFERENCE = "shipway_feature:reference_rows"
BINS = "shipway_feature:bins"
DISPERSION = "shipway_feature:dispersion"
LAG_DISPERSION = "shipway_feature:lag_dispersion:1h"


def reference() -> Group:
    """The profile, once however many nodes export it."""
    rows = f"max by ({BIN}) ({REFERENCE_ROWS.name})"
    return Group(
        "shipway-reference",
        (
            Record(REFERENCE, f"sum by ({FEATURE}) ({rows})"),
            Record(BINS, f"count by ({FEATURE}) ({rows})"),
            Record(SHARE, f"({rows} + 0.5)\n/ {EACH} ({REFERENCE} + 0.5 * {BINS})"),
        ),
    )


def dispersion() -> Group:
    """Chi-square of each hour against the hour before, over its degrees of freedom; its mean of 7 days, at least 1."""
    bins, rows = "shipway_bin:rows:1h", "shipway_feature:rows:1h"
    lag = f"""\
sum by ({FEATURE}) (
  (
    {bins} / {EACH} ({rows} > 0)
    - {bins} offset 1h / {EACH} ({rows} offset 1h > 0)
  ) ^ 2
  / (
    ({bins} + {bins} offset 1h + 1)
    / {EACH} ({rows} + {rows} offset 1h + {BINS})
  )
)
/ (1 / {rows} + 1 / {rows} offset 1h)
/ ({BINS} - 1)"""
    # By model, so that a new version has it from its first hour. The largest of the versions, because one that is
    # asked too rarely shows no bursts.
    mean = f"clamp_min(max by (model, feature, kind) (avg_over_time({LAG_DISPERSION}[7d:1h])), 1)"
    return Group("shipway-dispersion", (Record(LAG_DISPERSION, lag), Record(DISPERSION, mean)))


def tier(window: DriftWindow, config: Config) -> Group:
    """Counts, scores and alerts of one window."""
    return Group(f"shipway-drift-{window}", (*_counts(window), *_scores(window), *_alerts(window, config)))


def _counts(window: DriftWindow) -> Iterator[Record]:
    bins, rows = f"shipway_bin:rows:{window}", f"shipway_feature:rows:{window}"
    yield Record(bins, _rows_by_bin(window))
    yield Record(rows, f"sum by ({FEATURE}) ({bins})")
    yield Record(
        f"shipway_feature:rows_effective:{window}",
        f"{rows} / on (model, feature, kind) group_left () {DISPERSION}\nor {rows}",
    )


def _rows_by_bin(window: Duration) -> str:
    if window in (SAMPLED, "1h"):
        return increase(FEATURE_ROWS, window, by=BIN)
    return summed("shipway_bin:rows", window)


def _scores(window: DriftWindow) -> Iterator[Record]:
    bins, rows = f"shipway_bin:rows:{window}", f"(shipway_feature:rows:{window} > 0)"
    effective = f"shipway_feature:rows_effective:{window}"
    live = f"({bins} + 0.5) / {EACH} ({rows} + 0.5 * {BINS})"
    psi, excess = f"shipway_feature:psi:{window}", f"shipway_feature:missing_excess:{window}"
    # In the logarithm q stands without its denominator: as sum (q - p) = 0, a factor that bins share changes nothing.
    yield Record(psi, f"sum by ({FEATURE}) (\n  ({live} - {SHARE})\n  * ln(({bins} + 0.5) / {SHARE})\n)")
    yield Record(f"shipway_feature:psi_excess:{window}", f"{psi} - ({BINS} - 1) * (1 / {effective} + 1 / {REFERENCE})")
    chi2 = f"""
    sum by ({FEATURE}) (
      ({bins} / {EACH} {rows} - {SHARE}) ^ 2
      / (
        {bins} / {EACH} ({rows} * {REFERENCE})
        + {SHARE} / {EACH} {effective}
      )
    )
    / ({BINS} - 1)
  """
    yield Record(f"shipway_feature:z:{window}", wilson_hilferty(chi2, f"({BINS} - 1)"))
    missing = f'{{bin="{MISSING}"}}'
    yield Record(
        excess,
        f"sum by ({FEATURE}) ({bins}{missing}) / {rows}\n- sum by ({FEATURE}) ({SHARE}{missing})",
    )
    yield Record(
        f"shipway_feature:missing_z:{window}",
        f"{excess}\n/ sqrt(\n  sum by ({FEATURE}) ({SHARE}{missing} * (1 - {SHARE}{missing}))\n"
        f"  * (1 / {effective} + 1 / {REFERENCE})\n)",
    )


def _alerts(window: DriftWindow, config: Config) -> Iterator[Alert]:
    drift, one = config.drift, config.drift.tiers[window]
    enough = f"and shipway_feature:rows_effective:{window} >= {drift.rows}"
    # Where training rows have times: and the window is full, because a part of it moves further than the whole.
    usual = f'max by ({FEATURE}) ({USUAL_PSI_EXCESS.name}{{window="{window}"}})'
    beyond = f"shipway_feature:psi_excess:{window} > {usual} and shipway_feature:rows:{window} offset {window}"
    for name, kinds, what in (("FeatureDrift", INPUTS, "input"), ("PredictionDrift", PREDICTIONS, "prediction")):
        yield _alert(
            name,
            window,
            one,
            f'shipway_feature:psi_excess:{window}{{kind=~"{kinds}"}} > {one.effect:g}\n'
            f"unless ({usual} unless ({beyond}))\n"
            f"and shipway_feature:z:{window} > {drift.z:g}\n{enough}",
            f"The {what} {{{{ $labels.feature }}}} of {{{{ $labels.model }}}} is not what it was in training",
            f'Within {window} its distribution has moved by a PSI of {{{{ printf "%.3f" $value }}}} more than chance '
            f"gives; {one.effect:g} is allowed, or what such windows of the training rows reach themselves.",
        )
    yield _alert(
        "MissingValues",
        window,
        one,
        f"shipway_feature:missing_excess:{window} > {drift.missing:g}\n"
        f"and shipway_feature:missing_z:{window} > {drift.z:g}\n{enough}",
        "{{ $labels.feature }} of {{ $labels.model }} is missing more often than in training",
        f"Within {window} it is missing in {{{{ humanizePercentage $value }}}} of the rows more than in training; "
        f"{drift.missing:.0%} is allowed.",
    )


def _alert(name: str, window: str, one: DriftTier, expr: str, summary: str, description: str) -> Alert:
    return Alert(name, expr, one.hold, "ticket", summary, description, {"window": window})
