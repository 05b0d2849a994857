"""What the modules that speak to MLflow share, without importing it."""

import urllib.request

from model_store.errors import RegistryUnreachable

CHAMPION = "champion"
"""The alias of the version that serves."""

REACH_SECONDS = 10.0


def check_reachable(tracking_uri: str) -> None:
    """Fail in seconds, with RegistryUnreachable: MLflow itself retries for minutes."""
    try:
        # Any scheme but HTTP is a mistake here, and urlopen says so.
        with urllib.request.urlopen(f"{tracking_uri}/health", timeout=REACH_SECONDS):  # noqa: S310
            pass
    except (OSError, ValueError) as error:
        raise RegistryUnreachable(tracking_uri, str(error)) from error
