"""The golden set: stored inputs with the outputs that this version's stored program gave, replayed by every node."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from handlers.base import BaseHandler
from handlers.errors import RequestRefused
from handlers.protocol import oip_json
from handlers.tensors import InferRequest, Tensor
from model_store.errors import GoldenRefused

GOLDEN = "golden.json"
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
"""Wide enough for another processor's rounding, far too narrow for another model."""

Inputs = Sequence[Mapping[str, Any]]
"""Input tensors as Open Inference JSON: name, datatype, shape, and data as a flat list or numpy array."""


def golden_set(handler: BaseHandler, inputs: Inputs) -> bytes:
    """`golden.json`: an OIP JSON request of these inputs, and what `handler` answers to it.

    Raises GoldenRefused for inputs that the handler refuses, that the model fails on, or whose first row is answered
    differently by itself: a node puts the rows of different requests into one batch.
    """
    answer = _numbers(answered(handler, inputs))
    for together, alone in zip(answer, _numbers(answered(handler, [_first_row(each) for each in inputs])), strict=True):
        _check_same(together, alone)
    outputs = [
        {"name": one.name, "datatype": one.datatype, "shape": list(one.shape), "data": np.ravel(one.values)}
        for one in answer
    ]
    document = {
        "rtol": RELATIVE_TOLERANCE,
        "atol": ABSOLUTE_TOLERANCE,
        "request": {"inputs": list(inputs)},
        "response": {"outputs": outputs},
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def inputs_of(golden: bytes) -> Inputs:
    """The input tensors of a `golden.json`."""
    inputs: Inputs = orjson.loads(golden)["request"]["inputs"]
    return inputs


def read_inputs(path: Path) -> Inputs:
    """The input tensors of a request in a file of the user's. Raises GoldenRefused for a file that holds none."""
    try:
        request = oip_json.decode(memoryview(path.read_bytes()), None)
    except (OSError, RequestRefused) as error:
        raise GoldenRefused(f"{path}: {error}") from error
    return [
        {"name": one.name, "datatype": one.datatype, "shape": list(one.shape), "data": one.values}
        for one in request.inputs
    ]


def answered(handler: BaseHandler, inputs: Inputs) -> list[Tensor]:
    """What `handler` answers to these inputs. Raises GoldenRefused."""
    try:
        return handler.predict(request(inputs))
    except RequestRefused as error:
        raise GoldenRefused(f"the handler refuses it: {error}") from error
    except Exception as error:  # whatever the model raises, or a handler of the user's
        raise GoldenRefused(f"the model fails on it: {type(error).__name__}: {error}") from error


def request(inputs: Inputs) -> InferRequest:
    """The request as a node reads it."""
    return oip_json.decode(memoryview(orjson.dumps({"inputs": list(inputs)}, option=orjson.OPT_SERIALIZE_NUMPY)), None)


def reproduces(handler: BaseHandler, golden: bytes) -> bool:
    """Whether `handler` answers the request of a `golden.json` as it is answered there."""
    try:
        found = {one.name: np.ravel(one.values) for one in answered(handler, inputs_of(golden))}
    except GoldenRefused:
        return False
    expected = {one["name"]: one["data"] for one in orjson.loads(golden)["response"]["outputs"]}
    return found.keys() == expected.keys() and all(_alike(found[name], expected[name]) for name in found)


def _alike(found: npt.NDArray[Any], expected: Sequence[Any]) -> bool:
    if len(found) != len(expected):
        return False
    if found.dtype.kind not in "biuf":
        return list(found) == list(expected)
    numbers = np.array(expected, dtype=np.float64)  # null, which is NaN, too
    return np.allclose(found, numbers, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, equal_nan=True)


def _numbers(answer: Sequence[Tensor]) -> list[Tensor]:
    """The outputs that can be compared within a tolerance: all but text."""
    numbers = [tensor for tensor in answer if tensor.datatype != "BYTES"]
    if not numbers:
        raise GoldenRefused("no output has numbers, and a node compares numbers")
    return numbers


def _first_row(tensor: Mapping[str, Any]) -> dict[str, Any]:
    rows, *rest = tensor["shape"]
    return {**tensor, "shape": [1, *rest], "data": tensor["data"][: len(tensor["data"]) // rows]}


def _check_same(together: Tensor, alone: Tensor) -> None:
    values = np.ravel(together.values)[: len(np.ravel(alone.values))]
    if not np.allclose(values, np.ravel(alone.values), RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, equal_nan=True):
        raise GoldenRefused(
            f"output {together.name} of its first row depends on the other rows, so requests cannot share a batch; "
            "is the network in evaluation mode?"
        )
