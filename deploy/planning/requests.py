"""What both versions are asked: the champion's golden set row by row, and what the node has captured."""

from collections.abc import Mapping
from math import prod

import orjson

from handlers.captured import CapturedRequest
from handlers.errors import shown
from handlers.protocol import oip_json
from handlers.tensors import Tensor

GOLDEN = "golden"
"""What the ids of the golden set's rows begin with."""


def golden_requests(golden: bytes, version: int) -> list[CapturedRequest]:
    """The rows of a `golden.json`, each as a request of its own, as clients ask."""
    request = oip_json.decode(memoryview(orjson.dumps(orjson.loads(golden)["request"])), None)
    rows = request.inputs[0].shape[0]
    found = []
    for row in range(rows):
        body, header_length = oip_json.encode_request([_row(tensor, row) for tensor in request.inputs])
        found.append(CapturedRequest(f"{GOLDEN}-{row}", version, 0.0, GOLDEN, (), header_length, body))
    return found


def inputs_of(request: CapturedRequest, row: int) -> Mapping[str, str]:
    """The inputs of one row as a person may see them: those that were masked are left out."""
    inputs = oip_json.decode(memoryview(request.body), str(request.header_length)).inputs
    return {tensor.name: _words(_row(tensor, row)) for tensor in inputs if tensor.name not in request.masked}


def _words(tensor: Tensor) -> str:
    values = tensor.values if isinstance(tensor.values, list) else tensor.values.tolist()
    return shown(values[0] if len(values) == 1 else values)


def _row(tensor: Tensor, row: int) -> Tensor:
    rest = tensor.shape[1:]
    size = prod(rest)
    return Tensor(tensor.name, tensor.datatype, (1, *rest), tensor.values[row * size : (row + 1) * size])
