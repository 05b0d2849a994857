"""A rollout in a process of its own that kills itself: `python -m tests.integration.killed_rollout VERSION STATE STEP`.

VERSION 0 goes on with what was left. Every step is found good at once, or bad where STATE is ROLLING_BACK. Nothing is
killed at a STATE that never comes.
"""

import os
import signal
import sys
from collections.abc import Sequence

from deploy.rollout import here
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Outcome, Step, Verdict
from deploy.rollout.run import Judge
from deploy.settings import read_settings

POLICY = Policy(steps=tuple(Step(weight=weight, seconds=1, requests=1, give_up_seconds=60) for weight in (5, 100)))


def judging(outcome: Outcome) -> Judge:
    def judged(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        words = lost_readiness or f"told to {outcome}"
        return Verdict(outcome=outcome, words=words, checks=(), step=entry.step or 0, since=canary_since, at=at)

    return judged


def main(version: int, state: str, step: int | None) -> None:
    settings = read_settings()

    def tell(entry: Entry, _: Verdict | None, __: Sequence[Step]) -> None:
        if entry.state == state and (step is None or entry.step == step):
            os.kill(os.getpid(), signal.SIGKILL)

    endpoint = here.endpoint(settings, "flights", tell=tell, policy=POLICY)
    outcome: Outcome = "roll back" if state == "ROLLING_BACK" else "promote"
    endpoint.judging = lambda _: judging(outcome)
    ended = endpoint.roll_out(here.release(settings, "flights", version)) if version else endpoint.resume()
    sys.stdout.write(f"{ended.state}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
