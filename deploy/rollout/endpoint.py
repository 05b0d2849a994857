"""What can be asked of an endpoint: roll a version out, go on with that, go back, or just serve a version.

Who may begin what is decided under the ledger's lock, with what the endpoint serves at that moment.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import (
    AlreadyServes,
    BreaksClients,
    NoGoodVersion,
    NothingToResume,
    RollbackFailed,
    RolloutRuns,
    RolloutUnfinished,
)
from deploy.rollout import machine
from deploy.rollout.driver import Driver
from deploy.rollout.interrupts import Wish
from deploy.rollout.ledger import AnyLedger, AnyWriter, unfinished, whoami
from deploy.rollout.machine import Move
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Kind, Release, Verdict
from deploy.rollout.run import Judge, Run, Tell, moved

SHADOW = "shadow"
"""In the detail of a rollout's first entry: the percentage that is mirrored before it takes traffic."""


@dataclass
class Endpoint:
    """One model's rollouts. Every method raises RolloutError or NodeError."""

    model: str
    ledger: AnyLedger
    driver: Driver
    locks_dir: Path
    packaged: Callable[[int], Release]
    """The archive of a version that lies on this machine; raises NotPackaged."""
    read_policy: Callable[[], Policy]
    """Called when something is to be judged: a mistake in it must stop nobody from going back."""
    judging: Callable[[Policy], Judge]
    breaking: Callable[[Release, Release], Sequence[str]]
    """What would break the clients of the first release where the second answers them."""
    tell: Tell = lambda *_: None
    wish: Callable[[], Wish] = lambda: ""

    def roll_out(self, candidate: Release, shadow: int = 0, *, allow_breaking: bool = False) -> Entry:
        """Move the endpoint to `candidate` in judged steps; returns the entry that ends it, or holds it.

        Raises:
            BreaksClients: the champion's clients could not ask the candidate as they ask now.
        """
        with self._alone():
            run = self._run(shadow)
            # Both archives are read for this, and that takes too long for the ledger's lock.
            asked = self._champion(self.ledger, candidate)
            self._refuse_breaking(asked, candidate, allow=allow_breaking)
            with self.ledger.writing() as writer:
                champion = self._champion(writer, candidate)
                if champion != asked:
                    self._refuse_breaking(champion, candidate, allow=allow_breaking)
                words = f"load version {candidate.version}" + (
                    f" beside version {champion.version}" if champion else "; nothing is in service"
                )
                detail = {SHADOW: str(shadow)} if shadow else {}
                move = Move(state="PENDING", words=words, detail=detail)
                entry = self._begin(writer, "rollout", champion, candidate, move)
            return run.go_on(entry)

    def resume(self) -> Entry:
        """Go on with an unfinished rollout or rollback, from wherever it was left.

        Raises:
            NothingToResume: the last one has ended.
            RollbackFailed: as `roll_back` does.
        """
        with self._alone():
            newest = self.ledger.newest()
            run = self._run(_shadow(self.ledger.entries(), newest))
            move = machine.resumed(newest, run.steps) if newest else None
            if newest is None or move is None:
                last = f"the last one, {newest.rollout}, is {newest.state}" if newest else "there never was one"
                raise NothingToResume(self.model, last)
            entry = run.go_on(run.write(newest, move))
            return _done(entry) if entry.kind == "rollback" else entry

    def roll_back(self, to: int | None = None) -> Entry:
        """Give all traffic to the last good version, or to version `to`; a rollout that is on is taken back first.

        It takes a running rollout out of its process's hands.

        Raises:
            NoGoodVersion: there is none to go back to.
            RollbackFailed: the version could not be loaded; what served goes on serving.
        """
        run = Run(self.ledger, self.driver, (), _never, self.tell, lambda: "")
        entry = self._take_back()
        if entry is not None:
            entry = run.go_on(entry)
            if to is None or (entry.champion and entry.champion.version == to):
                return _done(entry)
        before = self.driver.before_failure(self.model)  # helm is asked, and takes too long for the ledger's lock
        with self.ledger.writing() as writer:
            serving, current = self.driver.serving(self.model), self._current(writer)
            if before is not None:
                current = serving.champion  # of which the ledger knows nothing
            target = before if before and to is None else self._target(writer.entries(), current, to)
            if current and target.version == current.version:
                raise AlreadyServes(self.model, target.version)
            words = f"back to version {target.version}" + (f" from version {current.version}" if current else "")
            warm = target in serving.others
            move = Move(state="ROLLING_BACK", words=f"{words}, which is {'warm' if warm else 'loaded first'}")
            entry = self._begin(writer, "rollback", target, current, move)
        return _done(run.go_on(entry))

    def withdraw(self) -> Entry | None:
        """Take the endpoint out of service; a rollout that is on is taken back first. None if it is not in service."""
        run = Run(self.ledger, self.driver, (), _never, self.tell, lambda: "")
        if taken := self._take_back():
            run.go_on(taken)
        with self.ledger.writing() as writer:
            current = self._current(writer)
            if current is None:
                return None
            move = Move(state="ROLLING_BACK", words=f"version {current.version} is taken out of service")
            entry = self._begin(writer, "rollback", None, current, move)
        return _done(run.go_on(entry))

    def adopt(self, release: Release, serve: Callable[[], object]) -> Entry | None:
        """Write down that `serve`, which is called, gives all traffic to `release` unjudged; None if it had it."""
        with self.ledger.writing() as writer:
            _refuse_unfinished(writer.newest())
            champion = self._current(writer)
            entry = None
            if champion != release:
                move = Move(state="PROMOTED", words=f"version {release.version} was put in service, unjudged")
                entry = self._begin(writer, "adopted", champion, release, move)
            serve()
        return entry

    def _champion(self, ledger: AnyLedger | AnyWriter, candidate: Release) -> Release | None:
        """What the candidate would follow; None if it is the first. Raises RolloutUnfinished or AlreadyServes."""
        _refuse_unfinished(ledger.newest())
        champion = self._current(ledger)
        if champion and champion.version == candidate.version:
            raise AlreadyServes(self.model, champion.version)
        return champion

    def _refuse_breaking(self, champion: Release | None, candidate: Release, *, allow: bool) -> None:
        if champion and not allow and (problems := self.breaking(champion, candidate)):
            raise BreaksClients(self.model, candidate.version, problems)

    def _current(self, ledger: AnyLedger | AnyWriter) -> Release | None:
        """Who has the traffic: the ledger says so, and the desired state only where there is no ledger yet."""
        newest = ledger.newest()
        return machine.serves(newest) if newest else self.driver.serving(self.model).champion

    def _target(self, entries: list[Entry], current: Release | None, to: int | None) -> Release:
        """The version to go back to: the archive of it that served last, or lies on this machine."""
        if to is None:
            others = [one for one in machine.good(entries) if not current or one.version != current.version]
            if not others:
                raise NoGoodVersion(self.model, current.version if current else None)
            return others[-1]
        known = [one for entry in entries for one in (entry.champion, entry.candidate) if one and one.version == to]
        return known[-1] if known else self.packaged(to)

    def _take_back(self) -> Entry | None:
        """Write that the unfinished rollout is taken back, whoever works on it; None if there is none."""
        with self.ledger.writing() as writer:
            newest = unfinished(writer.newest())
            if newest is None:
                return None
            move = machine.back(newest, f"taken back by {whoami()}")
            entry = writer.append(moved(newest, move))
            self.driver.ask(self.model, machine.traffic(entry, ()))
            return entry

    def _begin(
        self, writer: AnyWriter, kind: Kind, champion: Release | None, candidate: Release | None, move: Move
    ) -> Entry:
        """A rollout's first entry, and the traffic that belongs to it."""
        number = writer.next_number()
        entry = Entry(
            number=number,
            at=time.time(),
            who=whoami(),
            model=self.model,
            rollout=f"{self.model}-r{number}",
            kind=kind,
            champion=champion,
            candidate=candidate,
            **move.model_dump(),
        )
        if kind != "adopted":
            self.driver.ask(self.model, machine.traffic(entry, ()))
        return writer.append(entry)

    def _run(self, shadow: int) -> Run:
        policy = self.read_policy()
        steps = self.driver.feasible(machine.shadowed(policy.steps, shadow))
        judge = self.judging(policy.model_copy(update={"steps": steps}))
        return Run(self.ledger, self.driver, steps, judge, self.tell, self.wish)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock that says a process is carrying a rollout out; the kernel frees it when the process dies."""
        self.locks_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.locks_dir / f"{self.model}.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                newest = self.ledger.newest()
                raise RolloutRuns(self.model, newest.rollout if newest else "", lock.read() or "unknown") from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def _refuse_unfinished(newest: Entry | None) -> None:
    if found := unfinished(newest):
        raise RolloutUnfinished(found.model, found.rollout, found.state or "", found.words)


def _shadow(entries: list[Entry], newest: Entry | None) -> int:
    ours = [entry for entry in entries if newest and entry.rollout == newest.rollout]
    return int(ours[0].detail.get(SHADOW, "0")) if ours else 0


def _never(*_: object, **__: object) -> Verdict:
    raise AssertionError("going back is not judged")


def _done(entry: Entry) -> Entry:
    if entry.state != "ROLLED_BACK":
        raise RollbackFailed(entry.model, entry.words)
    return entry
