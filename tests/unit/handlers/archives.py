"""Unpacked archives of any kind of model, and requests for them over every protocol."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch import nn

from handlers.answer import GRPC, HTTP, REPLAY_HEADER, ROWS
from handlers.base import BaseHandler
from handlers.captured import CapturedRequest
from handlers.protocol.messages import ModelInferRequest, ModelInferResponse
from handlers.protocol.oip_json import HEADER_LENGTH
from handlers.runtime_plan import RUNTIME, RuntimePlan
from handlers.slots import counters_directory, read_counts
from handlers.tensors import Tensor, to_raw
from model_store.profiling import NO_PROFILE
from model_store.pt2 import read_program
from tests.unit.handlers.tiny import MODEL, VERSION, Answer, Request

Array = npt.NDArray[Any]
DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8", "float16": "FP16", "bool": "BOOL"}


def write(
    directory: Path,
    network: nn.Module,
    example: Sequence[torch.Tensor],
    schema: bytes,
    *,
    free: Sequence[int] = (0,),
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """The files of an unpacked archive that a handler reads; `free` are the axes that may have any size."""
    sizes = [{axis: torch.export.Dim.DYNAMIC for axis in free if axis < tensor.ndim} for tensor in example]
    program = torch.export.export(network.eval(), tuple(example), dynamic_shapes=tuple(sizes))
    torch.export.save(program, directory / "model.pt2")
    read_program(directory / "model.pt2").write(directory)
    described = {"schema.json": schema, "profile.json": NO_PROFILE.to_json(), RUNTIME: RuntimePlan().to_json()}
    for name, content in {**described, **(files or {})}.items():
        (directory / name).write_bytes(content)
    return directory


Start = Callable[..., BaseHandler]
"""The fixture `start`: a handler of a class and of the directory of an archive."""


def counted(metrics_directory: Path) -> int:
    """Rows counted by all workers of the model."""
    directory = counters_directory(metrics_directory, MODEL, VERSION, NO_PROFILE.to_json())
    return read_counts(directory, NO_PROFILE).rows


def plain(body: object, content_type: str = "application/json") -> Request:
    """A request of `/predictions/NAME`: bytes as they are, anything else as JSON."""
    return Request(ROWS, body if isinstance(body, bytes) else orjson.dumps(body), content_type)


def tensor(name: str, values: Array | list[bytes], shape: Sequence[int] | None = None) -> Tensor:
    if isinstance(values, list):
        return Tensor(name, "BYTES", tuple(shape or (len(values),)), values)
    return Tensor(name, DATATYPES[values.dtype.name], tuple(shape or values.shape), values.reshape(-1))


def oip_json(*tensors: Tensor, **fields: Any) -> Request:
    inputs = [
        {"name": one.name, "datatype": one.datatype, "shape": one.shape, "data": _plain_values(one)} for one in tensors
    ]
    return Request(HTTP, orjson.dumps({"inputs": inputs, **fields}), "application/json")


def oip_binary(*tensors: Tensor) -> Request:
    """The binary tensor extension."""
    raw = [to_raw(one) for one in tensors]
    inputs = [
        {"name": one.name, "datatype": one.datatype, "shape": one.shape, "parameters": {"binary_data_size": len(data)}}
        for one, data in zip(tensors, raw, strict=True)
    ]
    head = orjson.dumps({"inputs": inputs})
    return Request(HTTP, head + b"".join(raw), "application/octet-stream", {HEADER_LENGTH: str(len(head))})


def oip_grpc(*tensors: Tensor) -> Request:
    message = ModelInferRequest(model_name=MODEL, model_version=VERSION)
    for one in tensors:
        message.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        message.raw_input_contents.append(to_raw(one))
    return Request(GRPC, message.SerializeToString(), "application/x-protobuf")


def again(captured: CapturedRequest) -> Request:
    """A captured request, as the node itself asks it once more."""
    headers = {HEADER_LENGTH: str(captured.header_length), REPLAY_HEADER: "1"}
    return Request(HTTP, captured.body, "application/octet-stream", headers)


AskedAgain = Callable[..., dict[str, Array]]
"""The fixture `asked_again`: the outputs for a request that a handler of a class and a directory has captured."""


def outputs(answer: Answer) -> dict[str, Array]:
    """What an answer of the Open Inference Protocol holds, in its shapes."""
    assert answer.status == 200, answer.error
    if answer.request.protocol == GRPC:
        message = ModelInferResponse.FromString(answer.body)
        pairs = zip(message.outputs, message.raw_output_contents, strict=True)
        return {one.name: np.frombuffer(raw, _dtype(one.datatype)).reshape(one.shape) for one, raw in pairs}
    document = json.loads(answer.body)
    return {
        one["name"]: np.array(one["data"], _dtype(one["datatype"])).reshape(one["shape"])
        for one in document["outputs"]
    }  # fmt: skip


def _dtype(datatype: str) -> str:
    return next(name for name, known in DATATYPES.items() if known == datatype)


def _plain_values(one: Tensor) -> list[Any]:
    if isinstance(one.values, list):
        return [value.decode() for value in one.values]
    return [None if value != value else value for value in one.values.tolist()]  # noqa: PLR0124 - NaN
