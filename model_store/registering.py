"""From a trained network to a registered version, with everything that a node will check this version by."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy.typing as npt
from rich.console import Console
from torch import nn

from model_store.describing import Origin, describe
from model_store.golden import Inputs
from model_store.profiling import Reference
from model_store.pt2 import read_program
from model_store.registry import RegisteredVersion, Registry, TensorType

LIBRARIES = ("torch", "numpy", "mlflow", "safetensors")
_REQUIREMENTS = ("torch", "numpy")
"""What the stored program itself needs."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training gives: the network, and all that is to be known about it."""

    network: nn.Module
    """In evaluation mode. It takes and gives tensors whose leading axis is rows."""
    example: tuple[npt.NDArray[Any], ...]
    """The network's inputs for its export: at least two of every axis that may vary."""
    inputs: Sequence[TensorType]
    """Types of the network's inputs, in its order; -1 for every axis that may vary, the first among them."""
    outputs: Sequence[TensorType]
    schema: bytes
    """`schema.json`."""
    golden: Inputs
    """Input tensors of the golden request; their outputs come from the stored program."""
    data_digest: str
    """`sha256:` and 64 digits, of the training data."""
    reference: Reference
    """What traffic is compared with."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further members of the archive, such as tokenizer.json."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    epochs: Sequence[Mapping[str, float]] = ()
    """Metrics of each epoch, the first is number 1."""


def register(registry: Registry, model: str, trained: Trained, console: Console | None = None) -> RegisteredVersion:
    """Log a trained network and register it as the next version of `model`, the champion if there is none.

    Raises RegistryError, ProgramUnreadable, or GoldenRefused for a network that the node could not serve.
    """
    console = console or Console(quiet=True)
    origin = Origin(
        git_commit=git_commit(Path(__file__).parent),
        data_digest=trained.data_digest,
        libraries={name: installed_version(name).partition("+")[0] for name in LIBRARIES},
    )
    tags = {"git_commit": origin.git_commit}
    params = {**trained.params, "data_digest": origin.data_digest}
    with console.status("Registering"), registry.run(model, params, tags) as run_id:
        for step, metrics in enumerate(trained.epochs, start=1):
            registry.log_metrics(run_id, metrics, step)
        registry.log_metrics(run_id, trained.metrics)
        requirements = [f"{name}=={origin.libraries[name]}" for name in _REQUIREMENTS]
        model_id = registry.log_model(trained.network, trained.example, trained.inputs, trained.outputs, requirements)
        with tempfile.TemporaryDirectory() as directory:
            program = read_program(registry.download_program(model_id, Path(directory)))
        described = describe(program, trained.schema, trained.golden, origin, trained.reference, trained.files)
        registry.log_files(model_id, described)
        # Last, so that whatever has a version number has everything.
        registered = registry.register(model, model_id, run_id, {**tags, "data_digest": origin.data_digest})
    console.print(f"Registered {registered.uri} (run {run_id})")
    return registered


def array_type(name: str, array: npt.NDArray[Any], *, free: Sequence[int] = (0,)) -> TensorType:
    """The type of an input or output like `array`, whose axes `free` may have any size."""
    shape = tuple(-1 if axis in free else size for axis, size in enumerate(array.shape))
    return TensorType(name, array.dtype.name, shape)


def git_commit(directory: Path) -> str:
    """The commit that `directory` is at, with `-dirty` for uncommitted changes; `unknown` outside a checkout."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
