"""The command `shipway plan`."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.settings import Settings

if TYPE_CHECKING:
    from deploy.rollout.record import Release

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ALIAS = re.compile(r"@[A-Za-z0-9_-]+")


def _version(_: click.Context, __: click.Parameter, value: str) -> str:
    if not (_VERSION.fullmatch(value) or _ALIAS.fullmatch(value)):
        raise click.BadParameter(f"{value!r} is neither a version, such as 7, nor an alias, such as @challenger")
    return value


@click.command(
    epilog="It asks VERSION and the champion for the golden set and for captured requests (SHIPWAY_CAPTURE_SHARE), and "
    "prints Markdown for a pull request. Exit code 0: safe; 3: answers change, or are missing; 4: clients would break."
)
@click.argument("name")
@click.argument("version", callback=_version)
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
@click.pass_obj
def plan(settings: Settings, /, name: str, version: str, against: int | None, *, as_json: bool, **asked: Any) -> None:
    """Say what VERSION (or @ALIAS) of the model NAME would change for its clients, without any traffic."""
    from deploy.node.capturing import capture_plan
    from deploy.planning.forecast import Places, Question, ask_both, forecast
    from deploy.planning.markdown import markdown

    question = Question(
        model=name,
        champion=_champion(settings, name, against),
        candidate=_candidate(settings, name, version),
        **asked,
    )
    places = Places(
        settings.archives_dir, settings.trust_dir, capture_plan(settings).segments, settings.state_dir / "plans"
    )
    found = forecast(question, ask_both(question, places))
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else markdown(found), nl=as_json)
    sys.exit(found.exit_code)


def _champion(settings: Settings, name: str, against: int | None) -> "Release":
    from deploy.errors import NothingServed
    from deploy.node.desired import read_desired
    from deploy.rollout.record import Release

    if against is not None:
        return _packaged(settings.archives_dir, name, against)
    endpoint = read_desired(settings.desired_file).endpoint(name)
    if endpoint is None:
        raise NothingServed(name, settings.desired_file)
    champion = max(endpoint.versions, key=lambda version: version.weight)
    return Release(version=champion.version, digest=champion.digest)


def _candidate(settings: Settings, name: str, version: str) -> "Release":
    if not version.startswith("@"):
        return _packaged(settings.archives_dir, name, int(version))
    from model_store.registry import Registry

    resolved = Registry(settings.mlflow_uri).resolve(f"models:/{name}{version}")
    return _packaged(settings.archives_dir, name, resolved.version)


def _packaged(archives_dir: Path, name: str, version: int) -> "Release":
    from deploy.packaged import packaged_digest
    from deploy.rollout.record import Release

    return Release(version=version, digest=packaged_digest(archives_dir, name, version))
