"""A version in a process of its own, with a worker's own code and no node around it: `python -m handlers.rehearsal`.

Its input is a line of requests, then one `Order` a line; it answers each with a `Done`, until its input ends. Nothing
is counted or kept, least of all the requests, and it gives way to whatever serves on this machine.
"""

import base64
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path

import orjson

from handlers.answer import BY_NODE, HTTP, NO_ID, Call
from handlers.base import BaseHandler
from handlers.captured import CapturedRequest, read_segment
from handlers.loading import open_handler
from handlers.protocol.oip_json import HEADER_LENGTH

LEAST_PRIORITY = 19


@dataclass(frozen=True)
class Order:
    """What to ask: batches of requests, each by its place among all."""

    batches: Sequence[Sequence[int]]
    answers: bool = False
    """Whether they are wanted back, or only how long they took."""


@dataclass(frozen=True)
class Done:
    seconds: Sequence[float]
    """That each batch took, from its bodies to its answers."""
    answers: Sequence[tuple[int, str]]
    """HTTP status and Open Inference JSON of each request, in order."""
    peak_bytes: int
    """The most memory that the process has had."""


def main(directory: str, model: str, version: str, workers: str) -> None:
    """Serve orders for the archive unpacked in `directory`, as one of so many workers."""
    os.nice(LEAST_PRIORITY)
    # What a handler of the user's prints must not stand between the lines of ours.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        handler = open_handler(Path(directory), model, version, workers=int(workers))
        segment = base64.b64decode(sys.stdin.readline())
        _serve(handler, list(read_segment(segment)), out)


def _serve(handler: BaseHandler, known: Sequence[CapturedRequest], out: TextIOWrapper) -> None:
    _say(out, Done((), (), _peak_bytes()))
    for line in sys.stdin:
        order = Order(**orjson.loads(line))
        seconds, answers = [], []
        for batch in order.batches:
            calls = [_call(known[at]) for at in batch]
            started = time.perf_counter()
            found = handler.answer(calls)
            seconds.append(time.perf_counter() - started)
            answers += [(answer.status, answer.body.decode()) for answer in found if order.answers]
        _say(out, Done(seconds, answers, _peak_bytes()))


def _call(request: CapturedRequest) -> Call:
    headers = {HEADER_LENGTH: str(request.header_length)}
    return Call(HTTP, None, "application/octet-stream", memoryview(request.body), headers, NO_ID, replay=BY_NODE)


def _say(out: TextIOWrapper, done: Done) -> None:
    out.write(orjson.dumps(asdict(done)).decode() + "\n")
    out.flush()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
