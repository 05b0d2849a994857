"""`make bench`: the node as shipped against its peers and against the bare model, and the cost of counting.

Ends with 1 when a bar is missed. The first run makes the peers' environments and trains the models; both are kept
below bench/ of the state directory.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from deploy.errors import ShipwayError
from deploy.settings import read_settings
from model_store.errors import ModelStoreError
from tests.bench import environments, report
from tests.bench.counting import measure_counting
from tests.bench.findings import Finding
from tests.bench.lab import open_lab
from tests.bench.rounds import WrongAnswer, use_two_cores
from tests.bench.scenario import Outcome, Scenario, prepare, run
from tests.bench.scenarios import SCENARIOS
from tests.bench.servers import Packaged

COUNTING = "counting"
ROUNDS = 5
ROUND_SECONDS = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = [*SCENARIOS, COUNTING]
    parser.add_argument("--scenario", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each contestant  [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="of a round  [default: %(default)s]")
    options = parser.parse_args()
    chosen = options.scenario or names
    cores = use_two_cores()
    console = Console()
    kept = read_settings().state_dir / "bench"
    findings: list[Finding] = []
    for outcome in _outcomes([name for name in SCENARIOS if name in chosen], kept, options, console):
        name = outcome.scenario.name
        report.show(console, outcome)
        report.plot(kept / f"{name}.svg", outcome)
        report.write_json(kept / f"{name}.json", outcome.findings, cores, outcome)
        findings += outcome.findings
    if COUNTING in chosen:
        counted = measure_counting()
        report.write_json(kept / f"{COUNTING}.json", counted, cores)
        findings += counted
    report.show_findings(console, findings)
    console.print(f"Figures and plots are in {kept}")
    return 1 if any(one.held is False for one in findings) else 0


def _outcomes(names: list[str], kept: Path, options: argparse.Namespace, console: Console) -> list[Outcome]:
    if not names:
        return []
    scenarios = [SCENARIOS[name]() for name in names]
    pythons = {peer: environments.python_of(peer, kept / "envs", console) for peer in environments.REQUIREMENTS}
    with open_lab(kept / "lab", console) as lab:
        archives = {scenario.name: prepare(scenario, lab) for scenario in scenarios}
    return [_outcome(scenario, archives[scenario.name], pythons, options, console) for scenario in scenarios]


def _outcome(
    scenario: Scenario,
    archives: Mapping[str, Packaged],
    pythons: Mapping[str, Path],
    options: argparse.Namespace,
    console: Console,
) -> Outcome:
    # Not below the state directory: a unix socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as place, console.status(scenario.title) as status:
        return run(
            scenario,
            archives,
            pythons,
            Path(place),
            turns=options.rounds,
            seconds=options.seconds,
            # A log file gets lines, as it shows no status.
            report=lambda words: (status.update if console.is_terminal else console.log)(f"{scenario.name}: {words}"),
        )


if __name__ == "__main__":
    # Else the servers would go on, half of them asleep.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (WrongAnswer, ShipwayError, ModelStoreError, TimeoutError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench: {error}")
