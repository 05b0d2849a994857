"""`make bench`: the flights model through the whole node against the same model in stock TorchServe.

Rounds are interleaved, one server asked at a time, and compared pair by pair, so that what else the machine does
falls on both. Ends with 1 when a bar is missed.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy.node.desired import read_desired
from deploy.settings import Settings, read_settings
from model_store import archive, signing
from model_store.files import write_atomically
from tests.bench import client, servers
from tests.bench.servers import MODEL, PATH, Packaged, Server

CONNECTIONS = (1, 16, 64)
ROUNDS = 7
ROUND_SECONDS = 3.0
WARM_UP_SECONDS = 6.0
"""Before the first round, at the largest number of connections: the JVM compiles what is used often."""
SETTLE_SECONDS = 1.0
"""Before the rounds of each number of connections."""

BARS = {64: 1.0}
"""The least throughput as a multiple of stock TorchServe's, by connections: below it something is wrong."""


@dataclass(frozen=True)
class Round:
    """One server under one closed loop."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]
    """Processor time for each request, by part of the server, and the client's."""


@dataclass(frozen=True)
class Comparison:
    """All rounds at one number of connections; the two lists belong together pair by pair."""

    connections: int
    node: list[Round]
    stock: list[Round]

    def ratio(self, quantity: str) -> float:
        """Ratio of the medians, node / stock, of one field of Round."""
        return self.middle("node", quantity) / self.middle("stock", quantity)

    def spread(self, quantity: str) -> tuple[float, float]:
        """Least and largest ratio of a pair of rounds."""
        pairs = zip(self.node, self.stock, strict=True)
        ratios = [getattr(ours, quantity) / getattr(theirs, quantity) for ours, theirs in pairs]
        return min(ratios), max(ratios)

    def middle(self, server: str, quantity: str) -> float:
        return median(float(getattr(one, quantity)) for one in getattr(self, server))

    def cpu_ms(self, server: str) -> dict[str, float]:
        rounds: list[Round] = getattr(self, server)
        return {part: median(one.cpu_ms.get(part, 0.0) for one in rounds) for part in rounds[0].cpu_ms}


class WrongAnswer(Exception):
    """A server that answers something else has no speed worth knowing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of rounds at each number of connections")
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="length of a round")
    options = parser.parse_args()
    settings = read_settings()
    packaged = find_packaged(settings)
    if packaged is None:
        sys.exit(f"No version of {MODEL} is served from {settings.state_dir}: run make demo first.")
    console = Console()
    bodies, expected = golden_rows(packaged.path)
    requests = [client.post(PATH, body) for body in bodies]
    with ExitStack() as stack:
        # Not below the state directory: a unix socket's path is limited to 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        console.print("Starting the node and stock TorchServe …")
        node = stack.enter_context(servers.node(packaged, directory / "n", requests[0]))
        stock = stack.enter_context(servers.stock(packaged, directory / "s", requests[0]))
        for server in (node, stock):
            check_answers(server, requests, expected)
            run_round(server, requests, max(CONNECTIONS), WARM_UP_SECONDS)
        comparisons = []
        for connections in CONNECTIONS:
            console.print(f"{options.rounds} pairs of rounds at {connections} connections …")
            comparisons.append(compare(node, stock, requests, connections, options.rounds, options.seconds))
    show(console, comparisons)
    results = as_results(comparisons)
    target = settings.state_dir / "bench" / "node.json"
    write_atomically(target, json.dumps(results, indent=1).encode() + b"\n")
    console.print(f"Written to {target}")
    missed = [result for result in results if result["held"] is False]
    for result in missed:
        console.print(f"Missed: {result['name']} is {result['value']}, the bar is {result['bar']}")
    return 1 if missed else 0


def find_packaged(settings: Settings) -> Packaged | None:
    """The version of the model that gets traffic in the state directory."""
    endpoint = read_desired(settings.desired_file).endpoint(MODEL)
    if endpoint is None:
        return None
    served = max(endpoint.versions, key=lambda version: version.weight)
    path = settings.archives_dir / archive.archive_name(MODEL, served.version, served.digest)
    archive.verify_archive(path, MODEL, served.version, served.digest, signing.load_trusted(settings.trust_dir))
    return Packaged(path, served.version, served.digest, settings.trust_dir)


def golden_rows(path: Path) -> tuple[list[bytes], list[float]]:
    """The rows of the golden set as JSON bodies of one row each, and the probabilities that belong to them."""
    golden = json.loads(archive.read_member(path, "golden.json"))
    columns = {tensor["name"]: tensor["data"] for tensor in golden["request"]["inputs"]}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [json.dumps(row).encode() for row in rows], golden["response"]["outputs"][0]["data"]


def check_answers(server: Server, requests: Sequence[bytes], expected: Sequence[float]) -> None:
    """Both servers must give the model's answers before it means anything to time them."""
    for number, (request, wanted) in enumerate(zip(requests, expected, strict=True)):
        status, body = client.ask(server.address, request)
        if status != 200:
            raise WrongAnswer(f"{server.name}, row {number}: status {status}, {body!r}")
        answer = json.loads(body)
        found = float(answer["probability"] if isinstance(answer, dict) else answer)
        if not math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-5):
            raise WrongAnswer(f"{server.name}, row {number}: expected {wanted}, found {found}")


