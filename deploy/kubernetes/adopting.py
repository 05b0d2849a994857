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
        traffic = (machine.serves(newest) if newest else None, found.stable)
        if found.stable in machine.good(writer.entries()):  # somebody has gone back, and not to a new version
            return _first(writer, ledger.model, "rollback", traffic, Move(state="ROLLED_BACK", words=words))
        return _first(writer, ledger.model, "adopted", traffic, Move(state="PROMOTED", words=words))


def _first(writer: AnyWriter, model: str, kind: Kind, traffic: tuple[Release | None, Release], move: Move) -> Entry:
    """An entry of its own: `traffic` moves from the one version to the other."""
    before, now = traffic
    champion, candidate = (now, before) if kind == "rollback" else (before, now)
    number = writer.next_number()
    entry = Entry(
        number=number,
        at=time.time(),
        who=whoami(),
        model=model,
        rollout=f"{model}-r{number}",
        kind=kind,
        champion=champion,
        candidate=candidate,
        **move.model_dump(),
    )
    return writer.append(entry)
