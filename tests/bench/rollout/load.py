"""locust in a process of its own, for as long as something is done to the node that it asks."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
BEGINS_WITHIN_SECONDS = 60.0
ENDS_WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.1


@dataclass
class Load:
    """What locust saw; there once it has ended."""

    requests: dict[str, int] = field(default_factory=dict)
    """By protocol: POST and GRPC."""
    failures: list[str] = field(default_factory=list)
    """In words, with how often."""
    failed: int = 0

    @property
    def total(self) -> int:
        return sum(self.requests.values())


@contextmanager
def locust(
    directory: Path, model: str, target: str, rows: Sequence[Sequence[Mapping[str, Any]]], *, users: int, rate: float
) -> Iterator[Load]:
    """Half of the users ask over HTTP and half over gRPC, `rate` requests a second in all; 0 for all that they can.

    Raises RuntimeError where locust ends by itself, or asked over one of the protocols alone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rows.json").write_text(json.dumps(rows))
    with tempfile.TemporaryDirectory(dir=directory) as place:
        report, log = Path(place) / "report", Path(place) / "locust.log"
        command = [
            *(str(Path(sys.executable).with_name("locust")), "--locustfile", str(LOCUSTFILE), "--headless"),
            *("--only-summary", "--users", str(users), "--spawn-rate", str(users), "--stop-timeout", "30"),
            *("--json-file", str(report), "--csv", str(report)),
        ]
        asked = {
            "BENCH_MODEL": model,
            "BENCH_TARGET": target,
            "BENCH_ROWS": str(directory / "rows.json"),
            "BENCH_USER_RATE": str(rate / users),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(command, env={**os.environ, **asked}, stdout=output, stderr=output)
        found = Load()
        try:
            _wait_until_it_asks(process, Path(f"{report}_stats_history.csv"), log)
            yield found
            if process.poll() is not None:
                raise RuntimeError(f"locust has ended: {log.read_text()[-2000:]}")
            process.send_signal(signal.SIGTERM)
            process.wait(ENDS_WITHIN_SECONDS)
            _read(found, Path(f"{report}.json"), Path(f"{report}_failures.csv"))
        finally:
            process.kill()
            process.wait()


def _wait_until_it_asks(process: "subprocess.Popen[bytes]", history: Path, log: Path) -> None:
    deadline = time.monotonic() + BEGINS_WITHIN_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = history.read_text().splitlines() if history.exists() else []
        if lines[1:] and not lines[-1].endswith(",0"):
            return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"locust did not begin: {log.read_text()[-2000:]}")


def _read(found: Load, report: Path, failures: Path) -> None:
    entries: list[dict[str, Any]] = json.loads(report.read_text())
    found.requests = {one["method"]: one["num_requests"] for one in entries}
    found.failed = sum(one["num_failures"] for one in entries)
    with failures.open(newline="") as file:
        found.failures = [f"{one['Occurrences']} x {one['Error']}" for one in csv.DictReader(file)]
    if found.requests.keys() != {"POST", "GRPC"} or not all(found.requests.values()):
        raise RuntimeError(f"locust should have asked over both protocols; it sent {found.requests}")
