"""Seven months of flights through a served node in minutes: ask, scrape, and give the scrapes to Prometheus."""

import http.client
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.node.torchserve import free_ports
from deploy.prometheus import Prometheus
from model_store import flights
from tests.bench import servers
from tests.bench.client import post
from tests.bench.servers import Packaged
from tests.bench.study.samples import END, Confusion, stamped
from tests.bench.study.timetable import Timetable

SCRAPE_SECONDS = 1800
"""Simulated: two scrapes an hour."""
LABEL_SECONDS = 12 * 3600
"""Simulated: by then every flight has landed."""
FILE_SECONDS = 31 * 86400
"""promtool reads a file once for each block, so a file is about a month long, and a block too."""
TIMEOUT_SECONDS = 60


@dataclass
class Place:
    """Where one study runs."""

    directory: Path
    packaged: Packaged

    @property
    def blocks(self) -> Path:
        return self.directory / "prometheus"


def replay(place: Place, times: Timetable, report: Callable[[str], None]) -> None:
    """Send every flight through a node and leave Prometheus' blocks in `place.blocks`.

    Raises http.client.HTTPException, OSError, or RuntimeError with the node's words.
    """
    directory = place.directory / "node"
    directory.mkdir()
    probe = post(f"/v2/models/{place.packaged.model}/infer", _body(times.frame.iloc[:1]), "application/json")
    with ExitStack() as stack:
        node = stack.enter_context(servers.node("node", place.packaged, directory, probe))
        edge = http.client.HTTPConnection(*node.address, timeout=TIMEOUT_SECONDS)
        metrics = http.client.HTTPConnection(str(urlsplit(node.metrics_url).netloc), timeout=TIMEOUT_SECONDS)
        for connection in (edge, metrics):
            stack.enter_context(closing(connection))
        lines = _scrapes(place.packaged, times, edge, metrics, report)
        for number, part in enumerate(_files(lines)):
            text = place.directory / f"{number}.om"
            with text.open("w") as file:
                file.writelines(part)
                file.write(END)
            _create_blocks(text, place.blocks)
            text.unlink()


def _scrapes(
    packaged: Packaged,
    times: Timetable,
    edge: http.client.HTTPConnection,
    metrics: http.client.HTTPConnection,
    report: Callable[[str], None],
) -> Iterator[tuple[int, list[str]]]:
    """Time and lines of each scrape, the first before any flight."""
    confusion = Confusion(packaged.model, packaged.version, flights.CLASSES, LABEL_SECONDS)
    actual = [flights.CLASSES[late] for late in times.frame[flights.LABEL].astype(int)]

    def scrape(at: int) -> tuple[int, list[str]]:
        text = _ask(metrics, "GET", "/metrics").decode()
        return at, [*stamped(text, at, packaged.model), *confusion.lines(at)]

    yield scrape(times.start)
    for at, rows in times.intervals(SCRAPE_SECONDS):
        if rows.stop > rows.start:
            answer = json.loads(_ask(edge, "POST", f"/v2/models/{packaged.model}/infer", _body(times.frame.iloc[rows])))
            likely = answer["outputs"][0]["data"]
            confusion.predicted(at, zip((flights.CLASSES[p > 0.5] for p in likely), actual[rows], strict=True))
        yield scrape(at)
        if (at - times.start) % (7 * 86400) == 0:
            report(f"{rows.stop:,} of {len(actual):,} flights, {(at - times.start) // (7 * 86400)} weeks")


def _body(rows: Any) -> bytes:
    """An Open Inference Protocol request; null is a missing number."""
    tensors = [
        {
            "name": name,
            "datatype": "BYTES" if name in flights.CATEGORIES else "FP32",
            "shape": [len(rows)],
            "data": data,
        }
        for name, data in flights.to_columns(rows).items()
    ]
    return json.dumps({"inputs": tensors}).encode()


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    connection.request(method, path, body, {"content-type": "application/json"} if body else {})
    answer = connection.getresponse()
    found = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: {answer.status} {found[:500].decode(errors='replace')}")
    return found


def _files(scrapes: Iterator[tuple[int, list[str]]]) -> Iterator[Iterator[str]]:
    """The lines of each file; a file's must be used up before the next is asked for."""
    waiting = next(scrapes, None)

    def until(end: int) -> Iterator[str]:
        nonlocal waiting
        while waiting is not None and waiting[0] < end:
            yield from waiting[1]
            waiting = next(scrapes, None)

    while waiting is not None:
        yield until(waiting[0] + FILE_SECONDS)


def _create_blocks(text: Path, blocks: Path) -> None:
    # Hidden in its help; without it, every 2 hours become a block, and each block reads the whole file.
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "--quiet", "--max-block-duration=1500h"]
    done = subprocess.run([*command, str(text), str(blocks)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"promtool took no blocks from {text.name}: {done.stderr[-500:]}")


@contextmanager
def prometheus(place: Place) -> Iterator[Prometheus]:
    """A Prometheus that has the blocks and scrapes nobody."""
    directory = place.directory / "server"
    directory.mkdir()
    (directory / "prometheus.yml").write_text("{}\n")
    port = free_ports(1)[0]
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        f"--storage.tsdb.path={place.blocks}",
        "--storage.tsdb.retention.time=100y",  # the blocks are of 2013
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    probe = b"GET /-/ready HTTP/1.1\r\nhost: study\r\n\r\n"
    with servers.running("Prometheus", command, directory, {}, port, probe):
        yield Prometheus(f"http://127.0.0.1:{port}", timeout_seconds=120)
