"""`make drift-study`: June to December through the served model that was trained on January to April.

Trains the flights model, serves it, sends it every flight of the seven months in the order of their departures, and
gives Prometheus the scrapes with the times of 2013. Then it says what drift and quality alerts would have seen when.
Ends with 1 if the summer or the change in September is not found. Writes study.svg and study.json; some ten minutes.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from deploy.errors import ShipwayError
from deploy.settings import read_settings
from model_store import flights
from model_store.errors import ModelStoreError
from model_store.files import write_atomically
from monitoring.config import Config
from tests.bench.lab import open_lab
from tests.bench.study import report, verdicts
from tests.bench.study.figure import draw
from tests.bench.study.replay import Place, prometheus, replay
from tests.bench.study.seasons import seasons
from tests.bench.study.timetable import timetable

MODEL = "flights"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.study", description=__doc__)
    into = read_settings().state_dir / "bench"
    parser.add_argument("--into", type=Path, default=into, help="folder of both files  [default: %(default)s]")
    options = parser.parse_args()
    console = Console()
    # Not below the state directory: a unix socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="study-", dir="/tmp") as name:
        directory = Path(name)
        with open_lab(directory / "lab", console) as lab:
            packaged = lab.packaged(MODEL, lambda lab: lab.shipway("train", MODEL))
        place = Place(directory, packaged)
        times = timetable(flights.load().rows(*flights.TRAFFIC_MONTHS))
        replay(place, times, console.log)
        with prometheus(place) as served:
            features, quality = verdicts.read(served, MODEL, packaged.version, times.start, times.end, Config())
    found = list(seasons(times.start, features, quality))
    report.show(console, found, times.start, features)
    options.into.mkdir(parents=True, exist_ok=True)
    draw(options.into / "study.svg", times.start, features, quality)
    document = report.as_dict(found, times.start, features, quality)
    write_atomically(options.into / "study.json", json.dumps(document, indent=1).encode() + b"\n")
    console.print(f"The figure is {options.into / 'study.svg'}, the figures are in study.json beside it")
    return 0 if all(one.found for one in found) else 1


if __name__ == "__main__":
    # Else the servers would go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (ShipwayError, ModelStoreError, RuntimeError, TimeoutError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"drift-study: {error}")
