"""What happened to a release, and what its clients saw of it: a table for a person, and the same for machines."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.cluster.ground import BEFORE_SECONDS, Event
from tests.cluster.steady import Steady, Window

FAULTS_TOLD = 5
WORDS_SHOWN = 200


@dataclass(frozen=True)
class Row:
    """An event as it stands in the report."""

    event: str
    seconds: float
    requests: int
    failures: int
    p99_ms_before: float | None
    p99_ms_during: float | None
    problem: str
    """Why it did not go as it should."""
    skipped: str
    """Why it did not happen."""
    faults: tuple[str, ...]
    """Some of them."""


def rows(events: Sequence[Event], load: Steady) -> list[Row]:
    """Once the load has ended."""
    return [_row(one, load) for one in events]


def _row(event: Event, load: Steady) -> Row:
    during = load.window(event.start, event.end)
    before = load.window(event.start - BEFORE_SECONDS, event.start)
    return Row(
        event=event.name,
        seconds=round(event.end - event.start, 1),
        requests=len(during.asked),
        failures=len(during.faults),
        p99_ms_before=_p99_ms(before),
        p99_ms_during=_p99_ms(during),
        problem=event.problem,
        skipped=event.skipped,
        faults=tuple(during.faults[:FAULTS_TOLD]),
    )


def _p99_ms(window: Window) -> float | None:
    return round(window.p99_ms, 1) if window.asked else None


def show(console: Console, found: Sequence[Row]) -> None:
    table = Table(title="What happened under steady load")
    for column in ("event", "s", "requests", "failures", "p99 before, ms", "p99 during, ms", ""):
        table.add_column(column, justify="left" if column in ("event", "") else "right")
    for row in found:
        numbers = f"{row.seconds:.0f}", f"{row.requests}", f"{row.failures}"
        latencies = ("" if one is None else f"{one:.0f}" for one in (row.p99_ms_before, row.p99_ms_during))
        words = row.problem or (f"skipped: {row.skipped}" if row.skipped else "")
        table.add_row(row.event, *numbers, *latencies, escape(words[:WORDS_SHOWN]))
    console.print(table)
