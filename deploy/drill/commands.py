"""`shipway drill`. It ends with 1 if a version did not get the verdict that it should, or harmed more users."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.drill.exercises import EXPECTED, Outcome
from deploy.rollout.record import Entry, Step, Verdict
from deploy.settings import Settings

if TYPE_CHECKING:
    from deploy.rollout.run import Tell


@click.command()
@click.argument("name")
@click.option("--only", "only", multiple=True, type=click.Choice(list(EXPECTED)), help="A kind; may be repeated.")
@click.option(
    "--rate", type=click.FloatRange(1, 1000), default=50, show_default=True, help="The users' requests a second."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs.")
@click.make_pass_decorator(Settings)
def drill(settings: Settings, name: str, only: tuple[str, ...], *, rate: float, as_json: bool) -> None:
    """Roll out bad versions of the model NAME, on an endpoint beside it, and see that each is taken back or held."""
    from deploy.drill.drill import prepared
    from model_store.faulty import KINDS

    console = Console(stderr=as_json)
    found = []
    with prepared(settings, name, only, rate, _teller(console)) as ground:
        for kind in ground.kinds:
            console.print(f"\n[bold]{kind}[/bold]: a version that {KINDS[kind].words}", highlight=False)
            found.append(outcome := ground.exercise(kind))
            if as_json:
                click.echo(json.dumps(outcome.as_dict()))
    console.print(_table(found))
    sys.exit(any(outcome.problems for outcome in found))


def _teller(console: Console) -> "Tell":
    """A line for each entry of the ledger."""
    from deploy.rollout.display import clock

    def tell(entry: Entry, verdict: Verdict | None, _: Sequence[Step]) -> None:
        if verdict is None:
            line = f"{clock(entry.at)}  {entry.state:12}  {entry.words}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)

    return tell


def _table(found: list[Outcome]) -> Table:
    table = Table(
        "version", "ended", "because of", "after", "users' requests", "answered by it", "failed", "as it should?"
    )
    for one in found:
        harm = one.harm
        table.add_row(
            *(one.kind, one.entry.state, ", ".join(one.because), f"{one.seconds:.0f} s", str(harm.requests)),
            *(f"{harm.candidate} of at most {harm.allowed}", str(harm.failed)),
            escape("; ".join(one.problems)) or "yes",
        )
    return table
