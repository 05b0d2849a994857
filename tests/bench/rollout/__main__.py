"""`make rollout-bench`: what the gate does with good and bad canaries, and what users see of rollouts, against bars.

The gate is fed with simulated requests (gate, verdicts); the rest happens to real programs under load. Ends with 1
when a bar is missed. The same seed simulates the same rollouts. The findings are in rollout.json below
bench/ of the state directory.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from rich.console import Console

from deploy.errors import ShipwayError
from deploy.settings import read_settings
from tests.bench.findings import Finding
from tests.bench.parts import Part, run
from tests.bench.rollout.gate import ROLLOUTS, GateDiffers, gate
from tests.bench.rollout.ground import Ground, open_ground
from tests.bench.rollout.harmless import REQUESTS, harmless
from tests.bench.rollout.kills import kills
from tests.bench.rollout.live import REPETITIONS, live
from tests.bench.rollout.verdicts import verdicts

SPREADS = "of shares: intervals of 95%; of requests: nine of ten"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rollout", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is simulated  [default: %(default)s]")
    parser.add_argument(
        "--rollouts", type=int, default=ROLLOUTS, help="simulated of each kind of canary  [default: %(default)s]"
    )
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="live rollouts of each kind  [default: %(default)s]"
    )
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="during harmless rollouts, at least  [default: %(default)s]"
    )
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be repeated")
    options = parser.parse_args()
    console, target = Console(), read_settings().state_dir / "bench" / "rollout.json"
    found: Mapping[str, Part] = {name: partial(part, options) for name, part in PARTS.items()}
    return run(found, options.only, target, SPREADS, console)


def _on_ground(part: Callable[[Ground, Console], Iterable[Finding]]) -> list[Finding]:
    with open_ground() as ground:
        return list(part(ground, Console()))


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterable[Finding]]] = {
    "gate": lambda options: gate(options.seed, options.rollouts),
    "verdicts": lambda options: verdicts(options.seed),
    "live": lambda options: _on_ground(lambda ground, console: live(ground, console, options.repetitions)),
    "harmless": lambda options: _on_ground(lambda ground, console: harmless(ground, console, options.requests)),
    "kills": lambda _: _on_ground(kills),
}


if __name__ == "__main__":
    # Else the stack would go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (GateDiffers, ShipwayError, RuntimeError, TimeoutError) as error:
        sys.exit(f"rollout-bench: {error}")
