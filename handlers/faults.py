"""What makes a bad version of a good one, for drills. The entry file of such an archive calls one of these functions.

Each changes the one class of the entry file, so a handler of the user's own becomes bad too. The node's own replay of
the golden set is answered well: a bad version is one that no look at it before its traffic has found out.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from handlers.answer import BY_NODE, Answer, Call
from handlers.base import Array, BaseHandler
from handlers.errors import HandlerError, InvalidRequest, PredictionFailed, Words
from handlers.tensors import InferRequest

Handler = type[BaseHandler]

SHARE = 0.5
"""Of the clients' requests, that a faulty version treats badly."""
DYING_SHARE = 0.02
"""Of the requests, that end the worker: of more it would never be there."""
DELAY_SECONDS = 0.3
"""Of every batch."""
LEAK_BYTES = 2**20
"""Of every request."""
LEAK_LIMIT_BYTES = 2**29
"""A drill must not take all memory of a machine that serves others."""
ODDS = 4.0
"""Times which one class becomes more likely against the others."""
SCALE = 1.5
"""Times which the answers of a model without classes grow."""


def slow(handler: Handler) -> None:
    _before(handler, lambda _: time.sleep(DELAY_SECONDS))


def leaking(handler: Handler) -> None:
    kept: list[bytes] = []

    def leak(calls: Sequence[Call]) -> None:
        room = LEAK_LIMIT_BYTES // LEAK_BYTES - len(kept)
        kept.extend(b"\1" * LEAK_BYTES for _ in calls[:room])  # zeros would take no memory

    _before(handler, leak)


def dying(handler: Handler) -> None:
    def end(calls: Sequence[Call]) -> None:
        if any(_meant(DYING_SHARE) for _ in calls):
            os._exit(1)

    _before(handler, end)


def resetting(handler: Handler) -> None:
    """The connection is closed where an answer should be."""
    answered = handler.answer

    def answer(self: BaseHandler, calls: Sequence[Call]) -> list[Answer]:
        answers = answered(self, calls)
        return answers if _replay(calls) else [_NoAnswer() if _meant() else one for one in answers]

    handler.answer = answer  # type: ignore[method-assign]


def erring(handler: Handler) -> None:
    _raising(handler, PredictionFailed(ArithmeticError("of a drill")))


def refusing(handler: Handler) -> None:
    """Requests with nothing wrong in them are said to be."""
    _raising(handler, InvalidRequest("inputs", "refused by a drill", found=Words("nothing wrong")))


def changed(handler: Handler) -> None:
    """The answers are those of another prior of the classes; of numbers, larger ones. The golden set has them too."""
    ran = handler.run

    def run(self: BaseHandler, inputs: list[Array]) -> list[Array]:
        first, *others = ran(self, inputs)
        return [_moved(first, classes=bool(self.classes)), *others]

    handler.run = run  # type: ignore[method-assign]


def wrong(handler: Handler) -> None:
    """Each row gets the answer of the row before it: what is answered is as ever, and wrong."""
    ran, clients = handler.run, _clients(handler)
    last: list[Array] = []

    def run(self: BaseHandler, inputs: list[Array]) -> list[Array]:
        outputs = ran(self, inputs)
        if not clients():
            return outputs
        ends = [output[-1:] for output in outputs]
        before, last[:] = [*last] or ends, ends
        return [np.concatenate([one, output[:-1]]) for one, output in zip(before, outputs, strict=True)]

    handler.run = run  # type: ignore[method-assign]


class _NoAnswer(Answer):
    """Nothing to say: the worker's server takes that for the edge's hanging up, and closes the connection."""

    def __init__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        """Whatever the server wants of it first."""
        raise ConnectionResetError


def _before(handler: Handler, does: Callable[[Sequence[Call]], None]) -> None:
    """Have `does` look at every batch of clients' requests before it is answered."""
    answered = handler.answer

    def answer(self: BaseHandler, calls: Sequence[Call]) -> list[Answer]:
        if not _replay(calls):
            does(calls)
        return answered(self, calls)

    handler.answer = answer  # type: ignore[method-assign]


def _raising(handler: Handler, error: HandlerError) -> None:
    """Have clients' requests raise when they are read, each by itself."""
    read, read_plain, clients = handler.read, handler.read_plain, _clients(handler)

    def refuse() -> None:
        if clients() and _meant():
            raise error

    def reads(self: BaseHandler, request: InferRequest) -> tuple[object, int]:
        refuse()
        return read(self, request)

    def reads_plain(self: BaseHandler, call: Call) -> tuple[object, int, bool]:
        refuse()
        return read_plain(self, call)

    handler.read, handler.read_plain = reads, reads_plain  # type: ignore[method-assign]


def _clients(handler: Handler) -> Callable[[], bool]:
    """Whether the batch that is being answered now is clients'."""
    answered, clients = handler.answer, False

    def answer(self: BaseHandler, calls: Sequence[Call]) -> list[Answer]:
        nonlocal clients
        clients = not _replay(calls)
        try:
            return answered(self, calls)
        finally:
            clients = False

    handler.answer = answer  # type: ignore[method-assign]
    return lambda: clients


def _moved(values: Array, *, classes: bool) -> Array:
    if not classes:
        return (values * SCALE).astype(values.dtype)
    if values.ndim == 1:  # of two classes, the second's probability alone
        return (values * ODDS / (values * ODDS + 1 - values)).astype(values.dtype)
    odds = values.copy()
    odds[:, -1] *= ODDS
    moved: Array = odds / odds.sum(axis=1, keepdims=True)
    return moved


def _replay(calls: Sequence[Call]) -> bool:
    """Whether the node itself replays its golden set. Copies of clients' requests are answered as theirs are."""
    return any(call.replay == BY_NODE for call in calls)


def _meant(share: float = SHARE) -> bool:
    return random.random() < share  # noqa: S311 - no secret depends on it
