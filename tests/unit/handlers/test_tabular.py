"""A table model in a real handler: the same numbers over every protocol, and column by column its own words."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from handlers.answer import GRPC, HTTP, ROWS
from handlers.base import BaseHandler
from handlers.program import load_program
from handlers.protocol.messages import ModelInferRequest, ModelInferResponse
from tests.unit.handlers.tiny import (
    GOOD,
    SCHEMA,
    Request,
    Row,
    ask,
    oip_binary,
    oip_grpc,
    oip_json,
    rows,
    tensors,
)

Protocol = Callable[..., Request]
PROTOCOLS: list[Protocol] = [rows, oip_json, oip_binary, oip_grpc]


def expected(handler: BaseHandler, *values: Row) -> Any:
    """The program's own numbers, asked with nothing of the handler but the schema."""
    numbers, codes = SCHEMA.encode({name: [row[name] for row in values] for name in SCHEMA.names})
    (output,) = load_program(handler.directory)(torch.from_numpy(numbers), torch.from_numpy(codes))
    return output.numpy()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_the_programs_numbers(handler: BaseHandler, protocol: Protocol) -> None:
    (answer,) = ask(handler, protocol(*GOOD))
    np.testing.assert_array_equal(answer.probability, expected(handler, *GOOD))


def test_rows_are_answered_as_rows(handler: BaseHandler) -> None:
    (answer,) = ask(handler, rows(*GOOD))
    assert [list(row) for row in json.loads(answer.body)] == [["probability"]] * len(GOOD)
    assert answer.headers == {"content-type": "application/json"}


def test_one_row_is_answered_as_one(handler: BaseHandler) -> None:
    (answer,) = ask(handler, Request(ROWS, orjson.dumps(GOOD[0])))
    assert json.loads(answer.body) == {"probability": pytest.approx(float(expected(handler, GOOD[0])[0]))}


def test_oip_answer_names_model_version_and_output(handler: BaseHandler) -> None:
    (answer,) = ask(handler, oip_json(*GOOD))
    document = json.loads(answer.body)
    (output,) = document.pop("outputs")
    assert document == {"model_name": "tiny", "model_version": "3"}
    assert {name: output[name] for name in ("name", "datatype", "shape")} == {
        "name": "probability",
        "datatype": "FP32",
        "shape": [3],
    }


def test_grpc_answer_names_model_version_output_and_the_clients_id(handler: BaseHandler) -> None:
    (answer,) = ask(handler, oip_grpc(*GOOD))
    message = ModelInferResponse.FromString(answer.body)
    (output,) = message.outputs
    assert (message.model_name, message.model_version, message.id) == ("tiny", "3", "42")
    assert (output.name, output.datatype, list(output.shape)) == ("probability", "FP32", [3])
    assert answer.headers == {"content-type": "application/x-protobuf"}


def test_binary_answer_is_given_where_it_is_asked_for(handler: BaseHandler) -> None:
    body = {"inputs": tensors(*GOOD), "parameters": {"binary_data_output": True}}
    (answer,) = ask(handler, Request(HTTP, orjson.dumps(body)))
    split = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    np.testing.assert_array_equal(np.frombuffer(answer.body[split:], np.float32), expected(handler, *GOOD))


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_column_may_be_a_vector_or_a_matrix_of_one_column(handler: BaseHandler, shape: list[int]) -> None:
    inputs = [{**tensor, "shape": shape} for tensor in tensors(*GOOD)]
    (answer,) = ask(handler, Request(HTTP, orjson.dumps({"inputs": inputs})))
    np.testing.assert_array_equal(answer.probability, expected(handler, *GOOD))


@pytest.mark.parametrize("datatype", ["FP64", "INT64", "UINT8"])
def test_numbers_may_come_in_another_number_type(handler: BaseHandler, datatype: str) -> None:
    values = [{**GOOD[0], "delay": 3, "wind": 4}]
    inputs = [{**t, "datatype": datatype} if t["datatype"] == "FP32" else t for t in tensors(*values)]
    (answer,) = ask(handler, Request(HTTP, orjson.dumps({"inputs": inputs})))
    np.testing.assert_array_equal(answer.probability, expected(handler, *values))


