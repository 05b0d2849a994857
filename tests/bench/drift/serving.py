"""What monitoring costs a node, and what it counts when workers are killed: two nodes of the MLP of `make bench`.

One counts 30 features and the random Fourier features of every row, the other rows alone.
"""

import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from rich.console import Console
from scipy.stats import t

from deploy.processes import marked
from monitoring.names import EDGE_REQUESTS, FEATURE_ROWS, ROWS
from tests.bench import client, servers
from tests.bench.drift import named_handler
from tests.bench.findings import Finding
from tests.bench.lab import Lab, open_lab
from tests.bench.rounds import Asked, Measured, WrongAnswer, measure
from tests.bench.scenarios import mlp_scenario
from tests.bench.servers import Packaged, Server

COUNTS, PLAIN = "counts everything", "counts rows"
CONNECTIONS = 64
PAIRS, SECONDS = 16, 3.0
COST_BAR, SERIES_BAR = 0.05, 800
CONFIDENCE = 0.95
REFERENCE_ROWS = 5000
KILLS, KILL_CONNECTIONS, KILL_AFTER_SECONDS, KILL_SECONDS = 3, 16, 1.0, 3.0
COUNTED_WITHIN_SECONDS = 15.0
_NODE = ("edge", "model")

Series = Mapping[str, float]


def serving(kept: Path, console: Console, pairs: int = PAIRS, seconds: float = SECONDS) -> list[Finding]:
    scenario = mlp_scenario()
    requests = [scenario.as_asked(body) for body in scenario.bodies]
    with open_lab(kept / "lab", console) as lab:
        archives = {PLAIN: lab.packaged(scenario.model, scenario.train), COUNTS: _counting(lab, scenario.train)}
    # Not below the state directory: a unix socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as place, ExitStack() as stack:
        asked: dict[str, Asked] = {}
        for name, archive in archives.items():
            started = servers.node(name, archive, Path(place) / str(len(asked)), requests[0])
            asked[name] = Asked(stack.enter_context(started), requests)
            asked[name].server.sleep()
        measured = measure(list(asked.values()), [CONNECTIONS], pairs, seconds, console.log)
        counts = asked[COUNTS].server
        counts.wake()
        return [*costs(measured), _series(counts), *_killed(counts, requests)]


def _counting(lab: Lab, train: Callable[[Lab], object]) -> Packaged:
    reference = lab.settings.state_dir / "reference.npz"
    rows = np.random.default_rng(1).standard_normal((REFERENCE_ROWS, 1000), dtype=np.float32)
    np.savez(reference, input=rows)
    options = ("--handler", str(named_handler.__file__), "--reference", str(reference))
    return lab.packaged("mlp", train, *options)


def costs(measured: Measured) -> list[Finding]:
    """The share of throughput that counting takes; the end of its interval at which it takes most has to hold."""
    rates = {name: [one.rate for one in measured.rounds[name, CONNECTIONS]] for name in (COUNTS, PLAIN)}
    low, middle, high = interval(np.log(np.array(rates[COUNTS]) / np.array(rates[PLAIN])))
    pairs = len(rates[PLAIN])
    spread = (1 - float(np.exp(high)), 1 - float(np.exp(low)))
    busy = {
        name: sum(median(one.cpu_ms[part] for one in measured.rounds[name, CONNECTIONS]) for part in _NODE)
        for name in (COUNTS, PLAIN)
    }
    return [
        Finding("throughput that all monitoring takes, mean", 1 - float(np.exp(middle)), "share", spread=spread),
        Finding(f"   upper end of its 95% interval, {pairs} pairs", spread[1], "share", COST_BAR, at_most=True),
        Finding("   processor time of a request in Envoy and the worker", busy[COUNTS] / busy[PLAIN] - 1, "share"),
    ]


def interval(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, float, float]:
    """The mean of [n], and Student's interval around it: low, mean, high."""
    middle = float(values.mean())
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return middle - half, middle, middle + half


def _series(server: Server) -> Finding:
    found = [name for name in _scraped(server) if 'model="mlp"' in name and 'version="1"' in name]
    return Finding("series of a version of 30 features and RFF", len(found), "series", SERIES_BAR, at_most=True)


def _killed(server: Server, requests: list[bytes]) -> list[Finding]:
    """SIGKILL to the worker under load, again and again; every answer is 200, and its row counted."""
    before, sent = _scraped(server), 0
    for _ in range(KILLS):
        timer = threading.Timer(KILL_AFTER_SECONDS, _worker(server).kill)
        timer.start()
        load = client.closed_loop(server.address, requests, connections=KILL_CONNECTIONS, seconds=KILL_SECONDS)
        timer.join()
        if set(load.statuses) != {200}:
            raise WrongAnswer(f"{server.name}: all answers should be 200; found {dict(load.statuses)}")
        sent += load.answered + KILL_CONNECTIONS  # each connection's last request is answered after the end
    rise = _risen(server, before, sent)
    per_feature = [_sum(rise, FEATURE_ROWS.name, f'feature="{name}"') for name in _features(rise)]
    counted = [_sum(rise, ROWS.name), *per_feature]
    answered = _sum(rise, EDGE_REQUESTS.name, 'code="200"')
    return [
        Finding(
            f"rows answered 200 but not counted, {sent} rows, {KILLS} workers killed",
            max(0.0, answered - min(counted)), "rows", 0, at_most=True,
        ),
        Finding(
            "   counted but not answered, at most a batch of each killed worker",
            max(counted) - answered, "rows", KILLS * KILL_CONNECTIONS, at_most=True,
        ),
    ]  # fmt: skip


def _worker(server: Server) -> psutil.Process:
    deadline = time.monotonic() + servers.READY_WITHIN_SECONDS
    while time.monotonic() < deadline:
        for process in marked(server.directory):
            if "model_service_worker" in " ".join(process.cmdline()):
                return process
        time.sleep(0.05)
    raise TimeoutError(f"{server.name} has no worker; its output ends:\n{server.last_output()}")


def _risen(server: Server, before: Series, requests: int) -> Series:
    """What the series rose by, once the edge has counted every request."""
    deadline = time.monotonic() + COUNTED_WITHIN_SECONDS
    while True:
        rise = {name: value - before.get(name, 0.0) for name, value in _scraped(server).items()}
        if (found := _sum(rise, EDGE_REQUESTS.name)) == requests:
            return rise
        if time.monotonic() > deadline:
            raise WrongAnswer(f"{server.name}: the edge should have counted {requests} answers; found {found:g}")
        time.sleep(0.1)


def _scraped(server: Server) -> Series:
    with urllib.request.urlopen(f"{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def _features(series: Series) -> set[str]:
    return {
        found[1]
        for name in series
        if name.startswith(FEATURE_ROWS.name) and (found := re.search(r'feature="([^"]+)"', name))
    }


def _sum(series: Series, metric: str, label: str = "") -> float:
    return sum(value for name, value in series.items() if name.startswith(metric + "{") and label in name)
