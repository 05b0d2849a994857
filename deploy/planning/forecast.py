"""What moving to a version would change, found without any traffic, and whether that is safe."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from deploy.planning.compare import Compared, Reading, Row, compare
from deploy.planning.rehearsal import Cost, Rehearsed, Unpacked, rehearse, unpack_release
from deploy.planning.requests import GOLDEN, golden_requests, inputs_of
from deploy.rollout.compatibility import Changes, compare_schemas
from deploy.rollout.record import Release
from handlers.captured import CapturedRequest, Segments
from handlers.kinds import Schema, TextSchema, read_schema
from handlers.schema import TableSchema
from model_store.signing import TrustedKeys

SAFE, CHANGED, BREAKING = 0, 3, 4
"""Exit codes."""
WORST_ROWS = 10
SHOWN_REASONS = 3


@dataclass(frozen=True)
class Question:
    """Of one model: what the traffic would come from and go to, and what is allowed to change."""

    model: str
    champion: Release
    candidate: Release
    requests: int
    """Captured requests that are asked, at most."""
    max_changed: float
    """Share of the rows whose answers may change."""
    allow_breaking: bool = False
    show_inputs: bool = False


@dataclass(frozen=True)
class Places:
    archives_dir: Path
    trusted: TrustedKeys
    captured: Segments
    scratch: Path
    """Where archives are unpacked for as long as it takes."""


@dataclass(frozen=True)
class Source:
    """The answers to the golden set's requests, or to captured ones."""

    name: str
    requests: int
    rows: int
    changed: int
    """Rows whose answer changes: another class, a number beyond the tolerance, another direction, or no answer."""
    refused: int
    """Requests that the candidate alone refuses."""
    failed: int
    """Requests that the candidate alone fails on."""
    unanswered: int
    """Requests that the champion itself does not answer; they count for nothing."""
    largest_difference: float | None
    """Of any number; None where nothing could be compared."""
    reasons: tuple[str, ...]
    """What the candidate said where it did not answer."""

    @property
    def share(self) -> float:
        return self.changed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Worst:
    """One of the rows whose answers differ most."""

    id: str
    """Of the prediction; `golden-N` for a row of the golden set."""
    row: int
    before: str
    after: str
    difference: float | None
    inputs: Mapping[str, str]
    """Empty unless they were asked for; never those that are masked."""


@dataclass(frozen=True)
class Forecast:
    """What `shipway plan` says."""

    question: Question
    changes: Changes
    sources: tuple[Source, ...]
    worst: tuple[Worst, ...]
    champion_cost: Cost
    candidate_cost: Cost

    @property
    def exit_code(self) -> int:
        if self.changes.breaking and not self.question.allow_breaking:
            return BREAKING
        return CHANGED if self.reasons else SAFE

    @property
    def reasons(self) -> list[str]:
        """Why the answers are not safe to change, beyond what the schemas say."""
        found = []
        for source in self.sources:
            if source.share > self.question.max_changed:
                allowed = f"{self.question.max_changed:.1%} may"
                found.append(f"{source.share:.1%} of the answers to {source.name} requests change; {allowed}")
            if lost := source.refused + source.failed:
                found.append(f"{lost} of {source.requests} {source.name} requests are answered by the champion alone")
        return found

    @property
    def words(self) -> str:
        """The verdict in one line."""
        breaking = [f"breaks clients: {each}" for each in self.changes.breaking if not self.question.allow_breaking]
        if problems := [*breaking, *self.reasons]:
            return "not safe: " + "; ".join(problems)
        return "safe, as far as these requests tell"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        document: dict[str, Any] = TypeAdapter(Forecast).dump_python(self, mode="json")
        for source, described in zip(self.sources, document["sources"], strict=True):
            described["share"] = source.share
        verdict = {SAFE: "safe", CHANGED: "answers change", BREAKING: "breaking"}[self.exit_code]
        return {"verdict": verdict, "words": self.words, "exit_code": self.exit_code, **document}


@dataclass(frozen=True)
class Asked:
    """What both versions were asked and answered; of each pair the champion's stands first."""

    requests: Sequence[CapturedRequest]
    rehearsed: Rehearsed
    schemas: tuple[Schema, Schema]


