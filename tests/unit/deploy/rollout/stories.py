"""Entries of rollouts, as the ledger holds them."""

from pathlib import Path

from deploy.rollout.ledger import Ledger
from deploy.rollout.record import Check, Entry, Release, State, Verdict

CHAMPION = Release(version=1, digest="sha256:" + "1" * 64)
CANDIDATE = Release(version=2, digest="sha256:" + "2" * 64)
NASTY_WORDS = "10% of 40 <b>requests</b>"
"""Words that must stay words on a page."""
VERDICT = Verdict(
    outcome="roll back",
    words="errors: 10% of 40 requests failed",
    checks=(
        Check(
            name="errors", state="failed", then="roll back", words=NASTY_WORDS, numbers={"share": 0.1, "ratio": 5.25}
        ),
        Check(name="latency", state="no data", then="roll back", words="none", numbers={"p99": float("nan")}),
    ),
    step=0,
    since=1000.0,
    at=1010.0,
)


def entry(state: State | None, at: float, rollout: str = "r1", **changes: object) -> Entry:
    """An entry of a rollout of flights from version 1 to version 2."""
    given = {
        "number": 1,
        "at": at,
        "who": "ann@desk",
        "model": "flights",
        "rollout": rollout,
        "kind": "rollout",
        "state": state,
        "champion": CHAMPION,
        "candidate": CANDIDATE,
        "words": f"now {state}",
    }
    return Entry.model_validate({**given, **changes})


def rolled_back() -> list[Entry]:
    return [
        entry("PENDING", 1000.0),
        entry("READY", 1001.0),
        entry("CANARY", 1002.0, step=0),
        entry("JUDGING", 1003.0, step=0),
        entry("ROLLING_BACK", 1010.0, verdict=VERDICT),
        entry("ROLLED_BACK", 1011.0),
    ]


def ledger(directory: Path, *entries: Entry, model: str = "flights") -> Ledger:
    made = Ledger(directory, model)
    with made.writing() as writer:
        for one in entries:
            writer.append(one)
    return made
