"""An exported program as a function that gradients flow through, for explanations.

What a program looks up by whole numbers (categories, tokens) has no gradient. So the vectors that it looks up become
inputs of their own, in place of the embeddings: between two of them one can walk, between two categories one cannot.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from handlers.program import read_exported, weights_of

_EMBEDDING = torch.ops.aten.embedding.default
# They check dtypes and sizes that the caller has checked; an image comes as float here, and would not pass.
_CHECKS = ("aten::_assert", "aten::sym_constrain_range")


class Differentiable:
    """The program of an unpacked archive: its inputs may be float where it takes bytes, and its lookups are given."""

    def __init__(self, directory: Path) -> None:
        """Raises ArchiveUnusable for a program that cannot be read."""
        program = read_exported(directory)
        self._weights = weights_of(program)
        self._forward, nodes = _rewritten(program)
        _become_inputs(self._forward, nodes)
        self._indices, nodes = _rewritten(program)
        _become_outputs(self._indices, [node.args[1] for node in nodes])
        self._vectors, nodes = _rewritten(program)
        _become_outputs(self._vectors, nodes)
        self.lookups = len(nodes)
        """Number of embeddings whose indices come from the program's inputs."""

    def __call__(self, inputs: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The program's outputs, for its inputs and the vectors [rows, ..., width] of each lookup."""
        outputs: tuple[torch.Tensor, ...] = self._forward(*self._weights, *inputs, *vectors)
        return outputs

    @torch.no_grad()
    def indices(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What each lookup is asked for, int64 [rows, ...]."""
        return list(self._indices(*self._weights, *inputs))

    @torch.no_grad()
    def vectors(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What each lookup gives, [rows, ..., width]."""
        return list(self._vectors(*self._weights, *inputs))


def _user_inputs(program: ExportedProgram) -> set[str]:
    specs = program.graph_signature.input_specs
    return {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}


def _rewritten(program: ExportedProgram) -> tuple[GraphModule, list[Node]]:
    """A copy of the graph without its checks, and its lookups."""
    module = copy.deepcopy(program.graph_module)
    for node in list(module.graph.nodes):
        if _name(node).startswith(_CHECKS):
            module.graph.erase_node(node)
    return module, list(_lookups(module, _user_inputs(program)))


def _lookups(module: GraphModule, user_inputs: set[str]) -> Iterator[Node]:
    """Embeddings whose indices follow from the values, not only the shapes, of the user's inputs."""
    follows: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if node.name in user_inputs:
                follows.add(node)
        elif not _shape_alone(node) and follows.intersection(node.all_input_nodes):
            follows.add(node)
            table, indices = node.args[:2] if node.target is _EMBEDDING else (None, None)
            if indices in follows and table not in follows:
                yield node


def _shape_alone(node: Node) -> bool:
    """Whether an operation reads no values of its tensor: positions and the like count along a shape."""
    name = _name(node).partition(".")[0]
    return name.startswith(("aten::sym_", "aten::new_")) or name.endswith("_like")


def _name(node: Node) -> str:
    return str(node.target.name()) if isinstance(node.target, OpOverload) else ""  # type: ignore[no-untyped-call]


def _become_inputs(module: GraphModule, nodes: Sequence[Node]) -> None:
    first = next(each for each in module.graph.nodes if each.op != "placeholder")
    for at, node in enumerate(nodes):
        with module.graph.inserting_before(first):
            node.replace_all_uses_with(module.graph.placeholder(f"vectors_{at}"))
    _finish(module)


def _become_outputs(module: GraphModule, nodes: Sequence[object]) -> None:
    (output,) = module.graph.find_nodes(op="output")
    output.args = (tuple(nodes),)
    _finish(module)


def _finish(module: GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.recompile()
