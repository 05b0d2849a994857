"""The exported program of an archive, loaded without unpickling: a graph in JSON and weights in safetensors."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch._export.serde import schema as serde_schema
from torch._export.serde import serialize as serde
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.export.passes import move_to_device_pass

from handlers.errors import ArchiveUnusable, listed, shown
from handlers.packed import pack_linear

TORCH_VERSION = "2.13.0"
"""The only torch whose private reader of exported programs was tried here."""

Program = Callable[..., tuple[torch.Tensor, ...]]

# torch resolves an operator's name to any function of its modules, `torch.load` among them, and evaluates the
# expressions of sizes as Python. So both are looked at before torch sees them: a signature says who packed a program,
# not what its author wrote into it.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.higher_order\.\w+|torch\.sym_\w+"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_SIZE_TOKEN = re.compile(r"[A-Z][A-Za-z]*|[a-z]+=|'[a-z]+[0-9]+'|[0-9]+|[-+*/%(), ]")
"""What an expression of sizes is made of, for example `Symbol('s62', positive=True, integer=True)`."""

_OUR_INPUTS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


def load_program(directory: Path, device: str = "cpu") -> Program:
    """Load `program.json` and `weights.safetensors` of an unpacked archive onto `device`.

    The result takes the program's inputs as positional tensors on `device` and returns its outputs as a tuple. It
    runs in inference mode and skips the guards of the export: shapes and dtypes are for the caller to check.
    Raises ArchiveUnusable for another torch than the one tried, and for a program or weights that do not fit.
    """
    program = read_exported(directory)
    if torch.device(device).type == "cpu":
        pack_linear(program.graph_module, weights_of(program))
    else:
        program = move_to_device_pass(program, device)
    return _bind(program)


def read_exported(directory: Path) -> ExportedProgram:
    """The program itself, on the CPU, after every check of what it may hold. Raises ArchiveUnusable."""
    check_torch()
    try:
        document = (directory / "program.json").read_bytes()
        tensors = load_file(directory / "weights.safetensors")
        program = _deserialize(document, tensors)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError, serde.SerializeError) as error:
        raise ArchiveUnusable(f"the program in {directory} cannot be loaded: {error}") from error
    for spec in program.graph_signature.input_specs:
        if spec.kind not in _OUR_INPUTS and spec.kind is not InputKind.USER_INPUT:
            raise ArchiveUnusable(f"the program takes an input of kind {spec.kind.name}; allowed are tensors")
    if changed := sorted(_changed(program)):
        raise ArchiveUnusable(f"the program changes {listed(changed)} while it runs; it may not keep state")
    return program


def check_torch() -> None:
    """Raises ArchiveUnusable for another torch than the one tried."""
    # The wheel's build (+cpu, +cu130) does not change the format.
    if torch.__version__.partition("+")[0] != TORCH_VERSION:
        raise ArchiveUnusable(f"programs are read with torch {TORCH_VERSION} exactly; found torch {torch.__version__}")


def weights_of(program: ExportedProgram) -> list[torch.Tensor]:
    """The program's own tensors, which torch puts before the user's inputs, in the order of the signature."""
    own = [str(spec.target) for spec in program.graph_signature.input_specs if spec.kind in _OUR_INPUTS]
    return [(program.state_dict if name in program.state_dict else program.constants)[name] for name in own]


def _deserialize(document: bytes, tensors: dict[str, torch.Tensor]) -> ExportedProgram:
    foreign = sorted(set(_foreign(json.loads(document))))
    if foreign:
        raise ValueError(f"it holds {listed(foreign)}; allowed are sizes and operators of torch.ops.aten")
    program = serde._bytes_to_dataclass(serde_schema.ExportedProgram, document)  # noqa: SLF001 - hence one torch exactly
    state: dict[str, torch.Tensor] = {}
    constants: dict[str, torch.Tensor] = {}
    for spec in program.graph_module.signature.input_specs:
        if spec.type == "parameter":
            name = spec.parameter.parameter_name
            state[name] = torch.nn.Parameter(tensors[name], requires_grad=False)
        elif spec.type == "buffer":
            name = spec.buffer.buffer_name
            (state if spec.buffer.persistent else constants)[name] = tensors[name]
        elif spec.type == "tensor_constant":
            name = spec.tensor_constant.tensor_constant_name
            constants[name] = tensors[name]
    # No example inputs: they are a pickle in MLflow's file, and are not in the archive.
    return serde.ExportedProgramDeserializer().deserialize(program, state, constants)


def _foreign(node: object) -> Iterator[str]:
    """Operators and expressions anywhere in the graph, nested graphs too, that a program may not hold."""
    if isinstance(node, dict):
        target, expression = node.get("target"), node.get("expr_str")
        if isinstance(target, str) and not _OPERATOR.fullmatch(target):
            yield f"the operator {shown(target)}"
        if expression is not None and _SIZE_TOKEN.sub("", str(expression)):
            yield f"the expression {shown(expression)}"
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _foreign(child)


def _bind(program: ExportedProgram) -> Program:
    """The graph as a plain function with its weights filled in.

    `ExportedProgram.module()` checks guards and rebuilds trees on every call, 260 µs that would double a prediction.
    """
    weights = weights_of(program)
    forward = program.graph_module.forward

    @torch.inference_mode()
    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = forward(*weights, *inputs)
        return outputs

    return run


def _changed(program: ExportedProgram) -> Iterator[str]:
    """The program's own tensors that it writes to: by its signature, or by an operation in place."""
    signature = program.graph_signature
    for output in signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            yield str(output.target)
    own = {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.kind in _OUR_INPUTS}
    for node in program.graph.nodes:
        if isinstance(node.target, OpOverload):
            arguments = node.target._schema.arguments  # noqa: SLF001 - the only place that says what is written to
            for argument, value in zip(arguments, node.args, strict=False):
                written = argument.alias_info is not None and argument.alias_info.is_write
                if written and getattr(value, "name", None) in own:
                    yield own[value.name]
