"""`shipway rollout`, `rollback` and `history`.

Exit codes of a rollout: 0 promoted, 3 held, 4 rolled back or taken over by somebody else, 1 an error, 2 wrong usage.
"""

import json
import re
import sys
from collections.abc import Callable

import click
from rich.console import Console

from deploy.rollout import places
from deploy.rollout.ledger import AnyLedger
from deploy.rollout.places import release_options
from deploy.rollout.record import Entry, read_percent
from deploy.settings import Settings

HELD, ROLLED_BACK = 3, 4
WORST = 5
"""Disagreements that are told."""

pass_settings = click.make_pass_decorator(Settings)
json_lines = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs.")


def version_or_alias(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    """A version as a number, an alias as it is."""
    if value is None or re.fullmatch(r"@[^/@]+", value):
        return value
    if re.fullmatch(r"[1-9][0-9]*", value):
        return int(value)
    raise click.BadParameter(f"{value!r} is neither a version, like 7, nor an alias, like @challenger")


def _percent(_: click.Context, __: click.Parameter, value: str) -> int:
    try:
        return read_percent(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("name")
@click.argument("version", required=False, callback=version_or_alias, metavar="[VERSION|@ALIAS]")
@click.option("--shadow", default="0%", callback=_percent, help="First copy this share of the requests, like 20%.")
@click.option("--allow-breaking", is_flag=True, help="Also where the champion's clients would break: see plan.")
@click.option("--resume", is_flag=True, help="Go on with the rollout that was left or held.")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: Ctrl-C rolls back at once.")
@release_options
@json_lines
@pass_settings
def rollout(
    settings: Settings,
    name: str,
    version: int | str | None,
    shadow: int,
    *,
    allow_breaking: bool,
    resume: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move the model NAME to VERSION or @ALIAS in judged steps, or take it back."""
    if resume == (version is not None):
        raise click.UsageError("give a version or an alias to roll out, or --resume, and not both")
    if resume and shadow:
        raise click.UsageError("--shadow is for a new rollout; one that is resumed keeps its own")
    from deploy.errors import TakenOver
    from deploy.rollout.display import display
    from deploy.rollout.interrupts import Interrupts

    candidate = None if version is None else places.release(settings, name, version)
    interrupts = Interrupts(lambda words: click.echo(words, err=True), ask=sys.stdin.isatty() and not yes)
    with interrupts.heard(), display(Console(), as_json=as_json) as tell:
        endpoint = places.endpoint(settings, name, tell=tell, wish=interrupts.wish, take_over=taking_over(yes=yes))
        try:
            if candidate is None:
                entry = endpoint.resume()
            else:
                entry = endpoint.roll_out(candidate, shadow, allow_breaking=allow_breaking)
        except TakenOver as error:
            click.echo(f"shipway: {error}", err=True)
            sys.exit(ROLLED_BACK)
    if settings.helm_release is None:
        _tell_disagreements(settings, entry, as_json=as_json)
    else:
        deliver_now(settings, endpoint.ledger)
    if entry.state == "HELD":
        click.echo(
            f"The traffic stays as it is. Judge on with: shipway rollout {name} --resume; "
            f"or take version {entry.candidate and entry.candidate.version} back with: shipway rollback {name}",
            err=True,
        )
    sys.exit({"HELD": HELD, "ROLLED_BACK": ROLLED_BACK}.get(entry.state or "", 0))


def _tell_disagreements(settings: Settings, entry: Entry, *, as_json: bool) -> None:
    """Of the requests that were copied to the candidate."""
    from deploy.node.agreement import read_disagreements
    from deploy.rollout.display import disagreements

    try:
        found = read_disagreements(settings.disagreements_file, entry.model)
    except (OSError, ValueError):  # the node's to put right, and nothing hangs on it
        return
    worst = [one for one in found if entry.candidate and one.copied_to == entry.candidate.version][:WORST]
    if as_json and worst:
        click.echo(json.dumps({"disagreements": [one.model_dump(mode="json") for one in worst]}))
    elif worst:
        click.echo("\n".join(disagreements(worst)))


@click.command()
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), help="The version.  [default: the last good one]")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: take over a release at which a helm was at work.")
@release_options
@json_lines
@pass_settings
def rollback(settings: Settings, name: str, to: int | None, *, yes: bool, as_json: bool) -> None:
    """Give all traffic of the model NAME back to its last good version; asks neither MLflow nor Prometheus."""
    from deploy.rollout.display import display

    with display(Console(), as_json=as_json) as tell:
        endpoint = places.endpoint(settings, name, tell=tell, take_over=taking_over(yes=yes))
        entry = endpoint.roll_back(to)
    if not as_json:
        click.echo(f"{name}: {entry.words}, after {entry.detail['seconds']} s")
    if settings.helm_release is not None:
        deliver_now(settings, endpoint.ledger)


def taking_over(*, yes: bool) -> Callable[[str], bool]:
    """Whether to go on where a helm was at work on the release: ask who can be asked."""

    def ask(words: str) -> bool:
        return yes or (sys.stdin.isatty() and click.confirm(f"{words} Take over?", err=True))

    return ask


def deliver_now(settings: Settings, ledger: AnyLedger) -> None:
    """Copy a release's ledger to MLflow and Grafana, since no courier does. What fails can be done later."""
    from deploy.rollout import copies

    for name, reach in copies.places(settings).items():
        for problem in copies.deliver([ledger], settings.rollouts_dir, name, reach).problems:
            click.echo(f"shipway: not copied to {name} yet: {problem}. Later: shipway deliver", err=True)


@click.command()
@click.argument("name")
@release_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, for programs.")
@pass_settings
def history(settings: Settings, name: str, *, as_json: bool) -> None:
    """Say what was rolled out, judged and rolled back of the model NAME, by whom and why."""
    from deploy.rollout import display

    entries = places.ledger(settings, name).entries()
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
    elif entries:
        click.echo("\n".join(display.history(entries)))
    else:
        click.echo(f"{name} has no history: nothing was rolled out or served yet")
