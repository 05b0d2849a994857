"""Schemathesis against the live node: whatever fits the description, or just does not, gets no 5xx."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import post
from tests.integration.conftest import Lab

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = 60
BUDGET_SECONDS = 20


def test_fuzzer_finds_no_fault(lab: Lab, tmp_path: Path) -> None:
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(narrowed(lab)))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(description)),
        *("--url", f"http://127.0.0.1:{lab.port}"),
        *("--checks", CHECKS),
        *("--max-examples", str(EXAMPLES), "--max-time", str(BUDGET_SECONDS)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--generation-deterministic", "--continue-on-failure", "--no-shrink"),
        *("--request-timeout", "20", "--warnings", "off", "--no-color"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "Fuzzing" in result.stdout


def narrowed(lab: Lab) -> dict[str, Any]:
    """The node's own description, for names that are in service: any others never come near a handler."""
    with urllib.request.urlopen(f"http://127.0.0.1:{lab.port}/v2/openapi.json", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    tensors = lab.golden["request"]["inputs"]
    parameters, schemas = document["components"]["parameters"], document["components"]["schemas"]
    parameters["Model"]["schema"] = {"enum": ["flights", "flights", "boats"]}
    parameters["Version"]["schema"] = {"enum": [1, 2, 9]}
    schemas["InputTensor"]["properties"]["name"] = {"enum": [tensor["name"] for tensor in tensors]}
    schemas["InferRequest"]["example"] = {
        "inputs": [{**tensor, "shape": [1], "data": tensor["data"][:1]} for tensor in tensors]
    }
    _, headers, _ = post(lab.port, "/predictions/flights", lab.row())
    ids = [headers["x-shipway-prediction-id"], "1700000000.000000-00000000-0000-4000"]
    schemas["Label"]["properties"]["prediction_id"] = {"enum": ids}
    schemas["Label"]["properties"]["row"] = {"enum": [0, 1]}
    columns = {tensor["name"]: {"enum": [*tensor["data"][:5], None, "", 1e39, True]} for tensor in tensors}
    row = {"type": "object", "properties": columns, "required": list(columns)}
    schemas["Rows"] = {"anyOf": [row, {"type": "array", "items": row}, schemas["Rows"]], "example": lab.row()}
    return document


@pytest.mark.parametrize("path", ["/v2/openapi.json", "/v2/proto"])
def test_description_and_messages_are_served(lab: Lab, path: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{lab.port}{path}", timeout=10) as answer:
        assert answer.status == 200
        assert b"ModelInferRequest" in answer.read() or path != "/v2/proto"
