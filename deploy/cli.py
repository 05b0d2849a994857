"""The command `shipway`. A command parses, calls one function, prints; errors are put into words in `main` alone.

Heavy modules are imported inside the commands, so that a base install prints its help.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from deploy import termination
from deploy.drill.commands import drill
from deploy.errors import ShipwayError
from deploy.golden_command import golden
from deploy.planning.commands import plan
from deploy.rollout import places
from deploy.rollout.commands import history, rollback, rollout
from deploy.rollout.copies import PLACE_NAMES
from deploy.rollout.places import release_options
from deploy.scopes import SCOPES, Scope
from deploy.settings import Settings, read_settings, variable
from model_store.errors import ModelStoreError
from model_store.mlflow_environment import ENVIRONMENT
from model_store.training import DEFAULT, TRAININGS
from model_store.worker_plan import WorkerPlan
from monitoring.errors import MonitoringError

if TYPE_CHECKING:
    from deploy.drift import Question
    from deploy.kubernetes.status import ReleaseStatus
    from deploy.stack import Status

OURS = frozenset({"deploy", "handlers", "model_store", "monitoring"})

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

pass_settings = click.make_pass_decorator(Settings)
insecure_option = click.option(
    "--insecure", is_flag=True, help="Listen beyond loopback even without TLS or authentication (SHIPWAY_INSECURE)."
)
version_option = click.option(
    "--version", type=click.IntRange(min=1), help="Of the model.  [default: the one with most rows in the window]"
)


def since_option(default: str) -> Callable[[Any], Any]:
    """--since, a window that ends now, in seconds."""
    return click.option(
        "--since", default=default, show_default=True, callback=_duration, help="The window up to now: 10m, 6h, 1d."
    )


def _duration(_: click.Context, __: click.Parameter, value: str) -> int:
    from deploy.prometheus import duration_seconds

    try:
        return duration_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _host_names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"[A-Za-z0-9*._:-]{1,253}", value):
            raise click.BadParameter(f"{value!r} is neither a DNS name nor an IP address")
    return values


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shipway")
@click.pass_context
def cli(context: click.Context) -> None:
    """Take a trained PyTorch model from the MLflow registry to production traffic."""
    if not context.resilient_parsing:
        context.obj = read_settings()


@cli.command()
@insecure_option
@pass_settings
def up(settings: Settings, *, insecure: bool) -> None:
    """Start MLflow, the courier, Prometheus, Alertmanager and the node, or what has stopped of them."""
    from deploy import stack

    settings, console = _told(settings, insecure=insecure), Console()
    stack.up(settings, console)
    console.print(stack.status(settings).table())


@cli.command()
@pass_settings
def down(settings: Settings) -> None:
    """Stop everything that `up` started. Data stays in the state directory."""
    from deploy import stack

    stack.down(settings, Console())


@cli.command()
@release_options
@click.option("--adopt", is_flag=True, help="Of a release: write into the ledger what it serves, and move the alias.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@pass_settings
def status(settings: Settings, *, adopt: bool, as_json: bool) -> None:
    """Say which programs run, where they answer, and which models are loaded; or how a Helm release is."""
    found: Status | ReleaseStatus
    if settings.helm_release is not None:
        from deploy.kubernetes.status import read_status

        found = read_status(settings, adopt=adopt)
    elif adopt:
        raise click.UsageError("--adopt is for a Helm release: name it with --release")
    else:
        from deploy import stack

        found = stack.status(settings)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(found.table())


@cli.group()
def keys() -> None:
    """Keys that sign archives, keys of clients, and a certificate for trying out TLS."""


@keys.command("create")
@pass_settings
def create_keys(settings: Settings) -> None:
    """Make the key pair that signs archives, and let the node trust it."""
    from model_store.signing import create_key

    click.echo(f"{create_key(settings.signing_key, settings.trust_dir)} {settings.signing_key}")


@keys.command("api")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@pass_settings
def create_api_key(settings: Settings, name: str, scopes: tuple[Scope, ...]) -> None:
    """Make an API key for the client NAME and print it, this once: only its sha256 is kept."""
    from deploy.node import auth

    path = settings.api_keys or settings.default_api_keys
    click.echo(auth.add_api_key(path, name, scopes))
    _say_where(settings.api_keys, api_keys=path)


@keys.command("revoke")
@click.argument("name")
@pass_settings
def revoke_api_key(settings: Settings, name: str) -> None:
    """Take the API key of the client NAME away. A running node refuses it a second later."""
    from deploy.node import auth

    auth.revoke_api_key(settings.api_keys or settings.default_api_keys, name)


@keys.command("tls")
@click.option("--name", "names", multiple=True, callback=_host_names, help="A DNS name or address; may be repeated.")
@pass_settings
def create_certificate(settings: Settings, names: tuple[str, ...]) -> None:
    """Make a self-signed certificate for trying out TLS, or a new one in its place."""
    from deploy.node import tls

    certificate = settings.tls_certificate or settings.default_tls_certificate
    key = settings.tls_key or settings.default_tls_key
    tls.create_self_signed(certificate, key, list(dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"])))
    click.echo(certificate)
    _say_where(settings.tls_certificate, tls_certificate=certificate, tls_key=key)


@cli.command(epilog="\b\n" + "\n".join(f"{name:10} {what}" for name, (_, what) in TRAININGS.items()))
@click.argument("name", type=click.Choice(list(TRAININGS)), default=DEFAULT, metavar="[NAME]")
@pass_settings
def train(settings: Settings, name: str) -> None:
    """Train the model NAME, flights by default, and register it."""
    from model_store import training

    training.train(name, tracking_uri=settings.mlflow_uri, console=Console())


@cli.command(context_settings={"show_default": True})
@click.argument("uri")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Worker processes for this version.  [default: 1 for a small program, else 2]",
)
@click.option(
    "--batch-size", type=click.IntRange(1, 1024), default=WorkerPlan.batch_size, help="Requests in one batch, at most."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of a worker's operations.  [default: 1 for a small program, else the CPU quota over the workers]",
)
@click.option("--handler", type=FILE, help="Your own handler.py: a subclass of one of the package handlers.")
@click.option("--golden", type=FILE, help="The request, in Open Inference JSON, that every node replays.")
@click.option(
    "--reference", type=FILE, help="Rows of normal traffic for the profile: an .npz file of arrays by input name."
)
@click.option(
    "--optimize",
    is_flag=True,
    help="Measure ways to run it on this hardware, and pack the fastest whose outputs are near enough.",
)
@click.option(
    "--max-difference",
    type=click.FloatRange(min=0, min_open=True),
    help="With --optimize: of any output value, at most.  "
    "[default: 0.05 for classes, 1% and 0.001 for numbers, a cosine similarity of 0.999 for embeddings]",
)
@pass_settings
def package(
    settings: Settings,
    /,
    uri: str,
    handler: Path | None,
    golden: Path | None,
    reference: Path | None,
    *,
    optimize: bool,
    max_difference: float | None,
    **plan: int,
) -> None:
    """Write and sign the archive of URI: models:/NAME/VERSION or models:/NAME@ALIAS."""
    from model_store import package as packaging
    from model_store.members import OwnFiles

    if max_difference is not None and not optimize:
        raise click.UsageError("--max-difference is for --optimize")

    packaged = packaging.package(
        uri,
        tracking_uri=settings.mlflow_uri,
        archives_dir=settings.archives_dir,
        signing_key=settings.signing_key,
        plan=WorkerPlan(**plan),
        own=OwnFiles(handler, golden, reference),
        # On stderr, because programs read the two lines below.
        optimizing=packaging.Optimizing(max_difference, Console(stderr=True)) if optimize else None,
    )
    click.echo(f"{packaged.archive}\n{packaged.digest}")


@cli.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.argument("digest")
@click.option("--from", "url", help="Where it lies as a file, http or https, instead of the registry.")
@click.option("--offline", is_flag=True, help="Only look whether it lies there and is right.")
@pass_settings
def fetch(settings: Settings, name: str, version: int, digest: str, url: str | None, *, offline: bool) -> None:
    """Fetch the archive of NAME and VERSION with this DIGEST from the registry, unless it is there, and verify it."""
    from deploy.trust import trusted_keys
    from model_store.fetching import fetch, over_http

    if url and offline:
        raise click.UsageError("--from fetches, and --offline does not: leave one of them out")

    def from_registry(archive: Path) -> None:
        from model_store.registry import Registry  # imports MLflow, which takes its time: only where it is asked

        Registry(settings.mlflow_uri).download_archive(name, version, archive)

    download = None if offline else over_http(url) if url else from_registry
    click.echo(fetch(settings.archives_dir, name, version, digest, trusted_keys(settings), download))


@cli.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--explain/--no-explain",
    default=None,
    help="Answer /explanations/NAME too, in a worker of its own.  [default: as before]",
)
@pass_settings
def serve(settings: Settings, name: str, version: int, *, explain: bool | None) -> None:
    """Give all traffic of the model NAME to its packaged VERSION, at once and unjudged."""
    from deploy.rollout import here

    release = here.release(settings, name, version)
    here.serve(settings, name, release, explain=explain)
    click.echo(f"{name} version {version} {release.digest} is asked for; see: shipway status")


cli.add_command(rollout)
cli.add_command(rollback)
cli.add_command(history)
cli.add_command(drill)


@cli.group()
def grafana() -> None:
    """Dashboards, for a running Grafana or as files."""


@grafana.command("push")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array, for programs.")
@pass_settings
def push_to_grafana(settings: Settings, *, as_json: bool) -> None:
    """Bring the data source and the dashboards into the running Grafana; what is right already stays as it is."""
    from deploy.grafana import configured_grafana
    from deploy.objectives import read_objectives
    from monitoring.dashboards.catalogue import dashboards

    wanted = dashboards(read_objectives(settings))
    pushed = configured_grafana(settings).push(settings.grafana_prometheus_url, wanted)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in pushed], indent=2))
    else:
        for each in pushed:
            click.echo(f"{each.outcome:9} {each.kind:11} {each.uid:18} {each.title}")


@grafana.command("files")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seen-at", type=click.Path(path_type=Path), help="Where Grafana sees DIRECTORY, if it is elsewhere.")
@pass_settings
def write_grafana_files(settings: Settings, directory: Path, seen_at: Path | None) -> None:
    """Write the data source and the dashboards as files below DIRECTORY, for those who provision Grafana."""
    from deploy.objectives import read_objectives
    from monitoring.provisioning import write_provisioning

    config, prometheus = read_objectives(settings), settings.grafana_prometheus_url
    for path in write_provisioning(directory.absolute(), config, prometheus, seen_at):
        click.echo(path)


@cli.command()
@insecure_option
@pass_settings
def node(settings: Settings, *, insecure: bool) -> None:
    """Run a serving node in the foreground until SIGTERM."""
    from deploy.node import launcher

    sys.exit(launcher.run(_told(settings, insecure=insecure)))


@cli.command()
@pass_settings
def courier(settings: Settings) -> None:
    """Write Alertmanager's alerts into the ledgers, and deliver copies of the ledgers, until SIGTERM."""
    from deploy import courier as program

    program.run(settings)


