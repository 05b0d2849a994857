"""A real Prometheus that holds a past: counters of two nodes, as if it had scraped them every minute."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STEP_SECONDS = 60


@dataclass(frozen=True)
class Traffic:
    """One feature: the profile's rows by bin, and the shares that traffic fell into."""

    feature: str
    kind: str
    reference: dict[str, int]
    shares: dict[str, float]


class History:
    """Samples of `minutes` minutes up to the Unix time `end`."""

    def __init__(self, end: float, minutes: int) -> None:
        self.times = end - STEP_SECONDS * np.arange(minutes, -1, -1, dtype=np.float64)
        self._families: dict[str, list[str]] = {}

    def add(self, metric: str, values: Array | float, **labels: str) -> None:
        """One series; a single value for all times is a gauge that does not change, NaN is no sample."""
        inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
        lines = self._families.setdefault(metric, [])
        for moment, value in zip(self.times, np.broadcast_to(values, self.times.shape), strict=True):
            if np.isfinite(value):
                lines.append(f"{metric}{{{inside}}} {value:.10g} {moment:.3f}")

    def add_traffic(self, model: str, version: int, rows: Array, features: list[Traffic], instance: str) -> None:
        """A node's counters: `rows` counted so far, [times], which may fall back to 0 where the node restarted."""
        one = {"model": model, "version": str(version), "instance": instance}
        self.add("shipway_rows_total", rows, **one)
        for each in features:
            for label, reference in each.reference.items():
                its = {**one, "feature": each.feature, "kind": each.kind, "bin": label}
                self.add("shipway_feature_reference_rows", reference, **its)
                self.add("shipway_feature_rows_total", np.floor(rows * each.shares.get(label, 0.0)), **its)

    def write(self, directory: Path) -> None:
        """Make the blocks of a Prometheus below `directory`."""
        text = directory / "history.txt"
        text.write_text("\n".join([*(line for lines in self._families.values() for line in lines), "# EOF"]) + "\n")
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q", str(text), str(directory / "data")],
            check=True,
            capture_output=True,
            timeout=120,
        )


@contextmanager
def real_prometheus(directory: Path, port: int) -> Iterator[str]:
    """A Prometheus that scrapes nobody, on the data below `directory`; its URL."""
    config = directory / "prometheus.yml"
    config.write_text("global: {}\n")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
               f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=15d"]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "Prometheus ended"
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    raise TimeoutError(f"Prometheus did not answer at {url}")
