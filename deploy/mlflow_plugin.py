"""`mlflow deployments … -t shipway`: MLflow's contract for deployment plugins, over `deployments.py`.

MLflow finds this module by the entry point `mlflow.deployments`, and wants in it one client class, `target_help` and
`run_local`. The contract: https://mlflow.org/docs/latest/plugins.html#deployment-plugins
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
import pandas as pd
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
)

from deploy.deployments import FLAVOR, Deployments, Options
from deploy.errors import DeploymentExists, DeploymentMissing, DeploymentRefused, ShipwayError
from deploy.settings import read_settings
from handlers.errors import shown
from model_store.errors import ModelStoreError

_CODES: dict[type[Exception], int] = {
    DeploymentExists: RESOURCE_ALREADY_EXISTS,
    DeploymentMissing: RESOURCE_DOES_NOT_EXIST,
    DeploymentRefused: INVALID_PARAMETER_VALUE,
}
_OURS = (ShipwayError, ModelStoreError)

Config = Mapping[str, Any] | None


class ShipwayDeploymentClient(BaseDeploymentClient):
    """Deployments on the node of this machine, which `shipway up` starts. A deployment is an endpoint: one model name.

    Every method raises MlflowException, in Shipway's words.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        if target_uri.rstrip("/:") != "shipway":
            raise MlflowException(f"{target_uri} is no target; it is shipway, without more", INVALID_PARAMETER_VALUE)

    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Config = None, endpoint: str | None = None
    ) -> dict[str, Any]:
        """Serve a version of a model that is not in service, packaging it first where that was not done."""
        with _deployments(name, flavor, endpoint) as deployments:
            return deployments.create(name, model_uri, Options.of(config or {}))

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Config = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Roll a version out in judged steps; MlflowException if it is held or taken back."""
        with _deployments(name, flavor, endpoint) as deployments:
            return deployments.update(name, model_uri, Options.of(config or {}))

    def delete_deployment(self, name: str, config: Config = None, endpoint: str | None = None) -> None:
        """Take a model out of service; nothing happens if it is not in service."""
        with _deployments(name, None, endpoint) as deployments:
            Options.of(config or {})
            deployments.delete(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        with _deployments() as deployments:
            return [deployments.get(name) for name in deployments.names() if endpoint in (None, name)]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Versions with their weights and states, and where it answers."""
        with _deployments(name, None, endpoint) as deployments:
            return deployments.get(name)

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Predict rows: a DataFrame, a list of dicts, or a dict."""
        name = _named(deployment_name, endpoint)
        with _deployments(name, None, endpoint) as deployments:
            return PredictionsResponse(predictions=deployments.ask("predictions", name, _rows(inputs)))

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> Any:
        """What each part of the rows contributes to their predictions, where the deployment explains (`explain`)."""
        name = _named(deployment_name, endpoint)
        with _deployments(name, None, endpoint) as deployments:
            return deployments.ask("explanations", name, _rows(df))

    def create_endpoint(self, name: str, config: Config = None) -> dict[str, Any]:  # noqa: ARG002 - MLflow's names
        """Refused: an endpoint is there with its first deployment, and never empty."""
        raise MlflowException(
            f"an endpoint is made by its first deployment: mlflow deployments create -t shipway --name {name} -m URI",
            INVALID_PARAMETER_VALUE,
        )

    def update_endpoint(self, endpoint: str, config: Config = None) -> None:
        """Change what is configured of an endpoint, and no version."""
        self.update_deployment(endpoint, config=config)

    def delete_endpoint(self, endpoint: str) -> None:
        self.delete_deployment(endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        return self.list_deployments()

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        return self.get_deployment(endpoint)


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Config = None) -> None:
    """Start what `shipway up` starts, with a signing key if there is none, and create the deployment there."""
    from rich.console import Console

    from deploy import stack
    from model_store.signing import create_key

    with _deployments(name, flavor) as deployments:
        settings, console = deployments.settings, Console()
        if not settings.signing_key.exists():
            create_key(settings.signing_key, settings.trust_dir)
        stack.up(settings, console)
        made = deployments.create(name, model_uri, Options.of(config or {}))
        console.print(f"{name} answers at {made['url']}; stop everything with: shipway down")


def target_help() -> str:
    return """\
Target: shipway. It is the node of this machine, which `shipway up` starts; run-local starts it too.
Settings are SHIPWAY_* variables, as for the command `shipway`; versions come from SHIPWAY_MLFLOW_URI, and the signing
key of archives is made once with `shipway keys create`.

A deployment is a model in service: its name is the model's, and so is its endpoint's. URIs are models:/NAME/VERSION and
models:/NAME@ALIAS. Plain rows are what it predicts and explains.

create   serves the version, which is packaged first if it was not; returns when it answers.
update   rolls the version out in the judged steps of SHIPWAY_ROLLOUT_CONFIG beside the one that serves; returns when it
         is promoted, and fails in words when it is held or taken back.
delete   takes the model out of service after the requests in flight.

Configuration (-C NAME=VALUE):
  explain=true|false   explain predictions, in a worker of its own
  shadow=PERCENT       copy this share of the requests to a new version before it answers any
"""


@contextmanager
def _deployments(
    name: str | None = None, flavor: str | None = None, endpoint: str | None = None
) -> Iterator[Deployments]:
    """The deployments of the node that the environment names; what goes wrong with them is MLflow's exception."""
    uris = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    try:
        if flavor not in (None, FLAVOR):
            raise DeploymentRefused("the flavor", repr(flavor), FLAVOR)
        if endpoint is not None and endpoint != name:
            raise DeploymentRefused("the endpoint", repr(endpoint), f"the deployment's own name, {name}")
        yield Deployments(read_settings())
    except _OURS as error:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), INTERNAL_ERROR)
        raise MlflowException(str(error), code) from error
    finally:
        # Packaging talks to the server of our settings; the caller's own choice comes back.
        mlflow.set_tracking_uri(uris[0])
        mlflow.set_registry_uri(uris[1])


def _named(name: str | None, endpoint: str | None) -> str:
    found = name or endpoint
    if found is None:
        raise MlflowException("name a deployment or an endpoint; found neither", INVALID_PARAMETER_VALUE)
    return found


def _rows(inputs: object) -> bytes:
    if isinstance(inputs, pd.DataFrame):
        return inputs.to_json(orient="records").encode()  # type: ignore[no-any-return]
    rows = [inputs] if isinstance(inputs, dict) else inputs
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        allowed = "a DataFrame, a list of dicts, or a dict"
        raise MlflowException(f"rows must be {allowed}; found {shown(inputs)}", INVALID_PARAMETER_VALUE)
    return json.dumps(rows).encode()
