"""What a TorchServe user writes for these models: TorchServe's base handler, bytes in and out."""

from pathlib import Path
from typing import Any

from task import Task
from ts.torch_handler.base_handler import BaseHandler


class PlainHandler(BaseHandler):  # type: ignore[misc]  # TorchServe ships no types
    def initialize(self, context: Any) -> None:
        self.task = Task(Path(context.system_properties["model_dir"]))
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:  # noqa: ARG002 - TorchServe's signature
        answers: list[bytes] = self.task.predict([entry["body"] for entry in data])
        return answers
