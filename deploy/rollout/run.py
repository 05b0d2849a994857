"""The loop that carries out a rollout: bring about the traffic of the newest entry, then write the next.

An entry and the change of the desired state that belongs to it are made under the ledger's lock, after checking that
nobody else wrote an entry meanwhile. Nothing is kept in this process that the ledger does not say.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deploy.errors import LoadFailed, TakenOver
from deploy.rollout import machine
from deploy.rollout.driver import Driver
from deploy.rollout.interrupts import Interrupted, Wish, obey
from deploy.rollout.ledger import AnyLedger, whoami
from deploy.rollout.machine import Move
from deploy.rollout.record import ENDED, Entry, Step, Verdict

POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0
"""Between two judgements, and between two looks at whether somebody else took over."""


class Judge(Protocol):
    def __call__(self, entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
        """The verdict at the Unix time `at` on the step of a JUDGING entry, whose `at` is when the step's time began.

        `lost_readiness`: why the candidate is not READY now though the champion is, empty if it is.
        """


Tell = Callable[[Entry, Verdict | None, Sequence[Step]], None]
"""Show where the rollout stands: an entry that was just written, or a new verdict on the step of the newest."""


@dataclass
class Run:
    """One process's work on one endpoint's rollout.

    Every method raises TakenOver when another process wrote an entry meanwhile, and LeftUnfinished when this one was
    told to end.
    """

    ledger: AnyLedger
    driver: Driver
    steps: Sequence[Step]
    judge: Judge
    tell: Tell
    wish: Callable[[], Wish]
    began: float = field(default_factory=time.monotonic)
    """From when on it is counted how long a rollback takes."""

    def go_on(self, entry: Entry) -> Entry:
        """Take the rollout from its newest entry to where it ends or is held; returns that entry."""
        self.tell(entry, None, self.steps)
        try:
            while entry.state not in (*ENDED, "HELD"):
                entry = self.write(entry, self._next(entry))
                self.tell(entry, None, self.steps)
        finally:
            self.driver.leave()
        return entry

    def write(self, entry: Entry, move: Move) -> Entry:
        """Append what follows `entry`, if it is still the newest, and ask for the traffic that belongs to it."""
        with self.ledger.writing() as writer:
            newest = writer.newest()
            if newest is None or newest.number != entry.number:
                raise _taken_over(entry, newest)
            if move.state == "ROLLING_BACK":
                self.began = time.monotonic()
            entry = writer.append(moved(entry, move))
            self.driver.ask(entry.model, machine.traffic(entry, self.steps))
        return entry

    def _next(self, entry: Entry) -> Move:
        try:
            if entry.state == "JUDGING":
                return self._judged(entry)
            self._bring_about(entry)
        except Interrupted:
            return machine.back(entry, f"taken back by {whoami()}")
        except LoadFailed as error:
            move = machine.failed(entry, str(error))
            if move is None:
                raise
            return move
        move = machine.reached(entry, self.steps)
        if move.state == "ROLLED_BACK":
            seconds = time.monotonic() - self.began
            move = move.model_copy(update={"detail": {**entry.detail, "seconds": f"{seconds:.2f}"}})
        return move

    def _bring_about(self, entry: Entry) -> None:
        """Wait until the entry's traffic is in force."""
        wanted = machine.traffic(entry, self.steps)
        look = deadline = time.monotonic()
        patience = self.driver.patience_seconds
        deadline += patience
        while not self.driver.reached(entry.model, wanted):
            if time.monotonic() > deadline:
                raise LoadFailed(f"it was not done within {patience:g} s; see: shipway status")
            if time.monotonic() >= look:
                self._still_ours(entry)
                look = time.monotonic() + LOOK_SECONDS
            obey(self.wish(), entry)
            time.sleep(POLL_SECONDS)

    def _judged(self, entry: Entry) -> Move:
        """Judge the step until that says what follows."""
        since = self._canary_since(entry)
        look = time.monotonic()
        while True:
            obey(self.wish(), entry)
            if time.monotonic() >= look:
                self._still_ours(entry)
                verdict = self.judge(
                    entry, canary_since=since, at=time.time(), lost_readiness=self._lost_readiness(entry)
                )
                self.tell(entry, verdict, self.steps)
                if move := machine.judged(entry, verdict, self.steps):
                    return move
                look = time.monotonic() + LOOK_SECONDS
            time.sleep(POLL_SECONDS)

    def _canary_since(self, entry: Entry) -> float:
        """When the candidate got its first requests."""
        ours = [one for one in self.ledger.entries() if one.rollout == entry.rollout and one.state == "JUDGING"]
        return ours[0].at

    def _lost_readiness(self, entry: Entry) -> str:
        """Why the candidate is not READY. A node that is being restarted has neither, and that condemns nobody."""
        found = self.driver.serving(entry.model)
        if entry.candidate is None or entry.champion is None or entry.champion.version in found.unready:
            return ""
        if entry.candidate not in (found.champion, *found.others):
            return f"version {entry.candidate.version} is not in service any more: somebody else has taken it out"
        return found.unready.get(entry.candidate.version, "")

    def _still_ours(self, entry: Entry) -> None:
        newest = self.ledger.newest()
        if newest is None or newest.number != entry.number:
            raise _taken_over(entry, newest)


def moved(entry: Entry, move: Move) -> Entry:
    """What follows `entry` by `move`, made by this process at this moment."""
    changes = {name: getattr(move, name) for name in Move.model_fields}
    return entry.model_copy(update={"at": time.time(), "who": whoami(), **changes})


def _taken_over(ours: Entry, newest: Entry | None) -> TakenOver:
    found = newest or ours
    return TakenOver(ours.rollout, found.who, found.state or "", found.words)
