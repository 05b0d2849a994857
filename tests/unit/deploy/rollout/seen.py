"""Evidence as a test wants it: all is well but for what is said."""

from dataclasses import replace
from typing import Any

import numpy as np

from deploy.rollout.evidence import Counted, Evidence, Version
from deploy.traffic import Counts
from monitoring.drift import Array

AT = 1000.0
TIMES = np.arange(0.0, AT, 5.0)
FLAT = ((TIMES, np.full_like(TIMES, 1e9)),)
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, float("inf"))
TENTHS = (*(f"{place:02d}" for place in range(10)), "missing")


def counted(requests: int, *, failed: int = 0, lost: int = 0, refused: int = 0, **shares: float) -> Counted:
    """Requests whose latencies are at most 10 ms, or as `upto_MS` says: a share of each bound, in ms."""
    answered = requests - lost
    upto = {float(name.removeprefix("upto_")) / 1000: share for name, share in shares.items()} or {0.01: 1.0}
    seconds = {
        bound: round(answered * min(1.0, sum(share for most, share in upto.items() if most <= bound)))
        for bound in BOUNDS
    }
    return Counted(answered=answered, failed=failed, lost=lost, refused=refused, seconds=seconds)


NONE = counted(0)


def version(number: int, seen: Counted, **given: Any) -> Version:
    plain = Version(
        version=number, canary=seen, step=seen, shadow=NONE, seen=AT, restarts=0, memory=FLAT, agreed=0, disagreed=0,
        confusion={}, features=(), edges={},
    )  # fmt: skip
    return replace(plain, **given)


def evidence(champion: Version, candidate: Version, *, dispersion: float = 1.0) -> Evidence:
    queries = {"shipway_edge_requests_total": "shipway_edge_requests_total[1300s]"}
    return Evidence(
        champion=champion, candidate=candidate, canary_since=0, step_since=0, at=AT, latency_dispersion=dispersion,
        queries=queries,
    )  # fmt: skip


def feature(
    name: str, kind: str, rows: dict[str, float] | list[float], *, reference: Array | None = None, bursts: float = 1.0
) -> Counts:
    """One feature's rows by label, or in tenths and then `missing`."""
    by_label = rows if isinstance(rows, dict) else dict(zip(TENTHS, rows, strict=True))
    live = np.array([list(by_label.values())], dtype=np.float64)
    return Counts(name, kind, tuple(by_label), np.ones(live.shape[1]) if reference is None else reference, live, bursts)
