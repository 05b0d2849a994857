"""How a version's program is run: the content of `runtime.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from handlers.errors import ArchiveUnusable, shown

RUNTIME = "runtime.json"
COMPILED = "compiled.pt2"
"""The archive member that a compiled program lies in."""

Runtime = Literal["exported", "aot_inductor", "eager"]
Dtype = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class RuntimePlan:
    """By default the exported program in float32, with as many threads as the node's CPU quota gives a worker."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    runtime: Runtime = "exported"
    dtype: Dtype = "float32"
    """What the large operations are computed in; inputs and outputs stay as they are."""
    threads: int | None = None
    """None is the CPU quota divided by the workers."""
    target: dict[str, str] | None = None
    """The hardware that a compiled program was made for; None for any."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The plan of an unpacked archive. Raises ArchiveUnusable."""
        try:
            plan: Self = TypeAdapter(cls).validate_json((directory / RUNTIME).read_bytes())
        except OSError as error:
            raise ArchiveUnusable(f"{RUNTIME} cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise ArchiveUnusable(f"{RUNTIME}: {where}: {first['msg']}; found {shown(first['input'])}") from error
        if plan.runtime == "aot_inductor" and plan.target is None:
            raise ArchiveUnusable(f"{RUNTIME}: target: a compiled program names its hardware; found null")
        if plan.dtype == "int8" and plan.runtime != "aot_inductor":
            raise ArchiveUnusable(f"{RUNTIME}: dtype: int8 is for aot_inductor alone; found runtime {plan.runtime}")
        return plan

    def to_json(self) -> bytes:
        """`runtime.json`, the same bytes for the same plan."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()
