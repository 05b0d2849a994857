"""A stored program compiled ahead of time for this machine's CPU or GPU: the content of `compiled.pt2`.

Compiling happens here, at packaging, and never on a node: it takes a C++ compiler and half a minute.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._inductor import aoti_compile_and_package
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from handlers.hardware import march
from handlers.program import read_exported
from handlers.runtime import autocast, device_target
from handlers.runtime_plan import Dtype
from model_store.errors import NotCompiled
from model_store.quantizing import quantized

Call = tuple[torch.Tensor, ...]
"""One call's inputs of the program."""

_COMPILERS = ("g++", "c++", "clang++")
_LOUD = ("torch", "torchao")


@dataclass(frozen=True)
class Compiler:
    """How this machine compiles. Nothing of it is left on the disk but the result."""

    threads: int = 1
    """The most that a worker will have: the compiled loops are cut so that these share them."""
    device: str = "cpu"

    def __call__(self, directory: Path, dtype: Dtype, calls: Sequence[Call]) -> bytes:
        """`compiled.pt2` of the program in the unpacked archive `directory`, computing in `dtype`.

        `calls` are real inputs: one of them is the example, and static INT8 takes its scales from all of them.
        Raises NotCompiled with the reason.
        """
        if not any(map(shutil.which, _COMPILERS)):
            raise NotCompiled(f"no C++ compiler: {', '.join(_COMPILERS)} are not on the PATH; install g++")
        try:
            # With gradients torch would not fold anything into the weights, and would say nothing.
            with torch.no_grad(), _quiet(), tempfile.TemporaryDirectory() as scratch, fresh_cache(dir=scratch):
                program = _lowered(read_exported(directory), dtype, calls, self.device)
                path = Path(scratch) / "compiled.pt2"
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=self._options())
                return path.read_bytes()
        except NotCompiled:
            raise
        except Exception as error:  # torch's compiler raises whatever its many passes raise
            raise NotCompiled(f"{type(error).__name__}: {_first_line(error)}") from error

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            # Weights in the layout that the CPU's matrix operations want; it also folds normalisation into them.
            "freezing": True,
            # The node says how many threads, within its quota.
            "cpp.threads": self.threads,
            "cpp.dynamic_threads": True,
            # Workers of torch's own outlive the compilation.
            "compile_threads": 1,
            # Each compilation has a scratch directory of its own, and would precompile them for itself alone.
            "aot_inductor.precompile_headers": False,
            # What the CPU has was read from the system; torch would compile and load a test for every level of it.
            "cpp.vec_isa_ok": True,
        }
        level = march(device_target(self.device))
        return options | ({"cpp.march": level} if level else {})


def _lowered(program: ExportedProgram, dtype: Dtype, calls: Sequence[Call], device: str) -> ExportedProgram:
    example = _example(calls)
    dynamic = _free_axes(program)
    plain = program.module(check_guards=False)
    module = quantized(plain, example, dynamic, calls) if dtype == "int8" else plain
    computing = _Computing(module, device, "float32" if dtype == "int8" else dtype).to(device)
    there = tuple(tensor.to(device) for tensor in example)
    return torch.export.export(computing, there, dynamic_shapes=(dynamic,), strict=False)


class _Computing(nn.Module):
    """A program under autocast, with outputs as the float32 program has them."""

    def __init__(self, program: nn.Module, device: str, dtype: Dtype) -> None:
        super().__init__()
        self._program, self._device, self._dtype = program, device, dtype

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with autocast(self._device, self._dtype):
            outputs = self._program(*inputs)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


def _free_axes(program: ExportedProgram) -> tuple[dict[int, Any], ...]:
    """For each of the user's inputs the axes that the export left free."""
    wanted = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    return tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(shapes[name]) if isinstance(size, torch.SymInt)}
        for name in wanted
    )


def _example(calls: Sequence[Call]) -> Call:
    """The largest call, of at least two rows: the export makes an axis of length one a constant."""
    largest = max(calls, key=lambda call: sum(tensor.numel() for tensor in call))
    if len(largest[0]) > 1:
        return largest
    return tuple(torch.cat((tensor, tensor)) for tensor in largest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's compiler warns of what its own parts do, and neither user nor caller can change any of it."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    try:
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with inductor_config.patch({"disable_progress": True}):
                yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
