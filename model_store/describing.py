"""What a version is beside its program: schema, profile and golden set, made once and kept in the registry."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from handlers.base import BaseHandler
from handlers.errors import ArchiveUnusable
from handlers.loading import open_handler
from handlers.runtime_plan import RUNTIME, RuntimePlan
from model_store.entry import ENTRY, entry_file
from model_store.errors import NotServable
from model_store.golden import Inputs, golden_set
from model_store.profiling import Reference, profiled
from model_store.pt2 import StoredProgram

DESCRIBED = frozenset({"schema.json", "profile.json", "golden.json", "origin.json"})
"""What every version has beside its program."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Origin:
    """Where a version comes from: the content of `origin.json`."""

    git_commit: str = UNKNOWN
    data_digest: str = UNKNOWN
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Their versions when the network was trained."""

    def to_json(self) -> bytes:
        """`origin.json`, the same bytes for the same origin."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


def describe(
    program: StoredProgram,
    schema: bytes,
    inputs: Inputs,
    origin: Origin,
    reference: Reference | None = None,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """What a version is beside its program, by file name: DESCRIBED, the further `files`, and the profile's map.

    Golden outputs and profile are those of the program as it is stored and as a node will load it.
    """
    described = {**(files or {}), "schema.json": schema, "origin.json": origin.to_json()}
    entry = entry_file(kind_of(schema))
    with opened({**described, **program.members, ENTRY: entry, RUNTIME: RuntimePlan().to_json()}) as handler:
        profile = profiled(handler, reference or Reference())
        return {**described, **profile, "golden.json": golden_set(handler, inputs)}


def kind_of(schema: bytes) -> str:
    """The kind of model that a `schema.json` describes."""
    return str(json.loads(schema)["kind"])


@contextmanager
def opened(members: Mapping[str, bytes]) -> Iterator[BaseHandler]:
    """The handler of an archive with these members, as long as its files are there. Raises NotServable."""
    with tempfile.TemporaryDirectory() as name:
        for member, content in members.items():
            path = Path(name) / member
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        try:
            handler = open_handler(Path(name))
        except ArchiveUnusable as error:
            raise NotServable(str(error)) from error
        except Exception as error:  # whatever a handler of the user's raises
            raise NotServable(f"its handler cannot be opened: {type(error).__name__}: {error}") from error
        yield handler
