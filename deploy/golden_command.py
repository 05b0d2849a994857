"""The command `shipway golden`."""

import sys
from pathlib import Path

import click

from deploy.settings import Settings

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog="Exit code 0: all answers are right; 1: one is wrong, or none came. `helm test` runs it.")
@click.argument("name")
@click.option(
    "--version",
    "versions",
    type=(click.IntRange(min=1), str),
    multiple=True,
    required=True,
    metavar="VERSION DIGEST",
    help="Of an archive in SHIPWAY_ARCHIVES_DIR; may be repeated.",
)
@click.option("--url", required=True, help="Where it answers, http:// or https://.")
@click.option("--certificate", type=FILE, help="Trust this certificate (PEM) and no other.")
@click.option("--server-name", help="What the certificate is for.  [default: the host of --url]")
@click.option("--header-file", type=FILE, help="A header to ask with, like `x-api-key: ...`.")
@click.pass_obj
def golden(
    settings: Settings,
    name: str,
    versions: tuple[tuple[int, str], ...],
    url: str,
    certificate: Path | None,
    server_name: str | None,
    header_file: Path | None,
) -> None:
    """Ask versions of the model NAME in service for their golden sets, over HTTP and gRPC."""
    from deploy.golden_check import Served, Service, check

    headers = dict([_header(header_file)]) if header_file else {}
    service = Service(url.rstrip("/"), certificate, server_name, headers)
    failed = False
    for version, digest in versions:
        for protocol, problem in check(settings.archives_dir, Served(name, version, digest), service):
            failed = failed or bool(problem)
            click.echo(f"{name} version {version} over {protocol}: {problem or 'all golden outputs are right'}")
    sys.exit(int(failed))


def _header(path: Path) -> tuple[str, str]:
    name, found, value = path.read_text().strip().partition(":")
    if not found or not value.strip():
        raise click.BadParameter(f"{path} has no header: expected one line, `name: value`", param_hint="--header-file")
    return name.strip(), value.strip()
