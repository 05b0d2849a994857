"""The tabular network: embeddings for categories, and everything that numbers need inside the program itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Cycle:
    """A number that comes round: the position of its column and its period in the column's unit."""

    column: int
    period: float


class TabularNetwork(nn.Module):
    """Probability of the positive class, float32 [n], from numbers float32 [n, F] and codes int64 [n, C].

    Missing numbers are NaN: each becomes its column's centre and sets an indicator of its own. A code is the index
    of a category in its vocabulary, `other` one more. Small batches cost a fixed price per operation, so the
    operations are few: one table holds all embeddings, one sine gives all cycles.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    sources: torch.Tensor
    frequency: torch.Tensor
    phase: torch.Tensor
    first_code: torch.Tensor

    def __init__(
        self,
        centre: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        cycles: Sequence[Cycle],
        vocabularies: Sequence[int],
        embedding: int = 8,
        hidden: tuple[int, int] = (64, 32),
        dropout: float = 0.0,
    ) -> None:
        """`centre` and `scale` [F] normalise the numbers; `vocabularies` are sizes without `other`.

        `dropout` is the share of hidden units dropped in training, half of it for the features.
        """
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(1 / scale))
        self.register_buffer("shift", torch.from_numpy(-centre / scale))
        # Every cycle is read twice, the second time a quarter ahead: sin(x + π/2) = cos(x).
        columns = [cycle.column for cycle in cycles] * 2
        frequencies = [2 * math.pi / cycle.period for cycle in cycles] * 2
        self.register_buffer("sources", torch.tensor(columns, dtype=torch.int64))
        self.register_buffer("frequency", torch.tensor(frequencies))
        self.register_buffer("phase", torch.tensor([0.0, math.pi / 2]).repeat_interleave(len(cycles)))
        sizes = [size + 1 for size in vocabularies]
        self.register_buffer("first_code", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))]))
        self.embeddings = nn.Embedding(sum(sizes), embedding)
        width = 2 * len(centre) + len(columns) + embedding * len(sizes)
        self.first = nn.Linear(width, hidden[0])
        self.second = nn.Linear(hidden[0], hidden[1])
        self.last = nn.Linear(hidden[1], 1)
        self.dropout = dropout

    def logits(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Log-odds, float32 [n]: what training needs."""
        # asinh keeps a delay of hours from drowning the minutes, and NaN stays NaN.
        normal = torch.asinh(torch.addcmul(self.shift, numbers, self.scale))
        cyclic = torch.sin(torch.addcmul(self.phase, numbers.index_select(1, self.sources), self.frequency))
        known = torch.nan_to_num(torch.cat((normal, cyclic), dim=1))
        embedded = self.embeddings(codes + self.first_code).flatten(1)
        features = torch.cat((known, embedded, torch.isnan(numbers)), dim=1)
        first = torch.relu(self.first(self._dropped(features, self.dropout / 2)))
        second = torch.relu(self.second(self._dropped(first, self.dropout)))
        logits: torch.Tensor = self.last(self._dropped(second, self.dropout))
        return logits.squeeze(1)

    def _dropped(self, values: torch.Tensor, share: float) -> torch.Tensor:
        """Dropout that leaves no operation behind in the exported program, as nn.Dropout would."""
        return functional.dropout(values, share) if self.training else values

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Probability, float32 [n]."""
        return torch.sigmoid(self.logits(numbers, codes))
