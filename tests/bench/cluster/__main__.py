"""`make cluster-bench`: what clients see of what happens to a release on a real Kubernetes, against bars.

Two stable pods of the flights model are asked 100 times a second over HTTP/1.1, HTTP/2 and gRPC, and every answer is
checked, while versions, pods and Kubernetes itself come and go. Ends with 1 when a bar is missed. The cluster is that
of KUBECONFIG, or one that the program in SHIPWAY_KUBE_KIT starts. What happened and what was found is in cluster.json
below bench/ of the state directory.
"""

import argparse
import math
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console

from tests.bench.cluster.events import BARE, GROUPS
from tests.bench.cluster.ground import open_ground
from tests.bench.cluster.share import WEIGHT
from tests.bench.cluster.table import Row, rows, show
from tests.bench.findings import Finding
from tests.bench.parts import run
from tests.cluster import cluster as clusters
from tests.cluster.conftest import STATE
from tests.cluster.steady import MEANT, Steady

REQUESTS = 50_000
SHARE_OFF_BY = 1.0
"""Percentage points that a canary's share may be off by."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster", description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="of the steady load, at least  [default: %(default)s]"
    )
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="these events; may be repeated")
    options = parser.parse_args()
    if clusters.MISSING:
        parser.error(f"this needs a cluster: {clusters.MISSING}")
    console, happened = Console(), list[Row]()
    target = STATE / "bench" / "cluster.json"
    parts = {"cluster": lambda: bench(console, happened, options.only or GROUPS, options.requests)}
    return run(parts, None, target, "of one run", console, lambda: {"events": [asdict(row) for row in happened]})


def bench(console: Console, happened: list[Row], groups: Collection[str], requests: int) -> Iterator[Finding]:
    """Rows of all that happened go to `happened`."""
    with open_ground(console) as ground:
        for name in groups:
            with ground.group(name):
                GROUPS[name](ground)
        ground.go_on(max(0, requests - ground.load.requests))
    happened += rows(ground.events, ground.load)
    show(console, happened)
    yield from findings(happened, ground.load, ground.shares, requests)


def findings(happened: Sequence[Row], load: Steady, shares: Mapping[str, float], requests: int) -> Iterator[Finding]:
    """Against bars; `shares` are a canary's at WEIGHT percent, by protocol."""
    asked = load.window(-math.inf)
    others = sum(MEANT in fault for fault in asked.faults)
    yield Finding("requests of the steady load", len(asked.asked), "", bar=requests)
    yield Finding("failed ones", len(asked.faults), "", bar=0, at_most=True)
    yield Finding("   of these by a version that was not meant to serve", others, "", bar=0, at_most=True)
    ended = [row for row in happened if not row.skipped]
    bare = [row for row in ended if row.event.startswith(BARE)]
    for words, some in (
        ("events that ended as they should", ended),
        ("   of these, bare rollbacks from a canary", bare),
    ):
        if some:
            right = sum(not row.problem for row in some)
            yield Finding(f"{words}, of {len(some)}", right, "", bar=len(some))
    if skipped := sum(bool(row.skipped) for row in happened):
        yield Finding("events that were skipped", skipped, "")
    for protocol, share in shares.items():
        yield Finding(f"share of a canary at {WEIGHT}%, over {protocol}", share, "%")
        yield Finding("   off by", abs(share - WEIGHT), "points", bar=SHARE_OFF_BY, at_most=True)


if __name__ == "__main__":
    # Else the cluster would go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (AssertionError, OSError, subprocess.SubprocessError, ValueError) as error:
        sys.exit(f"cluster-bench: {error}")
