"""Large linear layers on a CPU with their weights packed once, by oneDNN; MKL packs them anew at every call.

That is a quarter of the time of a call with 13 rows, and nothing for a row alone, which MKL is faster with.
"""

from collections.abc import Callable

import torch
from torch.fx import GraphModule

Linear = Callable[..., torch.Tensor]

MIN_VALUES = 1 << 16
"""Of a weight: for smaller ones a call of oneDNN costs more than packing."""
MAX_BYTES = 1 << 26
"""Of all packed weights of one program, as they are kept a second time."""


def pack_linear(module: GraphModule, weights: list[torch.Tensor]) -> None:
    """Replace linear layers of `module`, whose first inputs are `weights`, on the CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    known = dict(zip((node for node in module.graph.nodes if node.op == "placeholder"), weights, strict=False))
    left = MAX_BYTES
    for node in module.graph.nodes:
        weight = known.get(node.args[1]) if node.target is torch.ops.aten.linear.default else None
        if weight is None or weight.dtype != torch.float32 or weight.numel() < MIN_VALUES or weight.nbytes > left:
            continue
        left -= weight.nbytes
        node.target = packed_linear(weight)
    module.recompile()


@torch.inference_mode()
def packed_linear(weight: torch.Tensor) -> Linear:
    """What does as `aten.linear` with this weight."""
    alone, together = torch.ops.aten.linear.default, torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001 - hence one torch exactly
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)  # noqa: SLF001 - as above

    def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        found: torch.Tensor
        if rows.numel() == rows.shape[-1]:
            found = alone(rows, weight, bias)
        else:
            found = together(rows, packed, bias, "none", [], "")
        return found

    return linear
