"""The program of an archive as its `runtime.json` wants it: exported, compiled, or the network itself; on CPU or GPU.

Whatever runs, it takes the program's inputs and gives its outputs as tensors in host memory, numbers as float32.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from handlers.errors import ArchiveUnusable
from handlers.hardware import cpu_target, described, fits
from handlers.program import Program, check_torch, load_program, read_exported, weights_of
from handlers.runtime_plan import COMPILED, RuntimePlan

Network = Callable[[], nn.Module]

_UNPACKED = "compiled"
_MODEL = "data/aotinductor/model"
"""Where torch's package of a compiled program has the program's own files."""

_HALVES = (torch.bfloat16, torch.float16)
_LOW_PRECISION = {
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
}
"""Operations that autocast computes in bfloat16."""


def load_runtime(directory: Path, device: str = "cpu", network: Network | None = None) -> Program:
    """The program of an unpacked archive, ready to be called with inputs in host memory.

    `network` makes the module that an archive with the runtime `eager` runs; the archive has its weights.
    Raises ArchiveUnusable for files that do not fit, and for a compiled program that was made for other hardware.
    """
    plan = RuntimePlan.read(directory)
    if plan.runtime == "aot_inductor":
        program = _compiled(directory, plan, device)
    elif plan.runtime == "eager":
        program = _eager(directory, plan, device, network)
    elif plan.dtype == "float32":
        program = load_program(directory, device)
    else:
        program = _low_precision(directory, plan, device)
    return program if torch.device(device).type == "cpu" else on_device(program, device)


def device_of(gpu: int | None) -> str:
    """The device of a worker that TorchServe gave the GPU of this number, or none."""
    return "cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}"


def device_target(device: str) -> dict[str, str]:
    """The hardware that a program on `device` runs on, as `runtime.json` names it."""
    if torch.device(device).type == "cpu":
        return cpu_target()
    return {"device": "cuda", "arch": "sm_{}{}".format(*torch.cuda.get_device_capability(device))}


def autocast(device: str, dtype: str) -> AbstractContextManager[object]:
    """Large operations in `dtype`, the delicate ones (normalisation, softmax, sums) in float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=False)


def on_device(program: Program, device: str) -> Program:
    """A program whose inputs and outputs are on `device`, for callers whose are in host memory.

    A CUDA error leaves the process's context unusable, so it ends the worker, which TorchServe starts again.
    """

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        try:
            moved = [tensor.pin_memory().to(device, non_blocking=True) for tensor in inputs]
            return tuple(output.cpu() for output in program(*moved))
        except torch.cuda.OutOfMemoryError:  # this one does not harm the context
            torch.cuda.empty_cache()
            raise
        except torch.AcceleratorError as error:
            raise SystemExit(f"the worker ends, because {device} failed: {error}") from error

    return run


def _compiled(directory: Path, plan: RuntimePlan, device: str) -> Program:
    check_torch()
    target, found = plan.target or {}, device_target(device)
    if not fits(target, found):
        raise ArchiveUnusable(
            f"the archive was compiled for {described(target)}, and this worker has {described(found)}; "
            "package the version on hardware like this, or without --optimize"
        )
    library = _unpack_compiled(directory)
    try:
        if target["device"] == "cuda":
            runner: Any = torch._C._aoti.AOTIModelContainerRunnerCuda(str(library), 1, device, str(library.parent))  # noqa: SLF001 - torch's own loader unpacks into /tmp
        else:
            runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)  # noqa: SLF001 - as above
    except RuntimeError as error:
        raise ArchiveUnusable(f"{COMPILED} cannot be loaded: {error}") from error

    @torch.inference_mode()
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Compiled code reads memory as it was laid out at packaging, and does not look again.
        return _plain(runner.run([tensor.contiguous() for tensor in inputs]))

    return run


def _unpack_compiled(directory: Path) -> Path:
    """The compiled program's library, unpacked beside its archive's other files by whichever worker comes first.

    torch's own loader would unpack it into /tmp for each worker, and leave it there when a worker is killed.
    """
    target = directory / _UNPACKED
    try:
        with zipfile.ZipFile(directory / COMPILED) as package:
            members = [PurePosixPath(name) for name in package.namelist()]
            wanted = [
                name for name in members if str(name.parent).endswith(_MODEL) and name.suffix not in (".cpp", ".h")
            ]
            target.mkdir(exist_ok=True)
            for name in wanted:
                _extract(package, str(name), target / name.name)
    except (OSError, zipfile.BadZipFile) as error:
        raise ArchiveUnusable(f"{COMPILED} cannot be unpacked: {error}") from error
    libraries = [target / name.name for name in wanted if name.suffix == ".so"]
    if len(libraries) != 1:
        raise ArchiveUnusable(f"{COMPILED} must hold one compiled program; found {len(libraries)}")
    return libraries[0]


def _extract(package: zipfile.ZipFile, name: str, target: Path) -> None:
    if target.exists():
        return  # whole, because it took its name when it was
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    with package.open(name) as source, draft.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
    draft.replace(target)


def _eager(directory: Path, plan: RuntimePlan, device: str, network: Network | None) -> Program:
    if network is None:
        raise ArchiveUnusable("the runtime is eager, and the handler has no method network() that makes the module")
    module = network()
    try:
        module.load_state_dict(read_exported(directory).state_dict)
    except RuntimeError as error:
        raise ArchiveUnusable(f"the version's weights do not fit the handler's network: {error}") from error
    module = module.eval().to(device)

    @torch.inference_mode()
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(device, plan.dtype):
            outputs = module(*inputs)
        return _plain(outputs if isinstance(outputs, tuple | list) else (outputs,))

    return run


def _low_precision(directory: Path, plan: RuntimePlan, device: str) -> Program:
    program = read_exported(directory)
    if torch.device(device).type != "cpu":
        program = move_to_device_pass(program, device)
    weights = _lowered(program)
    forward = program.graph_module.forward

    @torch.inference_mode()
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(device, plan.dtype):
            return _plain(forward(*weights, *inputs))

    return run


def _lowered(program: ExportedProgram) -> list[torch.Tensor]:
    """The program's own tensors; those that only large operations read in bfloat16, or each call would cast them."""
    weights = weights_of(program)
    nodes = (node for node in program.graph.nodes if node.op == "placeholder")
    return [
        weight.to(torch.bfloat16)
        if weight.is_floating_point() and all(user.target in _LOW_PRECISION for user in node.users)
        else weight
        for weight, node in zip(weights, nodes, strict=False)  # the user's inputs come after them
    ]


def _plain(outputs: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Outputs in the precision that the exported program gives them in."""
    return tuple(output.float() if output.dtype in _HALVES else output for output in outputs)