def ask_both(question: Question, places: Places, now: float | None = None) -> Asked:
    """Ask both versions, in processes of their own. Raises ArchiveMissing, ArchiveRefused, RehearsalFailed."""
    now = time.time() if now is None else now
    captured = places.captured.newest(question.model, question.requests, now)
    clear_scratch(places.scratch)
    with tempfile.TemporaryDirectory(dir=places.scratch, prefix=f"{os.getpid()}-") as name:
        into = Path(name)
        champion = _unpacked(places, question.model, question.champion, into / "champion")
        candidate = _unpacked(places, question.model, question.candidate, into / "candidate")
        golden = golden_requests((champion.directory / "golden.json").read_bytes(), question.champion.version)
        # Captured requests first: not all may be timed, and these are what clients really ask.
        requests = [*captured, *golden]
        rehearsed = asyncio.run(rehearse(question.model, champion, candidate, requests, into))
        return Asked(requests, rehearsed, (_schema(champion), _schema(candidate)))


def clear_scratch(scratch: Path) -> None:
    """Make it, and remove what was left there by a process that was killed."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in scratch.iterdir():
        if not Path("/proc", left.name.partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)


def _unpacked(places: Places, model: str, release: Release, into: Path) -> Unpacked:
    into.mkdir()
    return unpack_release(places.archives_dir, places.trusted, model, release, into)


def _schema(unpacked: Unpacked) -> Schema:
    return read_schema((unpacked.directory / "schema.json").read_bytes())


def forecast(question: Question, asked: Asked) -> Forecast:
    """What the answers mean."""
    readings = _reading(asked.schemas[0]), _reading(asked.schemas[1])
    pairs = enumerate(zip(*asked.rehearsed.answers, strict=True))
    compared = [compare(at, before, after, *readings) for at, (before, after) in pairs]
    answered = list(zip(asked.requests, compared, strict=True))
    rows = [row for each in compared if each for row in each.rows if row.changed or row.difference > 0]
    worst = sorted(rows, key=lambda row: (row.changed, row.difference), reverse=True)[:WORST_ROWS]
    return Forecast(
        question,
        compare_schemas(*asked.schemas),
        tuple(
            _source(name, question, answered)
            for name in ("captured", GOLDEN)
            if any(_name(request) == name for request in asked.requests)
        ),
        tuple(_worst(row, asked.requests[row.request], show=question.show_inputs) for row in worst),
        *asked.rehearsed.costs,
    )


def _reading(schema: Schema) -> Reading:
    if isinstance(schema, TableSchema):
        return Reading(schema.outputs[0].classes)
    classes = tuple(getattr(schema, "classes", None) or ())
    return Reading(classes, embeds=isinstance(schema, TextSchema) and not classes)


def _name(request: CapturedRequest) -> str:
    return GOLDEN if request.protocol == GOLDEN else "captured"


def _source(name: str, question: Question, answered: Sequence[tuple[CapturedRequest, Compared | None]]) -> Source:
    ours = [compared for request, compared in answered if _name(request) == name]
    found = [compared for compared in ours if compared]
    rows = [row for compared in found for row in compared.rows]
    # A refusal's words may quote the client.
    reasons = dict.fromkeys(each.lost for each in found if each.lost and (name == GOLDEN or question.show_inputs))
    return Source(
        name,
        requests=len(ours),
        rows=len(rows),
        changed=sum(row.changed for row in rows),
        refused=sum(400 <= each.status < 500 for each in found),
        failed=sum(each.status >= 500 for each in found),
        unanswered=len(ours) - len(found),
        largest_difference=max((row.difference for row in rows if np.isfinite(row.difference)), default=None),
        reasons=tuple(reasons)[:SHOWN_REASONS],
    )


def _worst(row: Row, request: CapturedRequest, *, show: bool) -> Worst:
    inputs = inputs_of(request, row.row) if show else {}
    difference = row.difference if np.isfinite(row.difference) else None
    return Worst(request.id, row.row, row.before, row.after, difference, inputs)
