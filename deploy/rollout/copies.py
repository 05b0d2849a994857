"""Copies of the ledgers, for those who look elsewhere: runs, tags and the alias in MLflow, annotations in Grafana.

A ledger notes for each of its entries where it was copied to. What could not be copied is tried again later, from the
oldest on, so that a place always has the beginning of the story and never a gap. Copying an entry twice changes
nothing: whoever is killed between the copy and its note only does it again.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from deploy.errors import LedgerUnusable, ReleaseError, ShipwayError
from deploy.rollout.ledger import AnyLedger, ledgers_in
from deploy.rollout.record import Entry, Release, State, Verdict
from deploy.settings import Settings
from model_store.errors import ModelStoreError
from monitoring.dashboards.blocks import TAG
from monitoring.errors import MonitoringError

if TYPE_CHECKING:
    from model_store.rollout_runs import RolloutRuns
    from monitoring.grafana import Grafana

PlaceName = Literal["mlflow", "grafana"]
PLACE_NAMES: tuple[PlaceName, ...] = get_args(PlaceName)

_ENDS: Mapping[State, Literal["FINISHED", "FAILED"]] = {"PROMOTED": "FINISHED", "ROLLED_BACK": "FAILED"}
_SEEN_FROM_AFAR: tuple[State, ...] = ("CANARY", "HELD", "ROLLING_BACK", "ROLLED_BACK", "PROMOTED")
"""States that change the traffic, or wait for a person. Others would only fill the dashboards."""


class Place(Protocol):
    """Where entries are copied to."""

    def copy(self, entry: Entry, story: Sequence[Entry]) -> None:
        """Copy one entry; `story` is its rollout up to and with it. Raises ModelStoreError or MonitoringError."""


@dataclass(frozen=True)
class Delivered:
    """What one attempt has done."""

    copied: int
    problems: tuple[str, ...]
    """Why the rest was not copied, in words; one for each model that waits."""


def places(settings: Settings) -> dict[PlaceName, Callable[[], Place]]:
    """Where these settings want copies, and how to reach each place."""

    def mlflow() -> Place:
        from model_store.rollout_runs import RolloutRuns

        return MLflowCopies(RolloutRuns(settings.mlflow_uri))

    def grafana() -> Place:
        from deploy.grafana import configured_grafana

        return GrafanaCopies(configured_grafana(settings))

    return {"mlflow": mlflow, **({"grafana": grafana} if settings.grafana_url else {})}


def waiting(directory: Path, name: PlaceName) -> bool:
    """Whether any ledger has an entry that the place lacks, or cannot be read: `deliver` says why."""
    return any(_waits(ledger, name) for ledger in ledgers_in(directory))


def _waits(ledger: AnyLedger, name: PlaceName) -> bool:
    try:
        return bool(ledger.undelivered(name))
    except LedgerUnusable:
        return True


def deliver(ledgers: Sequence[AnyLedger], directory: Path, name: PlaceName, reach: Callable[[], Place]) -> Delivered:
    """Copy what the place lacks, model by model; a lock is made in `directory`.

    A problem of one model does not hold up the others.
    """
    if not any(_waits(ledger, name) for ledger in ledgers):
        return Delivered(0, ())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / f"delivery-to-{name}").open("w") as lock:
        # One at a time: two would each find nothing of an entry there, and copy it twice.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            place = reach()
        except (ModelStoreError, MonitoringError, ShipwayError) as error:
            return Delivered(0, (str(error),))
        copied, problems = 0, []
        for ledger in ledgers:
            try:
                for _ in _copying(ledger, name, place):
                    copied += 1
            except (ModelStoreError, MonitoringError, LedgerUnusable, ReleaseError) as error:
                problems.append(f"{ledger.model}: {error}")
        return Delivered(copied, tuple(problems))


def _copying(ledger: AnyLedger, name: PlaceName, place: Place) -> Iterator[Entry]:
    """Copy what the place lacks of one ledger, the oldest first; gives what was copied."""
    lacking = ledger.undelivered(name)
    entries = ledger.entries() if lacking else []
    for entry in lacking:
        story = [one for one in entries if one.rollout == entry.rollout and one.number <= entry.number]
        place.copy(entry, story)
        ledger.delivered(name, entry.number)
        yield entry


class MLflowCopies:
    """A run for each rollout, tags on its two versions, and the alias `champion` on the one that serves."""

    def __init__(self, runs: "RolloutRuns") -> None:
        self._runs = runs

    def copy(self, entry: Entry, story: Sequence[Entry]) -> None:
        from model_store.rollout_runs import ROLLOUT_TAG, News, Rollout

        if not entry.rollout:
            return  # an alert while no rollout was on belongs to no run
        first, verdict = story[0], entry.verdict
        state = _state(story)
        said = {"shipway.words": entry.words, "shipway.who": entry.who, **({"shipway.state": state} if state else {})}
        rollout = Rollout(
            id=entry.rollout,
            model=entry.model,
            title=f"{entry.model}: {_moves(first)}",
            started_at=first.at,
            params={"kind": first.kind, "who": first.who, **_releases(first)},
        )
        news = News(
            number=entry.number,
            at=entry.at,
            tags={**said, **({"shipway.verdict": verdict.outcome} if verdict else {})},
            numbers=_numbers(verdict) if verdict else {},
            note="\n".join(f"- {one.state or one.kind}: {one.words}" for one in story),
            record=entry.model_dump_json(indent=2),
            ended=_ENDS.get(entry.state) if entry.state else None,
        )
        self._runs.tell(rollout, news)
        if entry.state is None:
            return  # an alert says nothing about the versions
        for role, release in (("champion", entry.champion), ("candidate", entry.candidate)):
            if release is not None:
                tags = {ROLLOUT_TAG: entry.rollout, "shipway.role": role, "shipway.state": entry.state}
                self._runs.tag_version(entry.model, release.version, tags)
        if champion := _new_champion(entry):
            self._runs.make_champion(entry.model, champion.version)


class GrafanaCopies:
    """An annotation for each entry that changed the traffic, waits for a person, or is an alert."""

    def __init__(self, grafana: "Grafana") -> None:
        self._grafana = grafana

    def copy(self, entry: Entry, story: Sequence[Entry]) -> None:  # noqa: ARG002 - an annotation tells one moment
        if entry.kind != "alert" and entry.state not in _SEEN_FROM_AFAR:
            return
        # Grafana takes an annotation as often as it is sent; by this tag of its own it is found again.
        own = f"{entry.model}-{entry.number}-{round(entry.at * 1000)}"
        if not self._grafana.annotated([TAG, own]):
            text = f"{entry.model} {entry.state or entry.kind}: {entry.words}"
            self._grafana.annotate(text, [TAG, entry.model, entry.state or entry.kind, own], at_seconds=entry.at)


def _new_champion(entry: Entry) -> Release | None:
    """The version that an entry makes the champion for good; None where it stays who it was."""
    if entry.state == "PROMOTED" and entry.kind != "rollback":
        return entry.candidate
    if entry.state == "ROLLED_BACK" and entry.kind == "rollback":
        return entry.champion
    return None


def _numbers(verdict: Verdict) -> dict[str, float]:
    return {f"{check.name}/{name}": value for check in verdict.checks for name, value in check.numbers.items()}


def _state(story: Sequence[Entry]) -> State | None:
    return next((one.state for one in reversed(story) if one.state), None)


def _moves(entry: Entry) -> str:
    champion, candidate = (release.version if release else "nothing" for release in (entry.champion, entry.candidate))
    return f"back from {candidate} to {champion}" if entry.kind == "rollback" else f"{champion} to {candidate}"


def _releases(entry: Entry) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, release in (("champion", entry.champion), ("candidate", entry.candidate)):
        if release is not None:
            found |= {role: str(release.version), f"{role}_digest": release.digest}
    return found
