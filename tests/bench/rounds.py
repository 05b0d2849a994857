"""Interleaved rounds: each contestant in turn, over and over, so that what else the machine does falls on all of them.

A ratio is one of medians over all rounds; its spread is the least and largest ratio within one turn.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from tests.bench import client
from tests.bench.servers import Server

CORES = 2
"""Shared by the server and the client."""
WARM_UP_SECONDS = 5.0
"""Before the first round, at the largest number of connections: the JVM compiles what is used often."""
SETTLE_SECONDS = 0.5
"""Before each round: whoever has slept has cold caches, and timers that are due."""
WAKE_WITHIN_SECONDS = 20.0

BARE_LOOP = Path(__file__).with_name("peers") / "bare_loop.py"


class WrongAnswer(Exception):
    """A server that answers something else has no speed worth knowing."""


@dataclass(frozen=True)
class Round:
    """One contestant under one closed loop."""

    rate: float
    """Answers a second, or rows a second where there is no server."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms: Mapping[str, float] = field(default_factory=dict)
    """Processor time for each request, by part of the server, and the client's."""


class Contestant(Protocol):
    @property
    def name(self) -> str: ...

    def warm_up(self, connections: int) -> None: ...

    def round(self, connections: int, seconds: float) -> Round: ...


@dataclass(frozen=True)
class Asked:
    """A server that sleeps between its rounds, and what it is asked."""

    server: Server
    requests: Sequence[bytes]

    @property
    def name(self) -> str:
        return self.server.name

    def warm_up(self, connections: int) -> None:
        """Ray replaces its HAProxy soon after its first answer, which ends connections; so more than one attempt."""
        self.server.wake()
        deadline = time.monotonic() + WAKE_WITHIN_SECONDS
        while True:
            try:
                self._load(connections, WARM_UP_SECONDS)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise self._failed(error) from error
        self.server.sleep()

    def round(self, connections: int, seconds: float) -> Round:
        self.server.wake()
        try:
            self._load(connections, SETTLE_SECONDS)
            before = self.server.cpu_seconds()
            load = self._load(connections, seconds)
            cpu = {part: after - before.get(part, 0.0) for part, after in self.server.cpu_seconds().items()}
        except OSError as error:
            raise self._failed(error) from error
        self.server.sleep()
        if set(load.statuses) != {200}:
            raise WrongAnswer(f"{self.name}: all answers should be 200; found {dict(load.statuses)}")
        p50, p99 = np.percentile(load.latencies_ms, [50, 99])
        cpu["client"] = load.client_cpu_seconds
        return Round(
            load.rate, float(p50), float(p99), {part: used * 1e3 / load.answered for part, used in cpu.items()}
        )

    def _load(self, connections: int, seconds: float) -> client.Load:
        return client.closed_loop(self.server.address, self.requests, connections=connections, seconds=seconds)

    def _failed(self, error: OSError) -> WrongAnswer:
        return WrongAnswer(f"{self.name}: {error}; its output ends:\n{self.server.last_output()}")


@dataclass(frozen=True)
class BareLoop:
    """The model without a server, in a process of its own that waits between its rounds."""

    name: str
    process: "subprocess.Popen[str]"

    def warm_up(self, connections: int) -> None:
        self.round(connections, SETTLE_SECONDS)

    def round(self, connections: int, seconds: float) -> Round:  # noqa: ARG002 - nobody connects
        said = self._ask(f"{seconds}\n")
        return Round(said["rows"] / said["seconds"])

    def _ask(self, line: str) -> dict[str, float]:
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("a bare loop is asked through pipes")
        self.process.stdin.write(line)
        self.process.stdin.flush()
        said: dict[str, float] = json.loads(self.process.stdout.readline())
        return said


@contextmanager
def bare_loop(name: str, members: Mapping[str, bytes], bodies: Sequence[bytes], directory: Path) -> Iterator[BareLoop]:
    """The package's model on our own Python."""
    directory.mkdir()
    for file, content in {**members, "bare_loop.py": BARE_LOOP.read_bytes()}.items():
        (directory / file).write_bytes(content)
    (directory / "bodies").mkdir()
    for number, body in enumerate(bodies):
        (directory / "bodies" / f"{number:06}").write_bytes(body)
    command = [sys.executable, "bare_loop.py"]
    with subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise WrongAnswer(f"{name} did not start")
            yield BareLoop(name, process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Measured:
    """All rounds of a scenario by contestant and number of connections; turn by turn in the same order."""

    rounds: Mapping[tuple[str, int], list[Round]]

    def middle(self, name: str, connections: int, quantity: str = "rate") -> float:
        return median(_values(self.rounds[name, connections], quantity))

    def ratio(self, name: str, other: str, connections: int, quantity: str = "rate") -> float:
        return self.middle(name, connections, quantity) / self.middle(other, connections, quantity)

    def spread(self, name: str, other: str, connections: int, quantity: str = "rate") -> tuple[float, float]:
        """Least and largest ratio within one turn."""
        pairs = zip(*(_values(self.rounds[each, connections], quantity) for each in (name, other)), strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        return min(ratios), max(ratios)

    def best(self, names: Sequence[str], connections: int) -> str:
        """The one with the highest rate."""
        return max(names, key=lambda name: self.middle(name, connections))


def measure(
    contestants: Sequence[Contestant],
    connections: Sequence[int],
    turns: int,
    seconds: float,
    report: Callable[[str], None],
) -> Measured:
    for contestant in contestants:
        report(f"warming up {contestant.name}")
        contestant.warm_up(max(connections))
    rounds: dict[tuple[str, int], list[Round]] = {}
    for count in connections:
        for turn in range(turns):
            # Turned round each time, so that nobody always runs after the same neighbour.
            shift = turn % len(contestants)
            for contestant in [*contestants[shift:], *contestants[:shift]]:
                report(f"{count} connections, turn {turn + 1} of {turns}: {contestant.name}")
                rounds.setdefault((contestant.name, count), []).append(contestant.round(count, seconds))
    return Measured(rounds)


def use_two_cores() -> list[int]:
    """Keep this process and all that it starts to CORES cores; which ones."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    return cores


def _values(rounds: Sequence[Round], quantity: str) -> list[float]:
    return [float(getattr(one, quantity)) for one in rounds]
