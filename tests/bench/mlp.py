"""The small network of the comparison: what serving costs when the model costs next to nothing."""

import torch
from torch import nn


class MLP(nn.Module):
    """1000-500-250-10: float32 [n, 1000] to float32 [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1000, 500), nn.ReLU(), nn.Linear(500, 250), nn.ReLU(), nn.Linear(250, 10))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of the model's input
        output: torch.Tensor = self.layers(input)
        return output
