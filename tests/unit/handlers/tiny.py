"""A tiny table model and requests for it: what the tests of the handlers serve.

It looks the delay up in a table of 1,000 minutes, so a real program raises on a row with a longer or negative delay.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from torch import nn

from handlers.answer import CALL_HEADER, GRPC, HTTP, NO_ID, REPLAY_HEADER, ROWS, Call
from handlers.protocol.messages import ModelInferRequest, ModelInferResponse
from handlers.protocol.oip_json import HEADER_LENGTH
from handlers.runtime_plan import RUNTIME, RuntimePlan
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.pt2 import read_program
from monitoring.profile import Profile

with warnings.catch_warnings():
    # TorchServe leaves a file of its own open while it is imported.
    warnings.simplefilter("ignore", ResourceWarning)
    from ts.context import Context

MODEL, VERSION = "tiny", "3"
Row = dict[str, Any]

SCHEMA = TableSchema(
    numbers=(NumberColumn("delay"), NumberColumn("wind", nullable=True)),
    categories=(CategoryColumn("carrier", ("AA", "B6", "UA")), CategoryColumn("origin", ("EWR", "JFK"), other=False)),
    outputs=(OutputColumn("probability"),),
)
GOOD: tuple[Row, ...] = (
    {"delay": 3, "wind": 4.5, "carrier": "UA", "origin": "JFK"},
    {"delay": 999.0, "wind": None, "carrier": "ÅÅ", "origin": "EWR"},
    {"delay": 0, "wind": 1e30, "carrier": "", "origin": "EWR"},
)
RAISING: Row = {**GOOD[0], "delay": 1000}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.delay = nn.Embedding(1000, 1)
        self.carrier = nn.Embedding(4, 1)
        self.origin = nn.Embedding(2, 1)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        known = self.delay(numbers[:, 0].to(torch.int64)) + self.carrier(codes[:, 0]) + self.origin(codes[:, 1])
        return (torch.sigmoid(known.squeeze(1) + torch.tanh(torch.nan_to_num(numbers[:, 1]) / 10)),)


def write_archive(directory: Path) -> None:
    """The files of an unpacked archive that a handler reads."""
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    program = torch.export.export(Tiny(), example, dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, directory / "model.pt2")
    read_program(directory / "model.pt2").write(directory)
    (directory / "schema.json").write_bytes(SCHEMA.to_json())
    (directory / "profile.json").write_bytes(profile().to_json())
    (directory / RUNTIME).write_bytes(RuntimePlan(threads=1).to_json())


def profile() -> Profile:
    random = np.random.default_rng(11)
    numbers = {
        "delay": random.integers(0, 100, 500).astype(np.float32),
        "wind": np.where(random.random(500) < 0.2, np.nan, random.random(500)).astype(np.float32),
    }
    codes = {c.name: (random.integers(0, len(c.vocabulary), 500), c.vocabulary) for c in SCHEMA.categories}
    return Profile.build(numbers, codes, {"probability": random.random(500).astype(np.float32)})


def loading_context(directory: Path, model: str = MODEL) -> Any:
    """TorchServe's own context, as it is while a worker loads an archive."""
    manifest = {"model": {"modelName": model, "modelVersion": VERSION}}
    context = Context(model, str(directory), manifest, 1, None, "0.12.0")
    context.model_yaml_config = {"responseTimeout": 60, "minWorkers": 1}
    return context


def prediction_id(arrived: float, number: int = 1) -> str:
    """As the edge makes it: the time in seconds since 1970, and what in a test is a number."""
    return f"{arrived:017.6f}-{number:08x}-8f2a-4c3d"


class Request:
    """One request as the edge sends it."""

    def __init__(
        self,
        protocol: str,
        body: bytes,
        content_type: str = "",
        headers: dict[str, str] | None = None,
        arrived: str = "",
        limits: str = "1e12",
    ) -> None:
        self.protocol = protocol
        self.body = body
        said = f"{prediction_id(float(arrived))} {protocol} {limits}" if arrived else f"{NO_ID} {protocol}"
        self.headers = {CALL_HEADER: said, "content-type": content_type, **(headers or {})}


class Answer:
    """One answer as the edge would read it."""

    def __init__(self, request: Request, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.request = request
        self.body = body
        self.headers = headers
        over_grpc = {"3": 400, "4": 504, "12": 415, "13": 500}.get(headers.get("x-shipway-grpc-status", ""), 200)
        self.status = over_grpc if request.protocol == GRPC else status

    @property
    def error(self) -> str:
        """What the client reads; over gRPC still percent-encoded. Empty where there is a prediction."""
        if self.status == 200:
            return ""
        if self.request.protocol == GRPC:
            return self.headers["x-shipway-grpc-message"]
        return str(json.loads(self.body)["error"])

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        assert self.status == 200, self.error
        if self.request.protocol == GRPC:
            raw = ModelInferResponse.FromString(self.body).raw_output_contents[0]
            return np.frombuffer(raw, np.float32)
        document = json.loads(self.body)
        if self.request.protocol == HTTP:
            return np.array(document["outputs"][0]["data"], np.float32)
        return np.array([row["probability"] for row in document], np.float32)


def ask(handler: Any, *requests: Request) -> list[Answer]:
    """Hand `requests` over as one batch, as a worker's server does."""
    answers = handler.answer([Call.read(request.headers, memoryview(request.body)) for request in requests])
    handler.account()
    return [
        Answer(request, answer.body, answer.status, {"content-type": answer.content_type, **answer.headers})
        for request, answer in zip(requests, answers, strict=True)
    ]


def exposition(directory: Path) -> dict[str, float]:
    """Every series of all workers with its value."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def rows(*values: Row) -> Request:
    """Plain JSON rows."""
    return Request(ROWS, orjson.dumps(values), "application/json")


def oip_json(*values: Row) -> Request:
    return Request(HTTP, orjson.dumps({"inputs": tensors(*values)}), "application/json")


def oip_grpc(*values: Row) -> Request:
    """Typed contents for text, raw contents cannot be mixed with them: so all are raw."""
    message = ModelInferRequest(model_name=MODEL, model_version=VERSION, id="42")
    for tensor in tensors(*values):
        message.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        message.raw_input_contents.append(raw(tensor["datatype"], tensor["data"]))
    return Request(GRPC, message.SerializeToString(), "application/x-protobuf")


def oip_binary(*values: Row) -> Request:
    """The binary tensor extension."""
    described, tail = [], b""
    for tensor in tensors(*values):
        data = raw(tensor["datatype"], tensor.pop("data"))
        described.append({**tensor, "parameters": {"binary_data_size": len(data)}})
        tail += data
    head = orjson.dumps({"inputs": described})
    return Request(HTTP, head + tail, "application/octet-stream", {HEADER_LENGTH: str(len(head))})


def replayed(request: Request, replay: str = "1") -> Request:
    return Request(request.protocol, request.body, headers={**request.headers, REPLAY_HEADER: replay})


def tensors(*values: Row) -> list[dict[str, Any]]:
    """The rows' columns as tensors of the Open Inference Protocol in JSON."""
    text = {column.name for column in SCHEMA.categories}
    return [
        {
            "name": name,
            "datatype": "BYTES" if name in text else "FP32",
            "shape": [len(values)],
            "data": [row[name] for row in values],
        }
        for name in SCHEMA.names
    ]


def raw(datatype: str, data: list[Any]) -> bytes:
    if datatype == "BYTES":
        return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in data)
    return np.array(data, np.float32).tobytes()
