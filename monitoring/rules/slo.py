"""Objectives for availability and latency, and alerts on how fast their budgets burn."""

from collections.abc import Iterator
from typing import get_args

from monitoring.config import Burn, BurnWindow, Config, Duration
from monitoring.names import EDGE_REQUESTS, EDGE_SECONDS, EXPLAINER, REQUESTS
from monitoring.rules.rule import VERSION, Alert, Group, Record, increase, total

SAMPLED: Duration = "5m"
ALL, FAILED = f"shipway_slo:requests:{SAMPLED}", f"shipway_slo:errors:{SAMPLED}"
TIMED, SLOW = f"shipway_slo:timed:{SAMPLED}", f"shipway_slo:slow:{SAMPLED}"
PREDICTIONS = f'model!~".+{EXPLAINER}"'
"""Explanations are asked of another registration; nobody promises anything for them."""


def slo(config: Config) -> Group:
    return Group("shipway-slo", (*_counts(config), *_ratios(), *_alerts(config)))


def _counts(config: Config) -> Iterator[Record]:
    # gRPC carries its errors in an HTTP answer of 200: the workers know better than the edge.
    at_edge = increase(EDGE_REQUESTS, SAMPLED, by=VERSION, where=f'{{code=~"5..", {PREDICTIONS}}}')
    in_grpc = increase(
        REQUESTS, SAMPLED, by=VERSION, where=f'{{protocol="oip_grpc", outcome=~"failed|expired", {PREDICTIONS}}}'
    )
    fast = f'{{le="{config.objectives.fast_seconds!r}", {PREDICTIONS}}}'
    yield Record(ALL, increase(EDGE_REQUESTS, SAMPLED, by=VERSION, where=f"{{{PREDICTIONS}}}"))
    yield Record(FAILED, f"({at_edge} or 0 * {ALL})\n+ ({in_grpc} or 0 * {ALL})")
    yield Record(TIMED, increase(EDGE_SECONDS, SAMPLED, by=VERSION, where=f"{{{PREDICTIONS}}}", part="_count"))
    yield Record(SLOW, f"{TIMED}\n- {increase(EDGE_SECONDS, SAMPLED, by=VERSION, where=fast, part='_bucket')}")


def _ratios() -> Iterator[Record]:
    for window in get_args(BurnWindow):
        for name, bad, of in (("errors", FAILED, ALL), ("slow", SLOW, TIMED)):
            yield Record(f"shipway_slo:{name}:ratio_{window}", f"{_in(bad, window)}\n/ ({_in(of, window)} > 0)")


def _in(sampled: str, window: Duration) -> str:
    return sampled if window == SAMPLED else total(sampled, window, every=SAMPLED)


def _alerts(config: Config) -> Iterator[Alert]:
    goals = config.objectives
    late = f"slower than {goals.fast_seconds:g} s"
    for burn in goals.burns:
        yield _alert("AvailabilityBurn", "errors", FAILED, goals.available, "fails", "failed", burn, goals.bad_requests)
        yield _alert("LatencyBurn", "slow", SLOW, goals.fast, "is slow", f"were {late}", burn, goals.bad_requests)


def _alert(name: str, ratio: str, bad: str, objective: float, does: str, were: str, burn: Burn, enough: int) -> Alert:
    budget = round(1 - objective, 12)
    limit = f"> {burn.factor:g} * {budget:g}"
    return Alert(
        name,
        f"shipway_slo:{ratio}:ratio_{burn.long} {limit}\n"
        f"and shipway_slo:{ratio}:ratio_{burn.short} {limit}\n"
        f"and {_in(bad, burn.long)} >= {enough}",
        burn.hold,
        burn.severity,
        f"{{{{ $labels.model }}}} version {{{{ $labels.version }}}} {does} more often than was promised",
        f"{{{{ humanizePercentage $value }}}} of its requests within {burn.long} {were}: more than {burn.factor:g} "
        f"times the {budget:.3%} that 30 days may have.",
        {"window": burn.long},
    )
