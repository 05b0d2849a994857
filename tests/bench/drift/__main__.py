"""`make drift-bench`: false alarms, delays and costs of monitoring, and what others' defaults do on the same traffic.

Ends with 1 when a bar is missed. The same seed simulates the same traffic. The first run makes the model that is
served, which is kept below bench/ of the state directory; the findings are in drift.json there.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console

from deploy.errors import ShipwayError
from deploy.settings import read_settings
from model_store.errors import ModelStoreError
from tests.bench.counting import measure_counting
from tests.bench.drift.delays import delays
from tests.bench.drift.evaluation import evaluation
from tests.bench.drift.false_alarms import false_alarms
from tests.bench.drift.merging import merging
from tests.bench.drift.pictures import pictures
from tests.bench.drift.serving import PAIRS, serving
from tests.bench.findings import Finding
from tests.bench.parts import Part, run
from tests.bench.rounds import WrongAnswer

WEEKS = 30
"""The fewest in which no false alarm at all means less than 0.1 a week with 95% confidence."""
SPREADS = "of counts and shares: intervals of 95%, of delays: nine of ten, else least and largest"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drift", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is simulated  [default: %(default)s]")
    parser.add_argument("--weeks", type=int, default=WEEKS, help="of each kind of traffic  [default: %(default)s]")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of rounds of the two nodes  [default: %(default)s]")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be repeated")
    options = parser.parse_args()
    console, kept = Console(), read_settings().state_dir / "bench"
    found: Mapping[str, Part] = {name: partial(part, options, kept, console) for name, part in PARTS.items()}
    return run(found, options.only, kept / "drift.json", SPREADS, console)


def _false_alarms(options: argparse.Namespace, _: Path, __: Console) -> list[Finding]:
    with ProcessPoolExecutor() as pool:
        return list(false_alarms(pool, options.seed, options.weeks))


PARTS: Mapping[str, Callable[[argparse.Namespace, Path, Console], Iterable[Finding]]] = {
    "false-alarms": _false_alarms,
    "delays": lambda options, _, __: delays(options.seed),
    "merging": lambda options, _, __: [merging(options.seed)],
    "pictures": lambda options, _, __: [pictures(options.seed)],
    "counting": lambda _, __, ___: measure_counting(),
    "serving": lambda options, kept, console: serving(kept, console, options.pairs),
    "evaluation": lambda _, __, ___: [evaluation()],
}


if __name__ == "__main__":
    # Else the servers would go on, half of them asleep.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (WrongAnswer, ShipwayError, ModelStoreError, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"drift-bench: {error}")
