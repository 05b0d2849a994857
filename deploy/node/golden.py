"""The golden set: inputs stored with the version, and the outputs that this version gave when it was registered."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import numpy as np
import numpy.typing as npt
import orjson

from deploy.errors import GoldenFailed
from handlers.answer import REPLAY

_ANSWER_WITHIN_SECONDS = 120.0


@dataclass(frozen=True, eq=False)
class GoldenSet:
    """`golden.json`: an Open Inference request, and each output's values as they were at registration."""

    request: bytes
    outputs: tuple[tuple[str, npt.NDArray[np.float64]], ...]
    rtol: float
    atol: float

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises GoldenFailed for a file that is none."""
        try:
            document = orjson.loads(data)
            return cls(
                request=orjson.dumps(document["request"]),
                outputs=tuple(
                    (str(output["name"]), np.asarray(output["data"], dtype=np.float64))
                    for output in document["response"]["outputs"]
                ),
                rtol=float(document["rtol"]),
                atol=float(document["atol"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise GoldenFailed(f"golden.json cannot be read: {error!r}") from error


async def replay(workers: Sequence[Path], golden: GoldenSet) -> None:
    """Ask each worker, at its socket, for the golden outputs, and once more, so that it has warmed up.

    Raises GoldenFailed naming the output, the row, what was expected and what this hardware gave.
    """
    for _ in range(2):
        for status, answer in await asyncio.gather(*(ask(worker, golden.request) for worker in workers)):
            _compare(golden, status, answer)


async def ask(worker: Path, request: bytes) -> tuple[int, bytes]:
    """A worker's answer to a request in Open Inference JSON: its status and body. Raises GoldenFailed without one."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_WITHIN_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(worker)), timeout=timeout) as client,
            client.post("http://worker/", data=request, headers=REPLAY) as response,
        ):
            return response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise GoldenFailed(f"a worker does not answer: {str(error) or type(error).__name__}") from error


def _compare(golden: GoldenSet, status: int, answer: bytes) -> None:
    found = orjson.loads(answer) if answer.startswith(b"{") else {}
    if status != 200 or "outputs" not in found:
        raise GoldenFailed(f"the version answered {status}: {answer[:300].decode(errors='replace')}")
    compare(golden, {output["name"]: output["data"] for output in found["outputs"]})


def compare(golden: GoldenSet, outputs: Mapping[str, npt.ArrayLike]) -> None:
    """Raises GoldenFailed for the first output that is not the golden one; `outputs` are flat."""
    for name, want in golden.outputs:
        got = np.asarray(outputs.get(name, []), dtype=np.float64)
        if want.shape != got.shape:
            raise GoldenFailed(f"output {name} has {got.size} values; expected {want.size}")
        close = np.isclose(got, want, rtol=golden.rtol, atol=golden.atol, equal_nan=True)
        if not close.all():
            row = int((~close).argmax())
            raise GoldenFailed(
                f"output {name}, value {row}: expected {want[row]:.7g}, this hardware gives {got[row]:.7g} "
                f"({int((~close).sum())} of {close.size} are off by more than rtol {golden.rtol:g}, "
                f"atol {golden.atol:g})"
            )
