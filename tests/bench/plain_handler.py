"""What a TorchServe user writes for this model: TorchServe's base handler, plain Python in and out.

It is packed into the stock server's archive as it stands. The program is loaded by our own loader, so that the model
itself is the same and only the serving differs; everything else of ours is left out.
"""

import json
from pathlib import Path
from typing import Any

import torch
from ts.torch_handler.base_handler import BaseHandler

from handlers.program import load_program


class PlainHandler(BaseHandler):  # type: ignore[misc]  # TorchServe ships no types
    def initialize(self, context: Any) -> None:
        directory = Path(context.system_properties["model_dir"])
        torch.set_num_threads(1)  # as ours: two workers on two cores would fight for them otherwise
        self.program = load_program(directory)
        columns = json.loads((directory / "schema.json").read_bytes())["columns"]
        self.numbers = [column["name"] for column in columns if column["dtype"] == "float32"]
        self.categories = [
            (column["name"], {word: code for code, word in enumerate(column["vocabulary"])})
            for column in columns
            if column["dtype"] == "string"
        ]
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [entry.get("data") or entry.get("body") for entry in data]
        numbers = [
            [float("nan") if row[name] is None else row[name] for name in self.numbers]
            for row in rows
            if row is not None
        ]
        codes = [
            [codes.get(row[name], len(codes)) for name, codes in self.categories] for row in rows if row is not None
        ]
        return torch.tensor(numbers, dtype=torch.float32), torch.tensor(codes, dtype=torch.int64)

    def inference(self, data: tuple[torch.Tensor, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        return self.program(*data)[0]

    def postprocess(self, data: torch.Tensor) -> list[float]:
        return data.tolist()
