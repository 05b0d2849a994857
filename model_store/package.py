"""From a registered version to a signed archive. The same version gives the same bytes, in any process."""

import json
import tempfile
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

import yaml

from handlers.schema import TableSchema
from model_store.archive import (
    IDENTITY,
    TORCHSERVE_MANIFEST,
    Manifest,
    archive_name,
    sign_archive,
    signature_path,
    write,
)
from model_store.describing import kind_of
from model_store.entry import ENTRY, entry_file
from model_store.pt2 import read_program
from model_store.registry import Registry, ResolvedVersion
from model_store.runtime_plan import RUNTIME, RuntimePlan

_ARCHIVER_VERSION = "0.12.0"
_CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class WorkerPlan:
    """How TorchServe runs a version.

    One worker is the default because it is the fastest on two cores, by a quarter: two of them fill half the batch
    each and take the cores from each other. A second one answers while the first is started again after a crash.
    """

    workers: int = 1
    batch_size: int = 64
    """Requests that one worker answers at once, at most."""
    batch_delay_ms: int = 1
    """How long a batch waits for more requests; a lone request waits it out."""
    queue_size: int = 1000
    """Requests that wait; beyond that clients get 503."""
    response_timeout_seconds: int = 60
    startup_timeout_seconds: int = 120
    retry_window_seconds: int = 300
    """How long a worker that dies is started again."""

    def to_yaml(self) -> bytes:
        """`model-config.yaml`, complete: TorchServe mixes a partial one with its own files."""
        settings = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.batch_delay_ms,
            "responseTimeout": self.response_timeout_seconds,
            "startupTimeout": self.startup_timeout_seconds,
            "maxRetryTimeoutInSec": self.retry_window_seconds,
            "jobQueueSize": self.queue_size,
            "deviceType": "cpu",
        }
        return yaml.safe_dump(settings, sort_keys=False).encode()


@dataclass(frozen=True)
class PackagedVersion:
    """A signed archive of a version."""

    model: str
    version: int
    digest: str
    archive: Path


def package(
    model_uri: str,
    *,
    tracking_uri: str,
    archives_dir: Path,
    signing_key: Path,
    plan: WorkerPlan | None = None,
) -> PackagedVersion:
    """Write and sign the archive of `models:/NAME/VERSION` or `models:/NAME@ALIAS`, and log both beside the version.

    Raises RegistryError, ProgramUnreadable or KeyUnusable; the archive is there whole or not at all.
    """
    registry = Registry(tracking_uri)
    version = registry.resolve(model_uri)
    members = _members(registry, version, plan or WorkerPlan())
    with tempfile.TemporaryDirectory(dir=_made(archives_dir), prefix=".packing-") as directory:
        # The name holds the digest, which is known only once the bytes are written.
        draft = Path(directory) / "draft.mar"
        digest = write(draft, members)
        signature = sign_archive(draft, version.model, version.version, signing_key)
        archive = archives_dir / archive_name(version.model, version.version, digest)
        # The signature first: whoever sees the archive sees it signed.
        signature.replace(signature_path(archive))
        draft.replace(archive)
    registry.log_archive(version, archive, digest)
    return PackagedVersion(version.model, version.version, digest, archive)


def _members(registry: Registry, version: ResolvedVersion, plan: WorkerPlan) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        program = read_program(registry.download_program(version.model_id, Path(directory)))
    described = registry.read_files(version.model_id)
    origin = json.loads(described.pop("origin.json"))
    schema = described["schema.json"]
    manifest = Manifest(
        model=version.model,
        version=version.version,
        run_id=version.run_id,
        git_commit=origin["git_commit"],
        data_digest=origin["data_digest"],
        libraries=origin["libraries"],
        shipway=installed_version("shipway"),
    )
    return {
        **described,
        **program.members,
        TORCHSERVE_MANIFEST: _torchserve_manifest(version),
        IDENTITY: manifest.to_json(),
        ENTRY: entry_file(kind_of(schema)),
        RUNTIME: RuntimePlan().to_json(),
        _CONFIG: plan.to_yaml(),
        "metadata.json": _metadata(version, TableSchema.from_json(schema)),
    }


def _torchserve_manifest(version: ResolvedVersion) -> bytes:
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": version.model,
            "modelVersion": str(version.version),
            "handler": ENTRY,
            "configFile": _CONFIG,
        },
        "archiverVersion": _ARCHIVER_VERSION,
    }
    return json.dumps(manifest, indent=1).encode()


def _metadata(version: ResolvedVersion, schema: TableSchema) -> bytes:
    """What clients send and get, in the words of the Open Inference Protocol: one tensor per column."""
    inputs = [(column.name, "FP32") for column in schema.numbers]
    inputs += [(column.name, "BYTES") for column in schema.categories]
    outputs = [(column.name, "FP32") for column in schema.outputs]
    metadata = {
        "name": version.model,
        "versions": [str(version.version)],
        "platform": "pytorch_exported",
        "inputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in inputs],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in outputs],
    }
    return json.dumps(metadata, indent=1).encode()


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
