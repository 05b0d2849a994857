"""Five versions on a live endpoint under locust: does each get its verdict, every time?"""

from collections import Counter

from rich.console import Console

from deploy.drill.drill import SUFFIX, prepared
from tests.bench.findings import Finding
from tests.bench.rollout.ground import MODEL, Ground
from tests.bench.rollout.load import locust

KINDS = ("good", "slow", "erring", "resetting", "changed")
RATE = 60.0
"""Requests a second by locust, and as many by the drill's own users, who note what became of each."""
USERS = 8
REPETITIONS = 20


def live(ground: Ground, console: Console, repetitions: int = REPETITIONS) -> list[Finding]:
    settings = ground.settings
    right: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with prepared(settings, MODEL, KINDS, RATE, lambda *_: None) as place:
        load = locust(
            settings.state_dir / "bench", MODEL + SUFFIX, settings.grpc_target, ground.rows, users=USERS, rate=RATE
        )
        with load:
            for repetition in range(repetitions):
                for kind in KINDS:
                    outcome = place.exercise(kind)
                    right[kind] += not outcome.problems
                    seconds[kind].append(outcome.seconds)
                    words = "; ".join(outcome.problems) or f"{outcome.entry.state} because of {outcome.because}"
                    console.log(f"{repetition + 1}. {kind}: {words}, after {outcome.seconds:.0f} s", markup=False)
    return [
        Finding(f"{kind}: right verdicts of {repetitions}", right[kind], "rollouts", bar=repetitions) for kind in KINDS
    ] + [
        Finding(
            f"{kind}: until its end", sorted(seconds[kind])[repetitions // 2], "s",
            spread=(min(seconds[kind]), max(seconds[kind])),
        )
        for kind in KINDS
    ]  # fmt: skip
