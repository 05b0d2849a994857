"""How long Prometheus takes to evaluate one window tier for 4 nodes of 30 features."""

from typing import get_args

from monitoring.config import DriftWindow
from tests.bench.findings import Finding
from tests.rules.evaluation import evaluation_seconds

BAR = 0.25
NODES = 4


def evaluation() -> Finding:
    """The slowest window; its groups for features and for random Fourier features together."""
    seconds = evaluation_seconds(nodes=NODES)
    tiers = {
        window: seconds[f"shipway-drift-{window}"] + seconds[f"shipway-rff-{window}"]
        for window in get_args(DriftWindow)
    }
    slowest = max(tiers, key=lambda window: tiers[window])
    return Finding(
        f"evaluation of one window tier for {NODES} nodes, the slowest ({slowest})",
        tiers[slowest],
        "s",
        BAR,
        at_most=True,
        spread=(min(tiers.values()), max(tiers.values())),
    )
