"""How long Prometheus takes to evaluate each group of rules over the series of a whole fleet.

A week of history is written as Prometheus' own blocks, so that the long windows are full; then a real Prometheus
evaluates the rules over it for some seconds.
"""

import json
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from deploy.node.torchserve import free_ports
from monitoring.config import Config
from monitoring.names import FEATURE_ROWS, REFERENCE_ROWS, RFF_REFERENCE_ROWS, RFF_SUM, ROWS
from monitoring.rules.file import rule_file

BINS = [*(f"{index:02d}" for index in range(10)), "missing"]
DIMENSIONS = 32
EVALUATIONS = 8
DURATION = "prometheus_rule_group_last_duration_seconds"
WITHIN_SECONDS = 120


def evaluation_seconds(nodes: int = 4, features: int = 30, scrape_seconds: int = 15) -> dict[str, float]:
    """Median of the evaluations of each group, in seconds, by the group's name."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        _write_history(home, nodes, features, scrape_seconds)
        (home / "rules.yml").write_text(rule_file(Config()).replace("interval: 1m", "interval: 2s"))
        (port,) = free_ports(1)
        (home / "prometheus.yml").write_text(
            f"global: {{scrape_interval: 1s}}\nrule_files: [rules.yml]\n"
            f'scrape_configs: [{{job_name: itself, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]\n'
        )
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log,
            )  # fmt: skip
            try:
                return _measured(f"http://127.0.0.1:{port}")
            finally:
                process.terminate()
                process.wait()


def _measured(url: str) -> dict[str, float]:
    """Asks Prometheus for its own durations until there are enough of them."""
    query = urllib.parse.urlencode({"query": f"{DURATION}[10m]"})
    deadline = time.monotonic() + WITHIN_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        try:
            with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:
            continue
        # A value that is scraped twice is one evaluation; the first reads the history from disk.
        times = {
            one["metric"]["rule_group"].partition(";")[2]: list(
                dict.fromkeys(float(value) for _, value in one["values"])
            )
            for one in found
        }
        if times and all(len(each) > EVALUATIONS for each in times.values()):
            return {group: median(each[1:]) for group, each in times.items()}
    raise TimeoutError(f"{EVALUATIONS} evaluations of each group took more than {WITHIN_SECONDS} s")


def _write_history(home: Path, nodes: int, features: int, scrape_seconds: int) -> None:
    now = int(time.time())
    with (home / "history").open("w") as text:
        for name, labels, step, seconds, value in _series(nodes, features, scrape_seconds):
            for index, at in enumerate(range(now - seconds, now + 1, step)):
                grown = value * index if name.endswith("_total") else value
                text.write(f"{name}{{{labels}}} {grown} {at}\n")
        text.write("# EOF\n")
    subprocess.run(
        # Hidden in its help; without it every two hours become a block, and each block reads the whole file.
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=200h", home / "history",
         home / "data"],
        check=True, capture_output=True,
    )  # fmt: skip


def _series(nodes: int, features: int, scrape_seconds: int) -> Iterator[tuple[str, str, int, int, float]]:
    """(name, labels, seconds between samples, seconds of history, value or growth in a step).

    Raw counters of the last hour as each node exports them, and what the 10-minute groups recorded in a day and the
    1-hour groups in a week: of that a quarter, which is as much as the file can hold in reasonable time.
    """
    version = 'model="m",version="3"'
    every_feature = [f'{version},feature="f{index}",kind="number"' for index in range(features)]
    bins = [(f'{feature},bin="{bin_}"', 30.0 + index) for feature in every_feature for index, bin_ in enumerate(BINS)]
    dimensions = [f'{version},dimension="{index}"' for index in range(DIMENSIONS)]
    for node in range(nodes):
        where = f',instance="{node}"'
        for labels, rate in bins:
            yield FEATURE_ROWS.name, labels + where, scrape_seconds, 3600, rate
            yield REFERENCE_ROWS.name, labels + where, scrape_seconds, 300, 500.0
        for labels in dimensions:
            yield RFF_SUM.name, labels + where, scrape_seconds, 3600, 1500.0
        yield ROWS.name, version + where, scrape_seconds, 3600, 370.0
        yield RFF_REFERENCE_ROWS.name, version + where, scrape_seconds, 300, 5000.0
    for window, step, history in (("10m", 60, 86400), ("1h", 240, 7 * 86400)):
        for labels, rate in bins:
            yield f"shipway_bin:rows:{window}", labels, step, history, rate * 40 * nodes
        for labels in dimensions:
            yield f"shipway_rff:sum:{window}", labels, step, history, 60000.0 * nodes
        yield f"shipway_version:rows:{window}", version, step, history, 15000.0 * nodes
    for feature in every_feature:
        yield "shipway_feature:rows:1h", feature, 60, 7200, 15000.0 * nodes
        yield "shipway_feature:lag_dispersion:1h", feature, 240, 7 * 86400, 2.0


if __name__ == "__main__":
    for group, seconds in evaluation_seconds().items():
        print(f"{group:25} {seconds:.3f} s")  # noqa: T201 - what it is run for
