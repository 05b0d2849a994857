"""Rollouts and rollbacks of a good version under all the load that two cores can take: nobody may notice.

Warm, the version to go back to is loaded beside; cold, it is loaded first.
"""

import time

from rich.console import Console

from deploy.rollout.machine import Traffic
from deploy.rollout.record import Entry, State
from tests.bench.findings import Finding
from tests.bench.rollout.ground import MODEL, Ground
from tests.bench.rollout.load import locust

REQUESTS = 100_000
USERS = 16
GONE_WITHIN_SECONDS = 60.0
WARM_SECONDS, COLD_SECONDS = 1.0, 15.0


def harmless(ground: Ground, console: Console, requests: int = REQUESTS) -> list[Finding]:
    settings = ground.settings
    warm: list[float] = []
    cold: list[float] = []
    sent = 0
    failed: list[str] = []
    failures = 0
    while sent < requests:
        with locust(
            settings.state_dir / "bench", MODEL, settings.grpc_target, ground.rows, users=USERS, rate=0
        ) as load:
            _ended(ground.endpoint.roll_out(ground.second), "PROMOTED")
            warm.append(_seconds(ground.endpoint.roll_back()))
            _ended(ground.endpoint.roll_out(ground.second), "PROMOTED")
            _let_go_of_the_first(ground)
            cold.append(_seconds(ground.endpoint.roll_back()))
        sent += load.total
        failures += load.failed
        failed += load.failures
        console.log(f"{sent} requests, {failures} failed; rolled back in {warm[-1]:.2f} s warm, {cold[-1]:.2f} s cold")
    for words in failed:
        console.log(words, markup=False)
    return [
        Finding("requests over HTTP and gRPC during rollouts and rollbacks", sent, "requests"),
        Finding("of those failed", failures, "requests", bar=0, at_most=True),
        Finding("warm rollback, the slowest", max(warm), "s", bar=WARM_SECONDS, at_most=True),
        Finding("cold rollback, the slowest", max(cold), "s", bar=COLD_SECONDS, at_most=True),
    ]


def _ended(entry: Entry, wanted: State) -> None:
    if entry.state != wanted:
        raise RuntimeError(f"the rollout of a good version is {entry.state}: {entry.words}")


def _seconds(entry: Entry) -> float:
    """From the command's start of work until all traffic was on the old version."""
    _ended(entry, "ROLLED_BACK")
    return float(entry.detail["seconds"])


def _let_go_of_the_first(ground: Ground) -> None:
    """Take version 1, which is kept warm, out of the node."""
    driver, alone = ground.endpoint.driver, Traffic(serving=ground.second)
    driver.ask(MODEL, alone)
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while not driver.reached(MODEL, alone):
        if time.monotonic() > deadline:
            raise TimeoutError(f"version 1 was not unloaded within {GONE_WITHIN_SECONDS:g} s")
        time.sleep(0.05)
