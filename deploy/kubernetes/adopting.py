"""The ledger after somebody has changed the release by hand, with `helm rollback` for example: it follows."""

import time

from deploy.errors import ReleaseAmbiguous
from deploy.kubernetes.aim import Aim, told_by
from deploy.rollout import machine
from deploy.rollout.ledger import AnyLedger, AnyWriter, unfinished, whoami
from deploy.rollout.machine import Move
from deploy.rollout.record import Entry, Kind, Release
from deploy.rollout.run import moved


def adopt(ledger: AnyLedger, release: str, found: Aim) -> Entry | None:
    """Write down that the release is as it was found; None where the ledger says so already.

    Raises:
        ReleaseAmbiguous: a canary that the ledger does not know, or a rollout that is on and has gone neither way.
    """
    with ledger.writing() as writer:
        newest = writer.newest()
        said = told_by(newest) if newest else None
        if said == found:
            return None
        on = unfinished(newest)
        if found.canary is not None or (on and found.stable not in (on.champion, on.candidate)):
            raise ReleaseAmbiguous(release, str(found), str(said or "nothing"), ledger.model)
        words = f"{whoami()} found version {found.stable.version} in service, put there by hand"
        if on and found.stable == on.champion:
            return writer.append(moved(on, Move(state="ROLLED_BACK", words=words)))
        if on:
            return writer.append(moved(on, Move(state="PROMOTED", words=words)))
        before = machine.serves(newest) if newest else None
        if found.stable in machine.good(writer.entries()):  # somebody has gone back, and not to a new version
            return _first(writer, "rollback", found.stable, before, Move(state="ROLLED_BACK", words=words))
        return _first(writer, "adopted", before, found.stable, Move(state="PROMOTED", words=words))


def _first(writer: AnyWriter, kind: Kind, champion: Release | None, candidate: Release | None, move: Move) -> Entry:
    number = writer.next_number()
    entry = Entry(
        number=number,
        at=time.time(),
        who=whoami(),
        model="",
        rollout="",
        kind=kind,
        champion=champion,
        candidate=candidate,
        **move.model_dump(),
    )
    written = writer.append(entry)
    return written
