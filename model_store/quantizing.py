"""INT8 by torchao: static scales for programs with convolutions, a scale for every row for those without.

Both give each row its answer whatever its neighbours are. torchao's other way for the CPU, one dynamic scale for a
whole tensor, does not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from model_store.errors import NotCompiled

_CONVOLUTIONS = {torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default}
_LINEAR = torch.ops.aten.linear.default


def quantized(
    module: GraphModule, example: Sequence[torch.Tensor], dynamic: Any, calls: Sequence[Sequence[torch.Tensor]]
) -> nn.Module:
    """`module` with its large operations in INT8. Raises NotCompiled for one that has none.

    Static scales are those of `calls`, real inputs; `dynamic` has the free axes of each input.
    """
    targets = {node.target for node in module.graph.nodes}
    if targets & _CONVOLUTIONS:
        return _static(module, example, dynamic, calls)
    if _LINEAR in targets:
        return _by_row(module)
    raise NotCompiled("it has neither convolutions nor linear layers, which are what INT8 is for")


def _static(
    module: GraphModule, example: Sequence[torch.Tensor], dynamic: Any, calls: Sequence[Sequence[torch.Tensor]]
) -> nn.Module:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    exported = torch.export.export(module, tuple(example), dynamic_shapes=dynamic, strict=False)
    observed = prepare_pt2e(exported.module(check_guards=False), quantizer)
    for call in calls:
        observed(*call)
    converted: nn.Module = convert_pt2e(observed)
    return converted


def _by_row(module: GraphModule) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    # torchao looks for modules, and an exported program has functions.
    for node in [node for node in module.graph.nodes if node.target is _LINEAR]:
        values, weight, bias = (*node.args, None)[:3]
        if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            continue
        name = f"{node.name}_int8"
        module.add_submodule(name, _linear(module, weight.target, bias and bias.target))
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_module(name, (values,)))
        module.graph.erase_node(node)
    module.recompile()
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return module


def _linear(module: GraphModule, weight: str, bias: str | None) -> nn.Linear:
    weights = module.get_parameter(weight).detach()
    layer = nn.Linear(weights.shape[1], weights.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weights, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(module.get_parameter(bias).detach(), requires_grad=False)
    return layer
