"""Deployments, as MLflow calls them: each is one model name in service on the node of this machine, an endpoint."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploy.caller import caller
from deploy.errors import (
    DeploymentExists,
    DeploymentMissing,
    DeploymentRefused,
    LoadFailed,
    NotAnswered,
    NotPackaged,
    NotPromoted,
)
from deploy.node.desired import read_desired, running
from deploy.rollout import here
from deploy.rollout.record import Release, read_percent
from deploy.settings import Settings
from model_store.package import package
from model_store.registry import Registry

FLAVOR = "pytorch"
ANSWERED_WITHIN_SECONDS = 60.0
EXPLAINER_WITHIN_SECONDS = 120.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Options:
    """What may be asked of a deployment besides its version."""

    shadow: int = 0
    """The percentage of the requests that is copied to a new version before it answers any."""
    explain: bool | None = None
    """Whether it explains its predictions; None for as before."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Options":
        """Read what MLflow hands over, words from its command line among it. Raises DeploymentRefused."""
        unknown = sorted(set(config) - {"shadow", "explain"})
        if unknown:
            raise DeploymentRefused("the configuration", ", ".join(unknown), "shadow and explain")
        return cls(_percent(config.get("shadow", 0)), _yes_or_no(config.get("explain")))


@dataclass(frozen=True)
class Deployments:
    """Those of one node. Every method raises ShipwayError or ModelStoreError."""

    settings: Settings

    def create(self, name: str, uri: str, options: Options) -> dict[str, Any]:
        """Package the version if it was not, and serve it; returns when it answers."""
        if found := read_desired(self.settings.desired_file).endpoint(name):
            raise DeploymentExists(name, [version.version for version in found.versions])
        self._roll_out(name, self._release(name, uri), options)
        return self.get(name)

    def update(self, name: str, uri: str | None, options: Options) -> dict[str, Any]:
        """Roll the version out, judged step by step; returns when it is promoted, and raises NotPromoted otherwise."""
        found = self.get(name)
        if uri is not None:
            self._roll_out(name, self._release(name, uri), options)
        elif options.shadow:
            raise DeploymentRefused("shadow", f"{options.shadow}% and no version", "it together with the model's URI")
        elif options.explain is not None:
            serving = max(found["versions"], key=lambda version: version["weight"])
            self._explain(name, Release(version=serving["version"], digest=serving["digest"]), explain=options.explain)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Take it out of service, after what is in flight; nothing happens if it is not there."""
        endpoint = here.endpoint(self.settings, name)
        # A name that was mistyped gets no ledger.
        if name in self.names() or endpoint.ledger.newest() is not None:
            endpoint.withdraw()

    def names(self) -> list[str]:
        return [endpoint.model for endpoint in read_desired(self.settings.desired_file).endpoints]

    def get(self, name: str) -> dict[str, Any]:
        wanted = read_desired(self.settings.desired_file).endpoint(name)
        if wanted is None:
            raise DeploymentMissing(name, self.names())
        node = running(self.settings.actual_file)
        found = node.endpoint(name) if node else None
        states = {(one.version, one.digest): one.state for one in (found.versions if found else ())}
        return {
            "name": name,
            "flavor": FLAVOR,
            "url": f"{self.settings.http_url}/predictions/{name}",
            "versions": [
                {**version.model_dump(), "state": states.get((version.version, version.digest), "LOADING")}
                for version in wanted.versions
            ],
            "explainer": wanted.explainer,
        }

    def ask(self, what: Literal["predictions", "explanations"], name: str, rows: bytes) -> Any:
        """What the node says about rows, a JSON list of objects."""
        self.get(name)
        asking = caller(self.settings)
        url = f"{asking.url}/{what}/{name}"
        request = urllib.request.Request(  # noqa: S310 - our own node's URL
            url, rows, {"Content-Type": "application/json", **asking.headers()}
        )
        try:
            with urllib.request.urlopen(  # noqa: S310
                request, timeout=ANSWERED_WITHIN_SECONDS, context=asking.trusted()
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise NotAnswered(url, f"{error.code} {error.read().decode(errors='replace')[:2000]}") from error
        except (OSError, ValueError) as error:
            raise NotAnswered(url, str(error)) from error

    def _release(self, name: str, uri: str) -> Release:
        """The archive of the version that `uri` names, made if there is none."""
        version = Registry(self.settings.mlflow_uri).resolve(uri)
        if version.model != name:
            raise DeploymentRefused(f"the name {name}", f"a version of {version.model}", "the name of the model")
        try:
            return here.release(self.settings, name, version.version)
        except NotPackaged:
            packaged = package(
                version.uri,
                tracking_uri=self.settings.mlflow_uri,
                archives_dir=self.settings.archives_dir,
                signing_key=self.settings.signing_key,
            )
        return Release(version=packaged.version, digest=packaged.digest)

    def _roll_out(self, name: str, release: Release, options: Options) -> None:
        entry = here.endpoint(self.settings, name).roll_out(release, options.shadow)
        if entry.state != "PROMOTED":
            raise NotPromoted(name, release.version, entry.state or "", entry.words)
        if options.explain is not None:
            self._explain(name, release, explain=options.explain)

    def _explain(self, name: str, release: Release, *, explain: bool) -> None:
        here.serve(self.settings, name, release, explain=explain)
        deadline = time.monotonic() + EXPLAINER_WITHIN_SECONDS
        while time.monotonic() < deadline:
            node = running(self.settings.actual_file)
            endpoint = node.endpoint(name) if node else None
            found = endpoint.explainer if endpoint else None
            ready = found is not None and (found.version, found.state) == (release.version, "READY")
            if ready if explain else found is None:
                return
            if found is not None and found.state == "FAILED":
                raise LoadFailed(f"the explainer of {name} version {found.version}: {found.reason}")
            time.sleep(POLL_SECONDS)
        raise LoadFailed(f"the explainer of {name} was not there within {EXPLAINER_WITHIN_SECONDS:g} s")


def _percent(given: object) -> int:
    try:
        return read_percent(str(given))
    except ValueError as error:
        raise DeploymentRefused("shadow", repr(given), "a whole percentage from 0% to 100%") from error


def _yes_or_no(given: object) -> bool | None:
    if given is None or isinstance(given, bool):
        return given
    if given not in ("true", "false"):
        raise DeploymentRefused("explain", repr(given), "true or false")
    return given == "true"
