"""The command `shipway plan`."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from deploy.rollout.commands import version_or_alias
from deploy.rollout.places import release_options
from deploy.settings import Settings

if TYPE_CHECKING:
    from deploy.rollout.record import Release


@click.command(
    epilog="It asks VERSION and the champion for the golden set and for captured requests (SHIPWAY_CAPTURE_SHARE), and "
    "prints Markdown for a pull request. Exit code 0: safe; 3: answers change, or are missing; 4: clients would break."
)
@click.argument("name")
@click.argument("version", callback=version_or_alias, metavar="VERSION|@ALIAS")
@click.option(
    "--against", type=click.IntRange(min=1), help="The version to compare with.  [default: the one with most traffic]"
)
@click.option(
    "--requests", type=click.IntRange(0, 10_000), default=200, show_default=True, help="Captured requests, at most."
)
@click.option(
    "--max-changed",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of the answers that may change.",
)
@click.option("--allow-breaking", is_flag=True, help="Do not mind what breaks clients; it is still told.")
@click.option("--show-inputs", is_flag=True, help="Show the inputs of the worst rows, but never those that are masked.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@release_options
@click.pass_obj
def plan(
    settings: Settings, /, name: str, version: int | str, against: int | None, *, as_json: bool, **asked: Any
) -> None:
    """Say what VERSION (or @ALIAS) of the model NAME would change for its clients, without any traffic."""
    from deploy.node.capturing import capture_plan
    from deploy.planning.forecast import Places, Question, ask_both, forecast
    from deploy.planning.markdown import markdown
    from deploy.rollout import places as where
    from deploy.trust import trusted_keys

    question = Question(
        model=name,
        champion=_champion(settings, name, against),
        candidate=where.release(settings, name, version),
        **asked,
    )
    places = Places(
        settings.archives_dir, trusted_keys(settings), capture_plan(settings).segments, settings.state_dir / "plans"
    )
    where.bring(settings, name, question.champion, question.candidate)
    found = forecast(question, ask_both(question, places))
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else markdown(found), nl=as_json)
    sys.exit(found.exit_code)


def _champion(settings: Settings, name: str, against: int | None) -> "Release":
    from deploy.errors import NotServed
    from deploy.rollout import places

    if against is not None:
        return places.release(settings, name, against)
    champion = places.endpoint(settings, name).driver.serving(name).champion
    if champion is None:
        raise NotServed(name, "; or name one to compare with: --against VERSION")
    return champion