def oip(drop: str = "", extra: tuple[Any, ...] = (), **changed: dict[str, Any]) -> bytes:
    """A request of three rows with the named tensors changed."""
    inputs = [{**tensor, **changed.get(tensor["name"], {})} for tensor in tensors(*GOOD) if tensor["name"] != drop]
    return orjson.dumps({"inputs": [*inputs, *extra]})


NAMES = "delay, wind, carrier, origin"
EMPTY = {"shape": [0], "data": []}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (oip(drop="wind"), f"columns: missing wind; allowed: {NAMES}"),
        (oip(extra=({**tensors(*GOOD)[0], "name": "gate"},)), f"columns: unknown 'gate'; allowed: {NAMES}"),
        (oip(extra=(tensors(*GOOD)[0],)), f"input 'delay': the same column twice; allowed: {NAMES}"),
        (
            oip(delay={"datatype": "BYTES", "data": ["1", "2", "3"]}),
            "input 'delay': wrong datatype for a number column; found 'BYTES'; allowed: FP32, or another number type",
        ),
        (
            oip(delay={"datatype": "BOOL", "data": [True, False, True]}),
            "input 'delay': wrong datatype for a number column; found 'BOOL'; allowed: FP32, or another number type",
        ),
        (
            oip(carrier={"datatype": "INT64", "data": [1, 2, 3]}),
            "input 'carrier': wrong datatype for a text column; found 'INT64'; allowed: BYTES",
        ),
        (oip(wind={"shape": [1, 3]}), "input 'wind': wrong shape; found [1, 3]; allowed: [rows] or [rows, 1]"),
        (oip(wind={"shape": [3, 1, 1]}), "input 'wind': wrong shape; found [3, 1, 1]; allowed: [rows] or [rows, 1]"),
        (
            oip(wind={"shape": [2], "data": [1, 2]}),
            "input 'wind': not as many rows as the inputs before it; found 2; allowed: 3",
        ),
        (
            oip(delay=EMPTY, wind=EMPTY, carrier=EMPTY, origin=EMPTY),
            "inputs: empty batch; found no rows; allowed: at least one row",
        ),
        (
            oip(delay={"data": [1, None, 3]}),
            "column 'delay', row 1: wrong value; found a missing value; allowed: finite numbers",
        ),
        (
            oip(origin={"data": ["JFK", "EWR", "LGA"]}),
            "column 'origin', row 2: unknown category; found 'LGA'; allowed: EWR, JFK",
        ),
        (
            orjson.dumps({"inputs": tensors(*GOOD), "outputs": [{"name": "class"}]}),
            "outputs: unknown output 'class'; allowed: probability",
        ),
    ],
)
def test_wrong_columns_are_refused_in_words(handler: BaseHandler, body: bytes, error: str) -> None:
    (answer,) = ask(handler, Request(HTTP, body))
    assert (answer.status, answer.error) == (400, error)


@pytest.mark.parametrize(
    ("protocol", "content_type"),
    [(ROWS, "text/csv"), (ROWS, "application/octet-stream"), (HTTP, "text/plain"), (GRPC, "application/json")],
)
def test_wrong_content_type_is_refused(handler: BaseHandler, protocol: str, content_type: str) -> None:
    (answer,) = ask(handler, Request(protocol, b"", content_type))
    assert answer.status == (400 if protocol == GRPC else 415)  # gRPC has no status of its own for it
    assert answer.error.startswith(f"content-type: '{content_type}' is not read here; allowed: application/")


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("model_name", "other", "model_name: must stand at the head of the message; found 'other'; allowed: tiny"),
        ("model_version", "4", "model_version: must stand at the head of the message; found '4'; allowed: 3"),
    ],
)
def test_message_that_names_another_version_is_refused(
    handler: BaseHandler, field: str, value: str, error: str
) -> None:
    message = ModelInferRequest.FromString(oip_grpc(*GOOD).body)
    setattr(message, field, value)
    (answer,) = ask(handler, Request(GRPC, message.SerializeToString()))
    assert (answer.headers["x-shipway-grpc-status"], answer.error) == ("3", error)


def test_message_that_names_no_model_is_answered(handler: BaseHandler) -> None:
    message = ModelInferRequest.FromString(oip_grpc(*GOOD).body)
    message.ClearField("model_name")
    message.ClearField("model_version")
    (answer,) = ask(handler, Request(GRPC, message.SerializeToString()))
    np.testing.assert_array_equal(answer.probability, expected(handler, *GOOD))
