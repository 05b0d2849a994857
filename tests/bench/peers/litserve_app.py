"""LitServe with its own batching and its fast (ZeroMQ) queue."""

import json
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import Body, Response
from task import Task

SETTINGS = json.loads(Path("settings.json").read_bytes())


class Model(litserve.LitAPI):  # type: ignore[misc]  # not installed where types are checked
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        self.task = Task(Path.cwd())

    # The annotation is what makes LitServe hand over the body as it is; without one it reads JSON.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        answers: list[bytes] = self.task.predict(x)
        return answers

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Any:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    model = Model(max_batch_size=SETTINGS["batch_size"], batch_timeout=SETTINGS["batch_delay_ms"] / 1e3)
    server = litserve.LitServer(model, accelerator="cpu", workers_per_device=SETTINGS["workers"], fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=SETTINGS["port"],
        num_api_servers=SETTINGS["api_servers"],
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
