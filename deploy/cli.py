"""The command `shipway`. A command parses, calls one function, prints; errors are put into words in `main` alone.

Heavy modules are imported inside the commands, so that a base install prints its help.
"""

import json
import os
import sys

import click
from rich.console import Console

from deploy.errors import ShipwayError
from deploy.settings import Settings, read_settings
from model_store.errors import ModelStoreError
from model_store.mlflow_environment import ENVIRONMENT
from model_store.training import DEFAULT, TRAININGS

OURS = frozenset({"deploy", "handlers", "model_store", "monitoring"})

P = ParamSpec("P")


def pass_settings(command: Callable[Concatenate[Settings, P], None]) -> Callable[P, None]:
    """Read the settings when the command runs, those that its options have set included."""

    @functools.wraps(command)
    def with_settings(*args: P.args, **kwargs: P.kwargs) -> None:
        given = click.get_current_context().meta
        command(read_settings(**{name: given[_GIVEN + name] for name in ("insecure",) if _GIVEN + name in given}), *args, **kwargs)

    return with_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shipway")
@click.pass_context
def cli(context: click.Context) -> None:
    """Take a trained PyTorch model from the MLflow registry to production traffic."""
    if not context.resilient_parsing:
        context.obj = read_settings()


@cli.command()
@pass_settings
def up(settings: Settings) -> None:
    """Start MLflow, Prometheus and the node, or what has stopped of them."""
    from deploy import stack

    console = Console()
    stack.up(settings, console)
    console.print(stack.status(settings).table())


@cli.command()
@pass_settings
def down(settings: Settings) -> None:
    """Stop everything that `up` started. Data stays in the state directory."""
    from deploy import stack

    stack.down(settings, Console())


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@pass_settings
def status(settings: Settings, *, as_json: bool) -> None:
    """Say which programs run, where they answer, and which models are loaded."""
    from deploy import stack

    found = stack.status(settings)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(found.table())


@cli.group()
def keys() -> None:
    """Keys that sign archives."""


@keys.command("create")
@pass_settings
def create_keys(settings: Settings) -> None:
    """Make the key pair that signs archives, and let the node trust it."""
    from model_store.signing import create_key

    click.echo(f"{create_key(settings.signing_key, settings.trust_dir)} {settings.signing_key}")


@cli.command(epilog="\b\n" + "\n".join(f"{name:10} {what}" for name, (_, what) in TRAININGS.items()))
@click.argument("name", type=click.Choice(list(TRAININGS)), default=DEFAULT, metavar="[NAME]")
@pass_settings
def train(settings: Settings, name: str) -> None:
    """Train the model NAME, flights by default, and register it."""
    from model_store import training

    training.train(name, tracking_uri=settings.mlflow_uri, console=Console())


@cli.command()
@click.argument("uri")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes for this version.  [default: 1]")
@click.option("--batch-size", type=click.IntRange(1, 1024), help="Requests in one batch, at most.  [default: 64]")
@click.option("--batch-delay-ms", type=click.IntRange(1, 1000), help="Wait for more requests, in ms.  [default: 1]")
@pass_settings
def package(settings: Settings, /, uri: str, **plan: int | None) -> None:
    """Write and sign the archive of URI: models:/NAME/VERSION or models:/NAME@ALIAS."""
    from model_store import package as packaging

    packaged = packaging.package(
        uri,
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
        plan=packaging.WorkerPlan(**{name: value for name, value in plan.items() if value is not None}),
    )
    click.echo(f"{packaged.archive}\n{packaged.digest}")


@cli.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.argument("digest")
@pass_settings
def fetch(settings: Settings, name: str, version: int, digest: str) -> None:
    """Fetch the archive of NAME and VERSION with this DIGEST, and its signature, from the registry."""
    from model_store.registry import Registry

    click.echo(Registry(settings.mlflow_uri).fetch_archive(name, version, digest, settings.archives_dir))


@cli.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@pass_settings
def serve(settings: Settings, name: str, version: int) -> None:
    """Give all traffic of the model NAME to its packaged VERSION."""
    from deploy.node import desired
    from deploy.packaged import packaged_digest

    digest = packaged_digest(settings.archives_dir, name, version)
    desired.serve(settings.desired_file, name, version, digest)
    click.echo(f"{name} version {version} {digest} is asked for; see: shipway status")


@cli.command()
@pass_settings
def node(settings: Settings) -> None:
    """Run a serving node in the foreground until SIGTERM."""
    from deploy.node import launcher

    sys.exit(launcher.run(settings))


@cli.command()
@pass_settings
def demo(settings: Settings) -> None:
    """Train, register, package and serve the flights model, then ask it about three real flights."""
    from deploy.demo import run

    run(settings, Console())


def main() -> None:
    """Run the command line: exit code 0 when it did what was asked, 1 for an error in words, 2 for wrong usage."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        cli()
    except (ShipwayError, ModelStoreError) as error:
        click.echo(f"shipway: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        # The base install prints help; a missing module of our own is a fault, and wants its traceback.
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        click.echo(f"shipway: this command needs {error.name!r}, which the extra shipway[local] installs", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
