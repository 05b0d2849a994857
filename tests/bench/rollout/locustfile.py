"""The steady load of the bench: golden rows over HTTP and over gRPC, every answer checked.

`tests/bench/rollout/load.py` runs it and says by environment variables what is asked, of whom, and how often.
"""

# locust comes first: it replaces the blocking parts of the standard library before anyone else imports them.
from locust import FastHttpUser, User, constant_throughput, events, task  # isort: skip

import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import grpc
import grpc.experimental.gevent
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

MODEL, TARGET = os.environ["BENCH_MODEL"], os.environ["BENCH_TARGET"]
RATE = float(os.environ["BENCH_USER_RATE"])
"""Requests of each user a second; 0 for as many as possible."""
ROWS: list[list[dict[str, Any]]] = json.loads(Path(os.environ["BENCH_ROWS"]).read_text())
"""Open Inference tensors of one row each."""
TIMEOUT_SECONDS = 30

grpc.experimental.gevent.init_gevent()


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
    return service_pb2.ModelInferRequest(model_name=MODEL, inputs=inputs, raw_input_contents=map(raw, tensors))


def raw(tensor: dict[str, Any]) -> bytes:
    if tensor["datatype"] == "BYTES":
        packed: bytes = serialize_byte_tensor(np.array(tensor["data"], dtype=np.object_)).item()
        return packed
    return np.array(tensor["data"], dtype=np.float32).tobytes()


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


class GrpcClient(User):
    """ModelInfer with raw tensors on one long-lived channel for each user."""

    host = TARGET
    wait_time = pace

    def on_start(self) -> None:
        self.channel = grpc.insecure_channel(TARGET, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def on_stop(self) -> None:
        self.channel.close()

    @task
    def infer(self) -> None:
        start = time.perf_counter()
        failure: Exception | None = None
        size_bytes = 0
        try:
            answer, call = self.stub.ModelInfer.with_call(random.choice(MESSAGES), timeout=TIMEOUT_SECONDS)
            size_bytes = answer.ByteSize()
            values = np.frombuffer(answer.raw_output_contents[0], dtype=np.float32).tolist()
            wrong = fault(values, {key: str(value) for key, value in call.initial_metadata()})
            failure = None if wrong is None else ValueError(wrong)
        except grpc.RpcError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="GRPC",
            name="ModelInfer",
            response_time=(time.perf_counter() - start) * 1000,
            response_length=size_bytes,
            exception=failure,
            context={},
        )


def wind_the_clock(**_: object) -> None:
    """The clock of gevent stands still while Python works: --run-time would count what making the requests took."""
    gevent.sleep(0)


events.init.add_listener(wind_the_clock)  # type: ignore[no-untyped-call]
