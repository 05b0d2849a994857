"""What every peer serves: the same network with the same weights, raw bytes in and raw bytes out.

Copied into each peer's package as it stands, with `settings.json`, `weights.safetensors` and the network's own file;
it needs torch, safetensors and tokenizers, and nothing of ours.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer


class Task:
    """The model of the package in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.settings: dict[str, Any] = json.loads((directory / "settings.json").read_bytes())
        torch.set_num_threads(self.settings["threads"])
        sys.path.insert(0, str(directory))
        module, name, arguments = self.settings["network"]
        self.network = getattr(importlib.import_module(module), name)(**arguments).eval()
        left_out, _ = self.network.load_state_dict(load_file(directory / "weights.safetensors"), strict=False)
        if left_out:
            raise ValueError(f"the package has no weights for {', '.join(left_out)}")
        self.tokenizer: Tokenizer | None = None
        if (directory / "tokenizer.json").exists():
            self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            self.tokenizer.enable_truncation(self.settings["input"]["max_tokens"])
            self.tokenizer.enable_padding()  # to the longest text of a batch

    def collate(self, bodies: Sequence[bytes]) -> tuple[torch.Tensor, ...]:
        """The network's inputs for one batch."""
        if self.tokenizer is not None:
            encoded = self.tokenizer.encode_batch_fast([bytes(body).decode() for body in bodies])
            return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])
        dtype = getattr(torch, self.settings["input"]["dtype"])
        rows = torch.frombuffer(bytearray(b"".join(bodies)), dtype=dtype)
        return (rows.view(len(bodies), *self.settings["input"]["shape"]),)

    def predict(self, bodies: Sequence[bytes]) -> list[bytes]:
        """One answer a body: the network's first output as raw float32."""
        with torch.inference_mode():
            outputs = self.network(*self.collate(bodies))
        first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        return [row.tobytes() for row in first.numpy()]
