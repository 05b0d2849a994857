"""The golden set: inputs stored with the version, and the outputs that this version gave when it was registered."""

import asyncio

import numpy as np
import orjson

from deploy.errors import GoldenFailed
from deploy.node.torchserve import Management
from handlers.answer import HTTP, PROTOCOL_HEADER, REPLAY_HEADER


async def replay(management: Management, model: str, version: int, golden: bytes, workers: int) -> None:
    """Ask the loaded version for its golden outputs, often enough that every worker has warmed up.

    Raises GoldenFailed naming the output, the row, what was expected and what this hardware gave.
    """
    document = orjson.loads(golden)
    body = orjson.dumps(document["request"])
    headers = {PROTOCOL_HEADER: HTTP, REPLAY_HEADER: "1"}
    answers = await asyncio.gather(*(management.predict(model, version, body, headers) for _ in range(2 * workers)))
    for status, answer in answers:
        _compare(document, status, answer)


def _compare(document: dict[str, object], status: int, answer: bytes) -> None:
    found = orjson.loads(answer) if answer.startswith(b"{") else {}
    if status != 200 or "outputs" not in found:
        raise GoldenFailed(f"the version answered {status}: {answer[:300].decode(errors='replace')}")
    outputs = {output["name"]: output["data"] for output in found["outputs"]}
    tolerance = {"rtol": float(str(document["rtol"])), "atol": float(str(document["atol"]))}
    response: dict[str, list[dict[str, object]]] = orjson.loads(orjson.dumps(document["response"]))
    for expected in response["outputs"]:
        name = str(expected["name"])
        want = np.asarray(expected["data"], dtype=np.float64)
        got = np.asarray(outputs.get(name, []), dtype=np.float64)
        if want.shape != got.shape:
            raise GoldenFailed(f"output {name} has {got.size} values; expected {want.size}")
        close = np.isclose(got, want, **tolerance, equal_nan=True)
        if not close.all():
            row = int((~close).argmax())
            raise GoldenFailed(
                f"output {name}, value {row}: expected {want[row]:.7g}, this hardware gives {got[row]:.7g} "
                f"({int((~close).sum())} of {close.size} are off by more than rtol {tolerance['rtol']:g}, "
                f"atol {tolerance['atol']:g})"
            )
