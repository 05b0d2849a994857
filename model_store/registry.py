"""The MLflow registry, and the only module that imports mlflow.

MLflow's clients are told the tracking server's address; nothing here reads or writes the environment. Whoever starts
a process that uses this module sets `mlflow_environment.ENVIRONMENT` first (the command line does).
"""

import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.types import Schema, TensorSpec
from torch import nn

from model_store.archive import archive_name, file_digest, signature_path
from model_store.errors import (
    ArchiveRefused,
    ArtifactMissing,
    ModelUriInvalid,
    RegistryError,
    RegistryUnreachable,
    SourceRefused,
    VersionNotFound,
)
from model_store.files import write_atomically

CHAMPION = "champion"
DIGEST_TAG = "shipway.digest"
ARCHIVES = "archives"
"""Where a run keeps the archives of its version, and their signatures."""
DESCRIPTION = "version"
"""Where a run keeps what belongs to its version beside the program: schema, profile, golden set, origin."""

_REACH_SECONDS = 10.0
_LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]+)")
_URI = re.compile(r"models:/(?P<model>[^/@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry and the run that made it."""

    model: str
    version: int
    run_id: str

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class ResolvedVersion(RegisteredVersion):
    """What the registry says about a version."""

    source: str
    """Where the logged model is, `models:/m-…`."""
    digest: str | None
    """Of the archive last packaged from it; None if none was."""


class Registry:
    """One MLflow server. Raises RegistryError, RegistryUnreachable for a server that does not answer."""

    def __init__(self, tracking_uri: str, artifact_root: str = "mlflow-artifacts:/") -> None:
        """`artifact_root` is where files may be fetched from; by default what the server itself hands out."""
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        _check_reachable(tracking_uri)
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_registry_uri(tracking_uri)
        self._client = mlflow.MlflowClient(tracking_uri, tracking_uri)

    @contextmanager
    def run(self, experiment: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[str]:
        """A run in `experiment`, finished or marked as failed at the end; gives its id."""
        mlflow.set_experiment(experiment)
        with mlflow.start_run(tags=dict(tags)) as active:
            mlflow.log_params(dict(params))
            yield str(active.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log several values of one step in one request."""
        now = time.time_ns() // 1_000_000
        self._client.log_batch(run_id, [Metric(name, value, now, step) for name, value in metrics.items()])

    def log_model(
        self,
        network: nn.Module,
        example: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
        outputs: tuple[str, ...],
        requirements: list[str],
    ) -> str:
        """Export `network`, in evaluation mode, in the active run; returns the id of the logged model.

        `example` is (numbers, codes) of at least two rows: the export makes an axis of length one a constant.
        """
        numbers, codes = example
        signature = ModelSignature(
            inputs=Schema(
                [
                    TensorSpec(np.dtype(np.float32), (-1, numbers.shape[1]), "numbers"),
                    TensorSpec(np.dtype(np.int64), (-1, codes.shape[1]), "codes"),
                ]
            ),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,), name) for name in outputs]),
        )
        info = mlflow.pytorch.log_model(
            network,
            name="model",
            input_example=example,
            signature=signature,
            serialization_format="pt2",
            pip_requirements=requirements,  # or MLflow installs an environment to find them out
        )
        return str(info.model_id)

    def register(self, model: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """Make a logged model the next version of `model`; it becomes the champion if there is none."""
        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise RegistryError(f"{model} cannot be registered: {error}") from error
        created = self._client.create_model_version(
            model, source=f"models:/{model_id}", run_id=run_id, tags=dict(tags), model_id=model_id
        )
        version = int(created.version)
        if CHAMPION not in self._client.get_registered_model(model).aliases:
            self._client.set_registered_model_alias(model, CHAMPION, str(version))
        return RegisteredVersion(model, version, run_id)

    def resolve(self, uri: str) -> ResolvedVersion:
        """The version that `models:/NAME/VERSION` or `models:/NAME@ALIAS` names."""
        parts = _URI.fullmatch(uri)
        if parts is None:
            raise ModelUriInvalid(uri)
        model = parts["model"]
        try:
            if parts["alias"]:
                found = self._client.get_model_version_by_alias(model, parts["alias"])
            else:
                found = self._client.get_model_version(model, parts["version"])
        except MlflowException as error:
            raise VersionNotFound(uri, self.tracking_uri, self._known(model)) from error
        return _resolved(found)

    def download_program(self, source: str, into: Path) -> Path:
        """Fetch the exported program of a version's `source` into the directory `into`; the path of `model.pt2`."""
        logged = _LOGGED_MODEL.fullmatch(source)
        if logged is None:
            raise SourceRefused("the version", source, "a logged model, models:/m-…")
        try:
            self._check_location(source, self._client.get_logged_model(logged["id"]).artifact_location)
            directory = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(into))
        except (MlflowException, OSError) as error:
            raise ArtifactMissing(source, "data/model.pt2") from error
        path = Path(directory) / "data" / "model.pt2"
        if not path.is_file():
            raise ArtifactMissing(source, "data/model.pt2")
        return path

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Keep what belongs to a version beside its program, by file name."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in files.items():
                (Path(directory) / name).write_bytes(content)
            self._client.log_artifacts(run_id, directory, DESCRIPTION)

    def read_file(self, run_id: str, name: str) -> bytes:
        """One file that `log_files` kept."""
        with tempfile.TemporaryDirectory() as directory:
            return self._download(run_id, f"{DESCRIPTION}/{name}", Path(directory)).read_bytes()

    def log_archive(self, version: RegisteredVersion, archive: Path, digest: str) -> None:
        """Keep an archive and its signature beside its version, and tag the version with the digest."""
        for path in (archive, signature_path(archive)):
            self._client.log_artifact(version.run_id, str(path), ARCHIVES)
        self._client.set_model_version_tag(version.model, str(version.version), DIGEST_TAG, digest)

    def fetch_archive(self, model: str, version: int, digest: str, into: Path) -> Path:
        """Fetch an archive and its signature into the directory `into`; ArchiveRefused if its digest is another.

        The signature is the node's to verify: only the node knows whom it trusts.
        """
        run_id = self.resolve(f"models:/{model}/{version}").run_id
        name = archive_name(model, version, digest)
        target = into / name
        with tempfile.TemporaryDirectory() as directory:
            try:
                archive = self._download(run_id, f"{ARCHIVES}/{name}", Path(directory))
                signature = self._download(run_id, f"{ARCHIVES}/{signature_path(target).name}", Path(directory))
            except ArtifactMissing as error:
                remedy = f"package the version with: shipway package models:/{model}/{version}"
                raise ArtifactMissing(error.owner, error.name, remedy) from error
            found = file_digest(archive)
            if found != digest:
                raise ArchiveRefused(archive, "the registry holds another file under its name", digest, found)
            write_atomically(signature_path(target), signature.read_bytes())
            write_atomically(target, archive.read_bytes())
        return target

    def _download(self, run_id: str, artifact: str, into: Path) -> Path:
        try:
            self._check_location(f"the run {run_id}", self._client.get_run(run_id).info.artifact_uri)
            return Path(self._client.download_artifacts(run_id, artifact, str(into)))
        except (MlflowException, OSError) as error:
            raise ArtifactMissing(f"the run {run_id}", artifact) from error

    def _check_location(self, owner: str, location: str | None) -> None:
        """Whoever may create an experiment may point its artifacts at any path or host."""
        if not str(location).startswith(self._artifact_root):
            raise SourceRefused(owner, str(location), self._artifact_root)

    def _known(self, model: str) -> str:
        """What the registry does have, for a message."""
        try:
            versions = self._client.search_model_versions(f"name = '{model}'")
            aliases = self._client.get_registered_model(model).aliases
        except MlflowException:
            names = sorted(found.name for found in self._client.search_registered_models())
            return f"no model {model}, only {', '.join(names)}" if names else "no models at all"
        numbers = ", ".join(sorted((str(found.version) for found in versions), key=int)) or "none"
        return f"versions {numbers} and aliases {', '.join(sorted(aliases)) or 'none'} of {model}"


def _check_reachable(tracking_uri: str) -> None:
    """Fail in seconds: MLflow itself retries for minutes."""
    try:
        # Any scheme but HTTP is a mistake here, and urlopen says so.
        with urllib.request.urlopen(f"{tracking_uri}/health", timeout=_REACH_SECONDS):  # noqa: S310
            pass
    except (OSError, ValueError) as error:
        raise RegistryUnreachable(tracking_uri, str(error)) from error


def _resolved(found: ModelVersion) -> ResolvedVersion:
    return ResolvedVersion(
        model=found.name,
        version=int(found.version),
        run_id=str(found.run_id),
        source=str(found.source),
        digest=found.tags.get(DIGEST_TAG),
    )
