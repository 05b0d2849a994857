"""The steady load of the bench: golden rows over HTTP and over gRPC, every answer checked.

`tests/bench/rollout/load.py` runs it and says by environment variables what is asked, of whom, and how often.
"""

# locust comes first: it replaces the blocking parts of the standard library before anyone else imports them.
from locust import FastHttpUser, User, constant_throughput, task  # isort: skip

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from tests.load.over_grpc import GrpcUser, floats, raw

MODEL, TARGET = os.environ["BENCH_MODEL"], os.environ["BENCH_TARGET"]
RATE = float(os.environ["BENCH_USER_RATE"])
"""Requests of each user a second; 0 for as many as possible."""
ROWS: list[list[dict[str, Any]]] = json.loads(Path(os.environ["BENCH_ROWS"]).read_text())
"""Open Inference tensors of one row each."""
TIMEOUT_SECONDS = 30


def pace(user: User) -> float:
    return constant_throughput(RATE)(user) if RATE else 0.0


def fault(values: list[float], headers: Mapping[str, str]) -> str | None:
    """What is wrong with an answer, or None."""
    if len(values) != 1 or not 0 <= values[0] <= 1:
        return f"one probability was asked for; found {values}"
    if headers.get("x-shipway-model") != MODEL or not headers.get("x-shipway-version"):
        return f"x-shipway-model should be {MODEL} and a version be named; found {dict(headers)}"
    return None


def message(tensors: list[dict[str, Any]]) -> Any:
    inputs = [
        service_pb2.ModelInferRequest.InferInputTensor(
            name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"]
        )
        for tensor in tensors
    ]
    contents = [raw(tensor["data"], tensor["datatype"]) for tensor in tensors]
    return service_pb2.ModelInferRequest(model_name=MODEL, inputs=inputs, raw_input_contents=contents)


BODIES = [json.dumps({"inputs": tensors}) for tensors in ROWS]
MESSAGES = [message(tensors) for tensors in ROWS]


class HttpClient(FastHttpUser):
    """Open Inference Protocol, JSON, on a connection that is kept."""

    host = f"http://{TARGET}"
    wait_time = pace
    network_timeout = TIMEOUT_SECONDS
    connection_timeout = TIMEOUT_SECONDS

    @task
    def infer(self) -> None:
        path = f"/v2/models/{MODEL}/infer"
        headers = {"Content-Type": "application/json"}
        with self.client.post(path, data=random.choice(BODIES), headers=headers, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"HTTP {answer.status_code}: {(answer.text or '')[:200]}")
            elif wrong := fault(answer.json()["outputs"][0]["data"], answer.headers):
                answer.failure(wrong)


class GrpcClient(GrpcUser):
    """ModelInfer with raw tensors."""

    host = TARGET
    wait_time = pace

    @task
    def infer(self) -> None:
        self.ask(random.choice(MESSAGES), TIMEOUT_SECONDS, lambda answer, headers: fault(floats(answer), headers))