@cli.command()
@release_options
@click.option("--to", "only", type=click.Choice(PLACE_NAMES), help="This place alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@pass_settings
def deliver(settings: Settings, only: str | None, *, as_json: bool) -> None:
    """Copy now what MLflow and Grafana lack of the ledgers, as `courier` does by itself."""
    from deploy.rollout import copies

    if only == "grafana" and not settings.grafana_url:
        raise click.UsageError(f"no Grafana is configured; name it in {variable('grafana_url')}")
    wanted = {name: reach for name, reach in copies.places(settings).items() if only in (None, name)}
    ledgers = places.ledgers(settings)
    found = {name: copies.deliver(ledgers, settings.rollouts_dir, name, reach) for name, reach in wanted.items()}
    if as_json:
        click.echo(json.dumps({name: asdict(each) for name, each in found.items()}, indent=2))
    for name, each in {} if as_json else found.items():
        click.echo("\n".join([f"{name}: {each.copied} copied", *(f"{name}: {problem}" for problem in each.problems)]))
    sys.exit(1 if any(each.problems for each in found.values()) else 0)


@cli.command()
@click.option("--alertmanager", is_flag=True, help="Alertmanager's configuration instead.")
@pass_settings
def rules(settings: Settings, *, alertmanager: bool) -> None:
    """Print the rule file for a Prometheus of your own: recorded series and alerts."""
    from deploy.objectives import read_objectives
    from monitoring.alertmanager import alertmanager_file
    from monitoring.rules.file import rule_file

    make = alertmanager_file if alertmanager else rule_file
    click.echo(make(read_objectives(settings)), nl=False)


@cli.command()
@click.option("--all", "every", is_flag=True, help="Every kind of model instead: table, image, text and sequence.")
@pass_settings
def demo(settings: Settings, *, every: bool) -> None:
    """Train, register, package and serve the flights model, ask it about real flights, take a bad version back."""
    from deploy import demo as one
    from deploy import gallery

    (gallery if every else one).run(settings, Console())


@cli.command()
@click.argument("name")
@version_option
@since_option("1h")
@click.option("--all", "every", is_flag=True, help="Every feature, and not only what drifted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
@pass_settings
def drift(settings: Settings, name: str, version: int | None, since: int, *, every: bool, as_json: bool) -> None:
    """Say what moved in the traffic of the model NAME away from its profile, from where to where."""
    from deploy.drift import examine
    from deploy.prometheus import Prometheus

    found = examine(Prometheus(settings.prometheus_url), _question(settings, name, version, since))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(found.table(every=every))


@cli.command()
@click.argument("name")
@version_option
@since_option("6h")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file.  [default: below state_dir]")
@pass_settings
def report(settings: Settings, name: str, version: int | None, since: int, *, out: Path | None) -> None:
    """Write how the model NAME served, drifted, was right and rolled out into one HTML file that needs no network."""
    from deploy.prometheus import Prometheus
    from deploy.report.gather import gather
    from deploy.report.page import page
    from deploy.rollout.ledger import Ledger
    from model_store.files import write_atomically

    entries = Ledger(settings.rollouts_dir, name).entries()
    found = gather(Prometheus(settings.prometheus_url), _question(settings, name, version, since), entries)
    path = out or settings.reports_dir / f"{name}-{found.file_stamp}.html"
    write_atomically(path, page(found).encode())
    click.echo(path)


cli.add_command(plan)
cli.add_command(golden)


def _question(settings: Settings, name: str, version: int | None, since: int) -> "Question":
    """What `drift` and `report` look at, the window ending now."""
    from deploy.drift import Question, Thresholds
    from deploy.objectives import read_objectives

    return Question(
        model=name,
        version=version,
        window_seconds=since,
        at=time.time(),
        thresholds=Thresholds.of(read_objectives(settings).drift, since),
        archives_dir=settings.archives_dir,
    )


def _told(settings: Settings, *, insecure: bool) -> Settings:
    return settings.model_copy(update={"insecure": settings.insecure or insecure})


def _say_where(configured: Path | None, **files: Path) -> None:
    """To a person, and not in what a program reads: how the node gets what was just made, unless it has it."""
    if configured is None:
        given = " ".join(f"{variable(name)}={path}" for name, path in files.items())
        click.echo(f"The node uses it when it is started with {given}", err=True)


def main() -> None:
    """Run the command line: exit code 0 when it did what was asked, 1 for an error in words, 2 for wrong usage."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        cli()
    except (ShipwayError, ModelStoreError, MonitoringError) as error:
        if sys.argv[1:2] in (["fetch"], ["node"]):  # what containers are started for, and not what is asked within one
            termination.tell(str(error))
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