def compare(
    node: Server, stock: Server, requests: Sequence[bytes], connections: int, rounds: int, seconds: float
) -> Comparison:
    for server in (node, stock):
        run_round(server, requests, connections, SETTLE_SECONDS)
    result = Comparison(connections, [], [])
    for _ in range(rounds):
        result.node.append(run_round(node, requests, connections, seconds))
        result.stock.append(run_round(stock, requests, connections, seconds))
    return result


def run_round(server: Server, requests: Sequence[bytes], connections: int, seconds: float) -> Round:
    before = server.cpu_seconds()
    try:
        load = client.closed_loop(server.address, requests, connections=connections, seconds=seconds)
    except OSError as error:
        raise WrongAnswer(f"{server.name}: {error}; its output ends:\n{server.last_output()}") from error
    cpu = {part: after - before.get(part, 0.0) for part, after in server.cpu_seconds().items()}
    cpu["client"] = load.client_cpu_seconds
    if set(load.statuses) != {200}:
        raise WrongAnswer(f"{server.name}: all answers should be 200; found {dict(load.statuses)}")
    p50, p99 = np.percentile(load.latencies_ms, [50, 99])
    cpu_ms = {part: used * 1e3 / load.answered for part, used in cpu.items()}
    return Round(load.rate, float(p50), float(p99), cpu_ms)


def show(console: Console, comparisons: Sequence[Comparison]) -> None:
    ratios = Table(title="flights, one row a request: the node against stock TorchServe (medians of rounds)")
    for column in ("connections", "", "node", "stock", "node / stock", "of pairs of rounds"):
        ratios.add_column(column, justify="right")
    parts = Table(title="processor time for one request, ms")
    names = list(dict.fromkeys(part for c in comparisons for s in ("node", "stock") for part in c.cpu_ms(s)))
    for column in ("connections", "server", *names, "sum"):
        parts.add_column(column, justify="right")
    for comparison in comparisons:
        for quantity, unit in (("rate", "req/s"), ("p50_ms", "p50, ms"), ("p99_ms", "p99, ms")):
            low, high = comparison.spread(quantity)
            digits = 0 if quantity == "rate" else 2
            values = [f"{comparison.middle(server, quantity):.{digits}f}" for server in ("node", "stock")]
            ratio = f"{comparison.ratio(quantity):.2f}"
            ratios.add_row(str(comparison.connections), unit, *values, ratio, f"{low:.2f} - {high:.2f}")
        ratios.add_section()
        for name in ("node", "stock"):
            used = comparison.cpu_ms(name)
            cells = [f"{used[part]:.3f}" if part in used else "" for part in names]
            parts.add_row(str(comparison.connections), name, *cells, f"{sum(used.values()):.3f}")
        parts.add_section()
    console.print(ratios, parts)


def as_results(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """What a machine reads: every quantity with its unit, and where there is a bar, whether it held."""
    results: list[dict[str, Any]] = []

    def add(name: str, value: float, unit: str, bar: float | None = None) -> None:
        held = None if bar is None else value >= bar
        results.append({"name": name, "value": round(value, 4), "unit": unit, "bar": bar, "held": held})

    for comparison in comparisons:
        at = f"at {comparison.connections} connections"
        add(f"throughput {at}", comparison.ratio("rate"), "node / stock", BARS.get(comparison.connections))
        for quantity in ("p50_ms", "p99_ms"):
            add(f"latency {quantity.removesuffix('_ms')} {at}", comparison.ratio(quantity), "node / stock")
        for server in ("node", "stock"):
            add(f"{server} throughput {at}", comparison.middle(server, "rate"), "requests/s")
            add(f"{server} latency p50 {at}", comparison.middle(server, "p50_ms"), "ms")
            add(f"{server} latency p99 {at}", comparison.middle(server, "p99_ms"), "ms")
            for part, used in comparison.cpu_ms(server).items():
                add(f"{server} {part} processor time {at}", used, "ms/request")
    return results


if __name__ == "__main__":
    sys.exit(main())
