"""Packed linear layers: the same numbers, only where packing pays, and within the memory that it may take."""

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from handlers import packed
from handlers.packed import pack_linear
from handlers.program import weights_of


class Layers(nn.Module):
    """Two layers that are worth packing, one of them without a bias, and one that is too small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 300)
        self.second = nn.Linear(300, 256, bias=False)
        self.small = nn.Linear(256, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.small(torch.relu(self.second(torch.relu(self.first(rows)))))
        return output


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Layers().eval()


def exported(network: nn.Module, *shape: int) -> ExportedProgram:
    return torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def plain_layers(program: ExportedProgram) -> int:
    return sum(node.target is torch.ops.aten.linear.default for node in program.graph_module.graph.nodes)


@pytest.mark.parametrize("shape", [(256,), (7, 256)])
def test_says_what_the_network_says(network: nn.Module, shape: tuple[int, ...]) -> None:
    program = exported(network, 2, *shape)
    pack_linear(program.graph_module, weights_of(program))
    assert plain_layers(program) == 1
    for rows in (1, 2, 33):
        numbers = torch.randn(rows, *shape)
        with torch.inference_mode():
            (found,) = program.graph_module.forward(*weights_of(program), numbers)
            torch.testing.assert_close(found, network(numbers), rtol=1e-4, atol=1e-5)


def test_keeps_no_more_in_memory_than_it_may(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_BYTES", 4 * 256 * 300)
    program = exported(network, 2, 256)
    pack_linear(program.graph_module, weights_of(program))
    assert plain_layers(program) == 2


def test_leaves_other_numbers_than_float32_alone(network: nn.Module) -> None:
    program = exported(network, 2, 256)
    weights = [weight.double() for weight in weights_of(program)]
    pack_linear(program.graph_module, weights)
    assert plain_layers(program) == 3
