"""A drill's users: a steady load of golden inputs on one endpoint, with a note of what became of every request."""

import asyncio
import json
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson

from deploy.caller import Caller
from deploy.drill.exercises import Seen
from deploy.node.envoy import PREDICTION_ID

OPEN_AT_ONCE = 64
"""Requests; of more the load is late, and does not pile up."""
TIMEOUT_SECONDS = 30.0
LABELS_AFTER_SECONDS = 1.0
"""A node keeps a prediction a moment after it has answered."""
STOP_WITHIN_SECONDS = 2 * TIMEOUT_SECONDS


@dataclass(frozen=True)
class Row:
    """One request, and what really happened."""

    body: bytes
    label: str | None
    """None where the model predicts no class."""


def rows_of(golden: bytes, classes: Sequence[str]) -> list[Row]:
    """Each row of a `golden.json` as a request; of a model with classes the golden answer is what really happened."""
    document = json.loads(golden)
    inputs, answer = document["request"]["inputs"], document["response"]["outputs"][0]
    count = inputs[0]["shape"][0]
    return [
        Row(
            orjson.dumps({"inputs": [_row(tensor, at, count) for tensor in inputs]}), _label(answer, at, count, classes)
        )
        for at in range(count)
    ]


def _row(tensor: Mapping[str, Any], at: int, count: int) -> dict[str, Any]:
    size = len(tensor["data"]) // count
    return {**tensor, "shape": [1, *tensor["shape"][1:]], "data": tensor["data"][at * size : (at + 1) * size]}


def _label(answer: Mapping[str, Any], at: int, count: int, classes: Sequence[str]) -> str | None:
    values = _row(answer, at, count)["data"]
    if not classes:
        return None
    return classes[int(values[0] > 0.5)] if len(values) == 1 else classes[values.index(max(values))]


class Load:
    """Users who send `rate` requests a second until it is left, each a random row."""

    def __init__(self, caller: Caller, model: str, rows: Sequence[Row], rate: float) -> None:
        self._caller = caller
        self._model = model
        self._rows = rows
        self._interval_seconds = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._seen: list[Seen] = []
        self._made: deque[tuple[float, str, str]] = deque()
        self.labels = False
        """Whether what really happened is told to the node."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STOP_WITHIN_SECONDS)

    def seen(self, since: float) -> list[Seen]:
        """Requests that were sent since a Unix time and have ended."""
        return [one for one in self._seen if one.at >= since]

    @contextmanager
    def labelling(self, labels: bool) -> Iterator[None]:  # noqa: FBT001
        self.labels = labels
        try:
            yield
        finally:
            self.labels = False

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=OPEN_AT_ONCE, ssl=self._caller.trusted() or True)
        headers = {"content-type": "application/json", **self._caller.headers()}
        async with (
            aiohttp.ClientSession(self._caller.url, timeout=timeout, connector=connector, headers=headers) as session,
            asyncio.TaskGroup() as tasks,
        ):
            labelling = tasks.create_task(self._tell_labels(session))
            open_now: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not self._stop.is_set():
                if len(open_now) < OPEN_AT_ONCE:
                    one = tasks.create_task(self._ask(session, random.choice(self._rows)))  # noqa: S311 - no secret
                    open_now.add(one)
                    one.add_done_callback(open_now.discard)
                due = max(due + self._interval_seconds, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            labelling.cancel()

    async def _ask(self, session: aiohttp.ClientSession, row: Row) -> None:
        at, started = time.time(), time.monotonic()
        status, said = 0, None
        try:
            async with session.post(f"/v2/models/{self._model}/infer", data=row.body) as answer:
                await answer.read()
                status, said = answer.status, answer.headers.get("x-shipway-version")
                if self.labels and status == 200 and row.label is not None:
                    self._made.append((started, answer.headers[PREDICTION_ID], row.label))
        except (aiohttp.ClientError, TimeoutError):
            pass  # noted as no answer
        self._seen.append(Seen(at, time.monotonic() - started, int(said) if said else None, status))

    async def _tell_labels(self, session: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(LABELS_AFTER_SECONDS)
            before = time.monotonic() - LABELS_AFTER_SECONDS
            told = []
            while self._made and self._made[0][0] < before:
                _, made, label = self._made.popleft()
                told.append({"prediction_id": made, "row": 0, "label": label})
            if told:
                # A store that cannot be used now answers 503, and a node that restarts not at all: then these labels
                # are missing, as they may be in life.
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.post("/feedback", data=orjson.dumps(told)) as answer:
                        await answer.read()
