r"""What comes next in a rollout, and what traffic belongs to where it stands. Pure: from entries to moves.

    PENDING -> READY -> CANARY(step) -> JUDGING(step) -> ... -> PROMOTING -> PROMOTED
                                                 \-> HELD     \-> ROLLING_BACK -> ROLLED_BACK

Each entry is written together with its traffic, and what follows begins when that traffic is in force. So a rollout
can be taken up from its newest entry alone, whatever was killed: asking for the same traffic again changes nothing.
"""

from collections.abc import Sequence

from pydantic import Field

from deploy.rollout.record import ENDED, Entry, Percent, Record, Release, State, Step, Verdict

HAND = ("rollout", "adopted")
"""Kinds of entries by which a version can have been promoted; a rollback that failed leaves what was there."""


class Traffic(Record):
    """Who gets an endpoint's requests."""

    serving: Release | None
    """It gets what `beside` does not; none where the endpoint goes out of service."""
    beside: Release | None = None
    """Loaded beside it."""
    weight: Percent = 0
    """Of the requests that `beside` answers."""
    mirror: Percent = 0
    """Of the requests that are copied to `beside`."""
    guarded: bool = False
    """Whether `serving` answers what `beside` loses."""


class Move(Record):
    """What the next entry says that the one before it did not."""

    state: State
    words: str
    step: int | None = None
    verdict: Verdict | None = None
    detail: dict[str, str] = Field(default_factory=dict)


def shadowed(steps: tuple[Step, ...], percent: int) -> tuple[Step, ...]:
    """The steps, with one before those that take traffic that only mirrors; as they are for 0 percent."""
    if not percent:
        return steps
    taking = tuple(step for step in steps if step.weight)
    return (steps[0].model_copy(update={"weight": 0, "mirror": percent}), *taking)


def traffic(entry: Entry, steps: Sequence[Step]) -> Traffic:
    """Who gets the requests in the state of this entry."""
    champion, candidate = entry.champion, entry.candidate
    if entry.state in ("PROMOTING", "PROMOTED"):
        # A rollback that failed has nothing beside: it could not be loaded.
        return Traffic(serving=candidate, beside=champion if entry.kind in HAND else None)
    if entry.state in ("ROLLING_BACK", "ROLLED_BACK"):
        return Traffic(serving=champion)
    if champion is None:
        return Traffic(serving=candidate)
    if entry.state in ("PENDING", "READY"):
        return Traffic(serving=champion, beside=candidate, guarded=True)
    step = _step(entry, steps)
    return Traffic(serving=champion, beside=candidate, weight=step.weight, mirror=step.mirror, guarded=True)


def reached(entry: Entry, steps: Sequence[Step]) -> Move:
    """What follows when the entry's traffic is in force; not for states in which a verdict or a person decides."""
    candidate = _version(entry.candidate)
    if entry.state == "PENDING":
        return Move(state="READY", words=f"version {candidate} is loaded and reproduces its golden set")
    if entry.state == "READY" and entry.champion is None:
        words = f"version {candidate} is the endpoint's first and there is nothing to compare it with: it gets 100%"
        return Move(state="PROMOTED", words=words)
    if entry.state == "READY":
        return canary(0, steps)
    if entry.state == "CANARY":
        return Move(state="JUDGING", step=entry.step, words=f"{_shares(_step(entry, steps))}: judged from now on")
    if entry.state == "PROMOTING":
        return Move(state="PROMOTED", words=entry.words)
    if entry.state == "ROLLING_BACK":
        return Move(state="ROLLED_BACK", words=_all_on(entry.champion))
    raise ValueError(f"nothing follows {entry.state} by itself")


def canary(step: int, steps: Sequence[Step], verdict: Verdict | None = None) -> Move:
    """Into a step."""
    words = f"step {step + 1} of {len(steps)}: {_shares(steps[step])}"
    return Move(state="CANARY", step=step, words=words, verdict=verdict)


def judged(entry: Entry, verdict: Verdict, steps: Sequence[Step]) -> Move | None:
    """What follows from the verdict on the step of a JUDGING entry; None to wait."""
    if verdict.outcome == "wait" or entry.step is None:
        return None
    if verdict.outcome == "hold":
        return Move(state="HELD", step=entry.step, words=verdict.words, verdict=verdict)
    if verdict.outcome == "roll back":
        return back(entry, verdict.words, verdict)
    if entry.step + 1 < len(steps):
        return canary(entry.step + 1, steps, verdict)
    return Move(state="PROMOTING", words=verdict.words, verdict=verdict)


def failed(entry: Entry, reason: str) -> Move | None:
    """What follows when the entry's traffic cannot be had; None where there is nothing left to go back to."""
    if entry.kind == "rollback":
        staying = f"version {_version(entry.candidate)} keeps its traffic: {reason}"
        return Move(state="PROMOTING", words=staying) if entry.state == "ROLLING_BACK" else None
    if entry.state == "ROLLING_BACK":
        return None  # the champion is what has served all the time: there is nothing better than asking once more
    return back(entry, f"version {_version(entry.candidate)} did not come into service: {reason}")


def back(entry: Entry, words: str, verdict: Verdict | None = None) -> Move:
    """Take the candidate back."""
    return Move(state="ROLLING_BACK", step=entry.step, words=words, verdict=verdict)


def resumed(entry: Entry, steps: Sequence[Step]) -> Move | None:
    """Where an unfinished rollout is taken up again; None if it has ended. A step's time begins anew."""
    if entry.state in ENDED or entry.state is None:
        return None
    if entry.state == "ROLLING_BACK":
        return back(entry, f"resumed: {entry.words}")
    if entry.state == "PROMOTING":
        return Move(state="PROMOTING", words=entry.words)
    if entry.state in ("PENDING", "READY"):
        return Move(state="PENDING", words=f"resumed: load version {_version(entry.candidate)}")
    found = canary(_index(entry, steps), steps)
    return found.model_copy(update={"words": f"resumed: {found.words}"})


def good(entries: Sequence[Entry]) -> list[Release]:
    """Versions that were promoted and never taken back since, the one promoted last at the end."""
    found: list[Release] = []

    def without(release: Release | None) -> list[Release]:
        return [one for one in found if release is None or one.version != release.version]

    for entry in entries:
        if entry.state == "PROMOTED" and entry.kind in HAND:
            # What served before there was a ledger was good enough to serve.
            found = found or ([entry.champion] if entry.champion else [])
            found = without(entry.candidate) + ([entry.candidate] if entry.candidate else [])
        elif entry.state == "ROLLED_BACK":
            found = without(entry.candidate)
            if entry.kind == "rollback" and entry.champion:
                found = [*without(entry.champion), entry.champion]
    return found


def serves(entry: Entry) -> Release | None:
    """Who has the traffic after an entry of an ended rollout; None for an endpoint that went out of service."""
    return entry.candidate if entry.state == "PROMOTED" else entry.champion


def _step(entry: Entry, steps: Sequence[Step]) -> Step:
    return steps[_index(entry, steps)]


def _index(entry: Entry, steps: Sequence[Step]) -> int:
    """The entry's step, or the last one where the configuration has fewer by now."""
    return min(entry.step or 0, len(steps) - 1)


def _shares(step: Step) -> str:
    if not step.weight:
        return f"{step.mirror}% of the requests are copied to it, whose answers nobody sees"
    return f"{step.weight}% of the traffic" + (f", and copies of {step.mirror}%" if step.mirror else "")


def _version(release: Release | None) -> int | None:
    return release.version if release else None


def _all_on(release: Release | None) -> str:
    return f"all traffic is on version {release.version}" if release else "the endpoint is out of service"
