"""Load on the node that runs here: flights of the future months over HTTP and over gRPC, every answer checked.

Run by `make load`. The stack says where the node is and which versions it serves (`shipway status`).
"""

# locust comes first: it replaces the blocking parts of the standard library before anyone else imports them.
from locust import FastHttpUser, constant, events, task  # isort: skip

import itertools
import json
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from locust.env import Environment
from tritonclient.grpc import service_pb2

from deploy import stack
from deploy.node.desired import in_force
from deploy.settings import read_settings
from model_store import flights
from tests.load.over_grpc import GrpcUser, floats, raw

MODEL = "flights"
# Made once: what is measured is the node, not how fast this file can build requests.
PREPARED_REQUESTS = 500
LARGEST_REQUEST_ROWS = 8
TIMEOUT_SECONDS = 10

SETTINGS = read_settings()
STATUS = stack.status(SETTINGS)


def ready_versions() -> set[str]:
    return {str(one.version) for one in in_force(SETTINGS.actual_file, MODEL).versions if one.state == "READY"}


VERSIONS = ready_versions()
if not VERSIONS:
    sys.exit(f"No version of the model {MODEL} is in service at {STATUS.urls['http']}: run make demo first.")


@dataclass(frozen=True)
class Request:
    """The same rows for both protocols."""

    rows: int
    http_body: str
    grpc_message: Any


def prepared_requests(seed: int = 0) -> list[Request]:
    rows = flights.load().rows(*flights.TRAFFIC_MONTHS)
    sizes = random.Random(seed)
    return [
        as_request(rows.sample(sizes.randint(1, LARGEST_REQUEST_ROWS), random_state=number))
        for number in range(PREPARED_REQUESTS)
    ]


def as_request(rows: pd.DataFrame) -> Request:
    shape = [len(rows)]
    columns = flights.to_columns(rows)
    datatypes = {name: "BYTES" if name in flights.CATEGORIES else "FP32" for name in columns}
    inputs = [
        {"name": name, "datatype": datatypes[name], "shape": shape, "data": data} for name, data in columns.items()
    ]
    message = service_pb2.ModelInferRequest(
        model_name=MODEL,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatypes[name], shape=shape)
            for name in columns
        ],
        raw_input_contents=[raw(rows[name], datatypes[name]) for name in columns],
    )
    return Request(len(rows), json.dumps({"inputs": inputs}), message)


def endless_requests() -> Iterator[Request]:
    """Each user starts somewhere else."""
    return itertools.cycle(random.sample(REQUESTS, len(REQUESTS)))


def fault(probabilities: list[float], shape: list[int], rows: int, headers: Mapping[str, str]) -> str | None:
    """What is wrong with an answer, or None."""
    if shape != [rows] or len(probabilities) != rows:
        return f"{rows} rows were sent; the answer has shape {shape} and {len(probabilities)} values"
    if not all(0 <= probability <= 1 for probability in probabilities):
        return f"probabilities lie between 0 and 1; found {probabilities}"
    if headers.get("x-shipway-model") != MODEL:
        return f"x-shipway-model should be {MODEL}; found {headers.get('x-shipway-model')}"
    if headers.get("x-shipway-version") not in VERSIONS:
        VERSIONS.update(ready_versions())  # a rollout may have begun
    if headers.get("x-shipway-version") not in VERSIONS:
        return f"x-shipway-version should be one of {sorted(VERSIONS)}; found {headers.get('x-shipway-version')}"
    return None


class HttpClient(FastHttpUser):
    """Open Inference Protocol, JSON."""

    host = STATUS.urls["http"]
    wait_time = constant(0)
    network_timeout = TIMEOUT_SECONDS
    connection_timeout = TIMEOUT_SECONDS

    def on_start(self) -> None:
        self.requests = endless_requests()

    @task
    def infer(self) -> None:
        request = next(self.requests)
        path = f"/v2/models/{MODEL}/infer"
        headers = {"Content-Type": "application/json"}
        with self.client.post(path, data=request.http_body, headers=headers, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"HTTP {answer.status_code}: {(answer.text or '')[:200]}")
                return
            output = answer.json()["outputs"][0]
            wrong = fault(output["data"], output["shape"], request.rows, answer.headers)
            if wrong is not None:
                answer.failure(wrong)


class GrpcClient(GrpcUser):
    """Open Inference Protocol, ModelInfer with raw tensors."""

    host = STATUS.urls["grpc"]
    wait_time = constant(0)

    def on_start(self) -> None:
        super().on_start()
        self.requests = endless_requests()

    @task
    def infer(self) -> None:
        request = next(self.requests)
        self.ask(
            request.grpc_message,
            TIMEOUT_SECONDS,
            lambda answer, headers: fault(floats(answer), list(answer.outputs[0].shape), request.rows, headers),
        )


def silence_is_failure(environment: Environment, **_: object) -> None:
    """A run in which one of the protocols was never answered has shown nothing."""
    answered = {method for (_, method), entry in environment.stats.entries.items() if entry.num_requests}
    if answered != {"POST", "GRPC"}:
        environment.process_exit_code = 1


events.quitting.add_listener(silence_is_failure)  # type: ignore[no-untyped-call]
REQUESTS = prepared_requests()
