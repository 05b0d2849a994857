"""What the archive of a version holds: the same for the same version, plan and parts of the user's own."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as installed_version
from pathlib import Path

import orjson
from torch.utils.flop_counter import FlopCounterMode

from handlers.base import BaseHandler
from handlers.kinds import read_schema
from handlers.runtime_plan import RUNTIME, RuntimePlan
from model_store.archive import IDENTITY, TORCHSERVE_MANIFEST, Manifest
from model_store.describing import DESCRIBED, UNKNOWN, Origin, kind_of, opened
from model_store.entry import ENTRY, entry_file, read_own_handler
from model_store.generic import describe_logged
from model_store.golden import GOLDEN, Inputs, answered, golden_set, inputs_of, read_inputs, reproduces
from model_store.profiling import PROFILE, Arrays, Reference, profiled, read_arrays, read_reference
from model_store.pt2 import StoredProgram, read_program
from model_store.registry import DESCRIPTION, Registry, ResolvedVersion
from model_store.worker_plan import CONFIG, WorkerPlan
from monitoring.profile import Profile

SMALL_FLOPS = 20e6
"""Floating point operations of a row; a program with fewer is small."""

KEPT_FORMAT = 2
"""Of the golden sets and profiles that are kept: one higher whenever the same parts make others than before."""

_ARCHIVER_VERSION = "0.12.0"


@dataclass(frozen=True)
class OwnFiles:
    """Files of the user's own."""

    handler: Path | None = None
    """Becomes the archive's `handler.py`."""
    golden: Path | None = None
    """The request that makes the golden set, instead of the version's own."""
    reference: Path | None = None
    """Arrays of numpy by input name, whose rows make the profile."""


@dataclass(frozen=True)
class OwnParts:
    """What the user gives of an archive: nothing, a handler, golden inputs, reference rows, or several of them."""

    handler: bytes = b""
    brings_network: bool = False
    inputs: Inputs = ()
    reference: Arrays = field(default_factory=dict)

    @classmethod
    def read(cls, files: OwnFiles) -> "OwnParts":
        """Raises HandlerUnusable, GoldenRefused or ReferenceRefused."""
        own = read_own_handler(files.handler) if files.handler else None
        inputs = read_inputs(files.golden) if files.golden else ()
        rows = read_arrays(files.reference) if files.reference else {}
        return cls(own.source, own.brings_network, inputs, rows) if own else cls(inputs=inputs, reference=rows)

    def __bool__(self) -> bool:
        return bool(self.handler or self.inputs or self.reference)

    @property
    def digest(self) -> str:
        """Names the golden set and the profile that these parts make, in the format that they are made in."""
        whole = hashlib.sha256(f"{KEPT_FORMAT}\n".encode())
        whole.update(self.handler + orjson.dumps(self.inputs, option=orjson.OPT_SERIALIZE_NUMPY))
        for name, array in self.reference.items():
            whole.update(f"{name} {array.dtype} {array.shape}\n".encode())
            whole.update(array.tobytes())
        return whole.hexdigest()[:12]


def members_of(registry: Registry, version: ResolvedVersion, plan: WorkerPlan, own: OwnParts) -> dict[str, bytes]:
    """All members of the archive of `version`, by name.

    Raises RegistryError, ProgramUnreadable, GoldenRefused or ReferenceRefused.
    """
    program, described = _described(registry, version)
    origin = json.loads(described.pop("origin.json"))
    schema = described["schema.json"]
    runtime = RuntimePlan("eager" if own.brings_network else "exported")
    manifest = Manifest(
        model=version.model,
        version=version.version,
        run_id=version.run_id,
        shipway=installed_version("shipway"),
        **origin,
    )
    members = {
        **described,
        **program.members,
        TORCHSERVE_MANIFEST: _torchserve_manifest(version),
        IDENTITY: manifest.to_json(),
        ENTRY: own.handler or entry_file(kind_of(schema)),
        RUNTIME: runtime.to_json(),
        "metadata.json": _metadata(version, schema),
    }
    if own:
        members |= _own_description(registry, version, members, own)
    plan = plan.settled(small=_is_small(members))
    return {
        **members,
        CONFIG: plan.to_yaml(),
        RUNTIME: replace(runtime, threads=plan.threads).to_json(),
    }


def _described(registry: Registry, version: ResolvedVersion) -> tuple[StoredProgram, dict[str, bytes]]:
    """The program of a version and its description; one that nobody described is described now, for all times."""
    described = registry.read_files(version.model_id)
    complete = described.keys() >= DESCRIBED  # it is not where somebody was stopped while writing it
    logged = None if complete else registry.logged_model(version.model_id)
    with tempfile.TemporaryDirectory() as directory:
        path = registry.download_program(version.model_id, Path(directory))
        program = read_program(path)
        if logged:
            commit, data = registry.run_origin(version.run_id)
            origin = Origin(commit or UNKNOWN, data or UNKNOWN, logged.libraries)
            described = describe_logged(logged, path, program, origin)
            registry.log_files(version.model_id, described)
    return program, described


def _own_description(
    registry: Registry, version: ResolvedVersion, members: Mapping[str, bytes], own: OwnParts
) -> dict[str, bytes]:
    """Golden set and profile by the user's own parts; kept too, so that another machine packages the same bytes."""
    folder = f"{DESCRIPTION}/{own.digest}"
    kept = registry.read_files(version.model_id, folder)
    if GOLDEN not in kept:
        with opened(members) as handler:
            kept = {
                **_own_profile(handler, members, own),
                GOLDEN: golden_set(handler, own.inputs or inputs_of(members[GOLDEN])),
            }
        registry.log_files(version.model_id, kept, folder)
    return kept


def _own_profile(handler: BaseHandler, members: Mapping[str, bytes], own: OwnParts) -> dict[str, bytes]:
    """The profile of the user's reference rows; or else none, if the user's handler gives other answers."""
    accuracy = Profile.from_json(members[PROFILE]).accuracy
    if own.reference:
        return profiled(handler, Reference(read_reference(handler, own.reference), accuracy))
    if own.handler and not reproduces(handler, members[GOLDEN]):
        return profiled(handler, Reference())
    return {}


def _is_small(members: Mapping[str, bytes]) -> bool:
    """Whether waking a second thread costs more than it does."""
    inputs = inputs_of(members[GOLDEN])
    with opened(members) as handler, FlopCounterMode(display=False) as counter:
        answered(handler, inputs)
    return bool(counter.get_total_flops() / inputs[0]["shape"][0] < SMALL_FLOPS)


def _torchserve_manifest(version: ResolvedVersion) -> bytes:
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": version.model,
            "modelVersion": str(version.version),
            "handler": ENTRY,
            "configFile": CONFIG,
        },
        "archiverVersion": _ARCHIVER_VERSION,
    }
    return json.dumps(manifest, indent=1).encode()


def _metadata(version: ResolvedVersion, schema: bytes) -> bytes:
    """What clients send and get, in the words of the Open Inference Protocol."""
    inputs, outputs = read_schema(schema).metadata()
    metadata = {
        "name": version.model,
        "versions": [str(version.version)],
        "platform": "pytorch_exported",
        "inputs": inputs,
        "outputs": outputs,
    }
    return json.dumps(metadata, indent=1).encode()
