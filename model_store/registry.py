"""The MLflow registry: models, their versions, and the files that belong to them.

MLflow's clients are told the tracking server's address; nothing here reads or writes the environment. Whoever starts
a process that uses this module sets `mlflow_environment.ENVIRONMENT` first (the command line does).
"""

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.types import Schema, TensorSpec

from model_store.archive import signature_path
from model_store.errors import (
    ArtifactMissing,
    ModelUriInvalid,
    RegistryError,
    RegistryRefuses,
    SignatureUnusable,
    SourceRefused,
    VersionNotFound,
)
from model_store.tracking import CHAMPION, check_reachable

if TYPE_CHECKING:
    from torch import nn

DIGEST_TAG = "shipway.digest"
ARCHIVES = "archives"
"""Where a logged model keeps the archives made of it, and their signatures."""
DESCRIPTION = "shipway"
"""Where a logged model keeps what belongs to it beside the program: schema, profile, golden set, origin."""

_LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]+)")
_GIT_COMMIT = "mlflow.source.git.commit"
_UNKNOWN = (ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE))
"""What MLflow says of a model or version, and of an alias, that it does not have."""
_MAX_COPIES = 10
"""A version may be a copy of another one, and that of another."""
_SAID_CHARACTERS = 200
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", re.MULTILINE)
_URI = re.compile(r"models:/(?P<model>[^/@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class TensorType:
    """An input or output of a network, as MLflow's signature says it."""

    name: str
    """Empty where the signature has one tensor without a name."""
    dtype: str
    """As numpy names it, for example float32."""
    shape: tuple[int, ...]
    """-1 is any size; the first axis is rows."""


@dataclass(frozen=True)
class LoggedModel:
    """What MLflow says about the program of a version."""

    model_id: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    libraries: Mapping[str, str]
    """The version of torch, and of what it needs besides where that is pinned."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry and the run that made it."""

    model: str
    version: int
    run_id: str
    """Empty for a model that was logged outside a run."""

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class ResolvedVersion(RegisteredVersion):
    """What the registry says about a version."""

    model_id: str
    """The logged model that it is a version of, `m-…`. Whatever belongs to the version lies there."""
    digest: str | None
    """Of the archive last packaged from it; None if none was."""


class Registry:
    """One MLflow server. Raises RegistryError, RegistryUnreachable for a server that does not answer."""

    def __init__(self, tracking_uri: str, artifact_root: str = "mlflow-artifacts:/") -> None:
        """`artifact_root` is where files may be fetched from; by default what the server itself hands out."""
        self.tracking_uri = tracking_uri
        self._artifact_root = artifact_root
        check_reachable(tracking_uri)
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
        network: "nn.Module",
        example: tuple[npt.NDArray[Any], ...],
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        requirements: list[str],
    ) -> str:
        """Export `network`, in evaluation mode, in the active run; returns the id of the logged model.

        `example` holds the inputs, at least two of every axis that is -1: the export makes an axis of length one a
        constant.
        """
        import torch  # whoever only fetches archives has neither this nor all of MLflow
        from mlflow.models import ModelSignature

        signature = ModelSignature(inputs=_signature(inputs), outputs=_signature(outputs))
        info = mlflow.pytorch.log_model(
            network,
            name="model",
            # As tensors: for one numpy array MLflow would also load the model again, to serve it by itself.
            input_example=tuple(map(torch.from_numpy, example)),
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
            if error.error_code not in _UNKNOWN:
                raise RegistryRefuses(self.tracking_uri, uri, error.message.partition("\n")[0]) from error
            raise VersionNotFound(uri, self.tracking_uri, self._known(model)) from error
        return ResolvedVersion(
            model=found.name,
            version=int(found.version),
            run_id=str(found.run_id or ""),
            model_id=self._model_id(found),
            digest=found.tags.get(DIGEST_TAG),
        )

    def download_program(self, model_id: str, into: Path) -> Path:
        """Fetch the exported program of a logged model into the directory `into`; the path of `model.pt2`."""
        remedy = (
            'log it with mlflow.pytorch.log_model(..., serialization_format="pt2"), and nothing has to be unpickled'
        )
        return self._download(model_id, "data/model.pt2", into, remedy)

    def logged_model(self, model_id: str) -> LoggedModel:
        """Signature and libraries of a logged model. Raises SignatureUnusable where the signature has no tensors."""
        with tempfile.TemporaryDirectory() as directory:
            model = mlflow.models.Model.load(str(self._download(model_id, "MLmodel", Path(directory))))
            requirements = self._download(model_id, "requirements.txt", Path(directory)).read_text()
        signature = model.signature
        torch_version = str(model.flavors.get("pytorch", {}).get("pytorch_version", "unknown")).partition("+")[0]
        return LoggedModel(
            model_id,
            inputs=_tensor_types(model_id, "inputs", signature and signature.inputs),
            outputs=_tensor_types(model_id, "outputs", signature and signature.outputs),
            libraries={"torch": torch_version, **dict(_PINNED.findall(requirements))},
        )

    def log_files(self, model_id: str, files: Mapping[str, bytes], folder: str = DESCRIPTION) -> None:
        """Keep files by name in a folder beside the program of a logged model."""
        with tempfile.TemporaryDirectory() as directory:
            for name, content in files.items():
                (Path(directory) / name).write_bytes(content)
            self._client.log_model_artifacts(model_id, directory, folder)

    def read_files(self, model_id: str, folder: str = DESCRIPTION) -> dict[str, bytes]:
        """The files that `log_files` kept in a folder, by name; none where it kept none."""
        self._location(model_id)
        found = self._client.list_logged_model_artifacts(model_id, folder)
        with tempfile.TemporaryDirectory() as directory:
            paths = [self._download(model_id, file.path, Path(directory)) for file in found if not file.is_dir]
            return {path.name: path.read_bytes() for path in paths}

    def log_archive(self, version: ResolvedVersion, archive: Path, digest: str) -> None:
        """Keep an archive and its signature beside the program, and tag the version with the digest."""
        for path in (archive, signature_path(archive)):
            self._client.log_model_artifact(version.model_id, str(path), ARCHIVES)
        self.tag(version, {DIGEST_TAG: digest})

    def tag(self, version: RegisteredVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(version.model, str(version.version), name, value)

    def download_archive(self, model: str, version: int, archive: Path) -> None:
        """Bring the archive of the name of that path there, and its signature beside it. Neither is verified."""
        found = self.resolve(f"models:/{model}/{version}")
        remedy = f"package the version with: shipway package models:/{model}/{version}"
        if found.digest is not None:
            remedy = f"the archive last made of {model} version {version} is {found.digest}"
        for path in (archive, signature_path(archive)):
            self._download(found.model_id, f"{ARCHIVES}/{path.name}", path.parent, remedy).replace(path)

    def run_origin(self, run_id: str) -> tuple[str, str]:
        """The git commit and the data of a run, as far as MLflow was told; empty where it was not."""
        if not run_id:
            return "", ""
        try:
            run = self._client.get_run(run_id)
        except MlflowException:
            return "", ""
        data = [entry.dataset for entry in run.inputs.dataset_inputs] if run.inputs else []
        return run.data.tags.get(_GIT_COMMIT, ""), ", ".join(sorted(f"{one.name}@{one.digest}" for one in data))

    def _download(self, model_id: str, artifact: str, into: Path, remedy: str = "") -> Path:
        try:
            uri = f"{self._location(model_id)}/{artifact}"
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into)))
        except (MlflowException, OSError) as error:
            if (full := os.strerror(errno.ENOSPC)) in str(error):  # of an error that it caught MLflow keeps the words
                raise OSError(errno.ENOSPC, full, str(into)) from error
            check_reachable(self.tracking_uri)  # it may have ended meanwhile
            said = (str(error).strip() or repr(error)).splitlines()[-1]  # above it MLflow says which file it was
            raise ArtifactMissing(f"the logged model {model_id}", artifact, said[:_SAID_CHARACTERS], remedy) from error

    def _location(self, model_id: str) -> str:
        """Where the files of a logged model are. Whoever may create an experiment may name any path or host."""
        location = str(self._client.get_logged_model(model_id).artifact_location)
        if not location.startswith(self._artifact_root):
            raise SourceRefused(f"the logged model {model_id}", location, self._artifact_root)
        return location

    def _model_id(self, found: ModelVersion) -> str:
        """The logged model behind a version, which may be a copy of another version."""
        source = str(found.source)
        for _ in range(_MAX_COPIES):
            if logged := _LOGGED_MODEL.fullmatch(source):
                return logged["id"]
            original = _URI.fullmatch(source)
            if original is None or original["version"] is None:
                break
            source = str(self._client.get_model_version(original["model"], original["version"]).source)
        raise SourceRefused(f"{found.name} version {found.version}", source, "a logged model, models:/m-…")

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


def _signature(types: Sequence[TensorType]) -> Schema:
    return Schema([TensorSpec(np.dtype(one.dtype), one.shape, one.name) for one in types])


def _tensor_types(model_id: str, side: str, schema: Schema | None) -> tuple[TensorType, ...]:
    if schema is None:
        raise SignatureUnusable(model_id, f"it has no signature of its {side}")
    types = []
    for spec in schema.inputs:
        if not isinstance(spec, TensorSpec):
            raise SignatureUnusable(model_id, f"its {side} are columns: {spec}")
        types.append(TensorType(spec.name or "", spec.type.name, tuple(spec.shape)))
    return tuple(types)
