"""The network of MiniLM-L6, a sentence encoder.

A BERT encoder (Devlin et al., https://arxiv.org/abs/1810.04805) of six layers, distilled as in MiniLM (Wang et al.,
https://arxiv.org/abs/2002.10957) and trained on pairs of sentences that belong together.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

MAX_TOKENS = 256
"""What the model was trained for; longer texts are cut."""
BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, MAX_TOKENS)
EMBEDDING = 384


@dataclass(frozen=True)
class Size:
    """The defaults are MiniLM-L6's."""

    layers: int = 6
    hidden: int = EMBEDDING
    heads: int = 12
    intermediate: int = 1536
    vocabulary: int = 30522
    positions: int = 512


class MiniLM(nn.Module):
    """Embeddings, float32 [n, hidden] of length 1, from input_ids and attention_mask, both int64 [n, L].

    The mask is 1 for tokens and 0 for padding, which stands at the end; every row has a token.
    """

    def __init__(self, size: Size | None = None) -> None:
        super().__init__()
        size = size or Size()
        self.words = nn.Embedding(size.vocabulary, size.hidden)
        self.positions = nn.Embedding(size.positions, size.hidden)
        self.norm = _layer_norm(size)
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.layers))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        # A mask of bool, not of numbers to add, serves weights of any precision.
        seen = attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, seen)
        # The mean over the tokens has the direction of their sum, and only the direction is kept.
        summed = (hidden * attention_mask.unsqueeze(2)).sum(dim=1)
        return functional.normalize(summed, dim=1)


class _Layer(nn.Module):
    """Self-attention and two linear layers, each with a shortcut and normalised after it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        # Query, key and value in one product: at a batch of one, operations cost more than what they compute.
        self.attention_in = nn.Linear(size.hidden, 3 * size.hidden)
        self.attention_out = nn.Linear(size.hidden, size.hidden)
        self.attention_norm = _layer_norm(size)
        self.widen = nn.Linear(size.hidden, size.intermediate)
        self.narrow = nn.Linear(size.intermediate, size.hidden)
        self.norm = _layer_norm(size)

    def forward(self, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The layer's [n, L, hidden], from the one before and `seen`, bool [n, 1, 1, L]."""
        # [n, L, 3 · hidden] -> three of [n, heads, L, hidden / heads]
        split = self.attention_in(hidden).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        hidden = self.attention_norm(hidden + self.attention_out(mixed.transpose(1, 2).flatten(2)))
        widened = functional.gelu(self.widen(hidden))
        output: torch.Tensor = self.norm(hidden + self.narrow(widened))
        return output


def _layer_norm(size: Size) -> nn.LayerNorm:
    return nn.LayerNorm(size.hidden, eps=1e-12)
