"""What a rollout is made of: steps, checks, verdicts, and the ledger's entries. Pure data, written down as JSON."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Percent = Annotated[int, Field(ge=0, le=100)]
"""Of requests."""
Outcome = Literal["promote", "hold", "roll back", "wait"]
"""`promote`: to the next step, or for good after the last; `wait`: undecided, and the step has time left."""
CheckState = Literal["passed", "failed", "undecided", "no data", "not asked"]
"""`not asked`: it says nothing here (agreement without a shadow, quality without feedback)."""
State = Literal[
    "PENDING", "READY", "CANARY", "JUDGING", "HELD", "PROMOTING", "PROMOTED", "ROLLING_BACK", "ROLLED_BACK"
]  # fmt: skip
Kind = Literal["rollout", "rollback", "alert", "adopted"]
ENDED: tuple[State, ...] = ("ROLLED_BACK", "PROMOTED")
"""A rollout in any other state is unfinished, and its endpoint takes no second one."""


class Record(BaseModel):
    # A number that is none (NaN) is written as a word, because null would not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def read_percent(text: str) -> Percent:
    """20 for 20 or 20%. ValueError for what is none."""
    found = re.fullmatch(r"([0-9]{1,3})%?", text)
    if found is None or int(found[1]) > 100:
        raise ValueError(f"{text!r} is no percentage; allowed are whole ones from 0% to 100%")
    return int(found[1])


class Release(Record):
    """One version of a model and the archive that is it."""

    version: int = Field(ge=1)
    digest: str


class Step(Record):
    """What part of the traffic the candidate gets, and what must have been seen before it gets more."""

    weight: Percent
    """Of the requests that it answers."""
    mirror: Percent = 0
    """Of the requests that are copied to it, whose answers nobody sees."""
    seconds: float = Field(gt=0)
    """The shortest time in this step."""
    requests: int = Field(ge=1)
    """The fewest requests that the candidate must have had in this step."""
    give_up_seconds: float = Field(gt=0)
    """The longest time in this step: what is undecided then is held."""


class Check(Record):
    """One question of the gate and its answer, with all that it rests on."""

    name: str
    state: CheckState
    then: Outcome
    """What follows if it has failed: `roll back` or `hold`."""
    words: str
    """The answer for a person: what was found, and what is allowed."""
    numbers: dict[str, float] = {}
    queries: dict[str, str] = {}


class Verdict(Record):
    """The gate's judgement of one step."""

    outcome: Outcome
    words: str
    checks: tuple[Check, ...]
    step: int
    """Counted from 0."""
    since: float
    """When the evidence begins, a Unix time."""
    at: float
    """When it ends."""


class Entry(Record):
    """One line of the ledger. It is never changed."""

    number: int
    """Counted from 1 within the endpoint's ledger."""
    at: float
    """A Unix time."""
    who: str
    """user@host of the command that wrote it."""
    model: str
    rollout: str
    """Its id; empty for an alert that came while none was on."""
    kind: Kind
    state: State | None
    """The rollout's from now on; none for an alert, which changes nothing."""
    step: int | None = None
    champion: Release | None
    """What the traffic comes from, and goes back to; none for an endpoint's first version."""
    candidate: Release | None
    """What it goes to, or is taken from by a rollback; none for an alert."""
    words: str
    verdict: Verdict | None = None
    detail: dict[str, str] = {}
