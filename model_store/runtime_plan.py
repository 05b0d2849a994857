"""How a version's program is run: the content of `runtime.json`."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

RUNTIME = "runtime.json"


@dataclass(frozen=True)
class RuntimePlan:
    """By default the exported program in float32, with as many threads as the node's CPU quota gives a worker."""

    runtime: Literal["exported", "aot_inductor", "eager"] = "exported"
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    threads: int | None = None
    """None is the CPU quota divided by the workers."""
    target: dict[str, Any] | None = None
    """The hardware that a compiled program was made for; None for any."""

    def to_json(self) -> bytes:
        """`runtime.json`, the same bytes for the same plan."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()
