"""What is shown of a rollout that runs: a live table, plain lines, or JSON lines. Each is a `Tell` of `run.py`."""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploy.rollout.record import ENDED, Entry, Release, Step, Verdict
from deploy.rollout.run import Tell

if TYPE_CHECKING:
    from deploy.node.agreement import Disagreement

_OPEN = ("undecided", "no data", "not asked")
_COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow", "no data": "yellow", "not asked": "dim"}


@contextlib.contextmanager
def display(console: Console, *, as_json: bool) -> Iterator[Tell]:
    """What suits the output: JSON lines if they were asked for, a live table on a terminal, plain lines elsewhere."""
    if as_json:
        yield JsonLines()
    elif not console.is_terminal:
        yield PlainLines(console)
    else:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield LiveTable(live)


@dataclass
class JsonLines:
    """One object a line: `{"entry": ...}` as it stands in the ledger, `{"verdict": ...}` when a check has changed."""

    _seen: dict[str, str] | None = None

    def __call__(self, entry: Entry, verdict: Verdict | None, _: Sequence[Step]) -> None:
        if verdict is None:
            self._seen = None
            click.echo(json.dumps({"entry": entry.model_dump(mode="json")}))
        elif (states := _states(verdict)) != self._seen:
            self._seen = states
            click.echo(json.dumps({"verdict": verdict.model_dump(mode="json")}))


@dataclass
class PlainLines:
    """A line for each entry, and for each check whose state has changed from nothing being known."""

    console: Console
    _seen: dict[str, str] = field(default_factory=dict)

    def __call__(self, entry: Entry, verdict: Verdict | None, _: Sequence[Step]) -> None:
        if verdict is None:
            self._seen = {}
            self._say(f"{clock(entry.at)}  {entry.state:12}  {entry.words}")
            return
        states = _states(verdict)
        for check in verdict.checks:
            if states[check.name] != self._seen.get(check.name, check.state if check.state in _OPEN else ""):
                self._say(f"{clock(verdict.at)}  {'':12}  {check.name}: {check.state}, {check.words}")
        self._seen = states

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


@dataclass
class LiveTable:
    """Where the rollout stands, its checks in words, and the time that the step has left; entries scroll above."""

    live: Live

    def __call__(self, entry: Entry, verdict: Verdict | None, steps: Sequence[Step]) -> None:
        if verdict is None:
            line = Text(f"{clock(entry.at)}  {entry.state:12}  {entry.words}")
            self.live.console.print(line, soft_wrap=True)
        ended = entry.state in (*ENDED, "HELD")
        self.live.update("" if ended else _shown(entry, verdict, steps), refresh=True)


def history(entries: Sequence[Entry]) -> list[str]:
    """The ledger for a person, one line an entry, the oldest first."""
    widest = max((len(entry.rollout) for entry in entries), default=0)
    return [
        f"{entry.number:4}  {datetime.fromtimestamp(entry.at).astimezone():%Y-%m-%d %H:%M:%S}  "
        f"{entry.rollout:{widest}}  {from_to(entry):9}  {entry.state or entry.kind:12}  {entry.words} ({entry.who})"
        for entry in entries
    ]


def disagreements(found: "Sequence[Disagreement]") -> list[str]:
    """Requests that two versions answered differently, one line each."""
    return ["Where the candidate disagrees, and was surest:"] + [
        f"  {one.prediction_id}  version {one.answered_by} {', '.join(one.answered)}; version {one.copied_to} "
        f"{', '.join(one.copied)} ({one.sure:.0%} sure)"
        for one in found
    ]


def from_to(entry: Entry) -> str:
    """The versions between which traffic moves, in the direction in which it does."""
    ends = (entry.champion, entry.candidate)
    first, last = ends[::-1] if entry.kind == "rollback" else ends
    return f"{_version(first)} → {_version(last)}"


def clock(at: float) -> str:
    """Local time of day of a Unix time."""
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}"


def _shown(entry: Entry, verdict: Verdict | None, steps: Sequence[Step]) -> Group:
    head = f"[bold]{escape(entry.model)}[/bold]  {from_to(entry)}  {entry.state}"
    if entry.step is not None and steps:
        step = steps[min(entry.step, len(steps) - 1)]
        head += f"  step {entry.step + 1} of {len(steps)}  {_traffic(step)}"
        head += f"  {_time_left(step, time.time() - entry.at)}" if entry.state == "JUDGING" else ""
    if verdict is None:
        return Group(head)
    table = Table("check", "state", "what was found", box=None, padding=(0, 2, 0, 0))
    for check in verdict.checks:
        colour = _COLOURS[check.state]
        table.add_row(check.name, f"[{colour}]{check.state}[/{colour}]", escape(check.words))
    return Group(head, table, Text(verdict.words, style="dim"))


def _states(verdict: Verdict) -> dict[str, str]:
    return {check.name: check.state for check in verdict.checks}


def _version(release: Release | None) -> str:
    return str(release.version) if release else "-"


def _traffic(step: Step) -> str:
    return f"{step.weight}% of traffic" + (f", {step.mirror}% copied" if step.mirror else "")


def _time_left(step: Step, passed_seconds: float) -> str:
    at_least, at_most = (max(0, round(limit - passed_seconds)) for limit in (step.seconds, step.give_up_seconds))
    return f"{at_least} s at least, {at_most} s at most"
