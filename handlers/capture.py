"""A worker's end of capturing: after its answers are on their way, it keeps some of the requests for `shipway plan`.

Nothing here may cost an answer: faults are counted, and all of it together takes at most a small part of the time.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import orjson

from handlers.captured import CapturedRequest, Segments
from handlers.protocol import oip_json
from handlers.tensors import Tensor

logger = logging.getLogger(__name__)

CAPTURE = "SHIPWAY_CAPTURE"
"""What to capture, a Plan as JSON; the node sets it in TorchServe's environment where its settings allow it."""
GOLDEN = "golden.json"

TIME_SHARE = 0.05
"""Of a worker's time, that capturing may take."""
BURST_SECONDS = 1.0
"""That it may take at once after a quiet time."""
LOG_SECONDS = 60.0
"""A fault that stays is logged no oftener."""

Outcome = Literal["kept", "busy", "too_large", "failed"]
"""`busy`: it would have taken too much time; `failed`: it could not be written, or not masked."""


@dataclass(frozen=True)
class Plan:
    """What workers capture, and where it may lie."""

    directory: str
    share: float
    """Of the requests, between 0 and 1."""
    max_bytes: int
    keep_seconds: float
    mask: tuple[str, ...] = ()
    """Inputs that are never written: the golden set's value takes their place."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = orjson.loads(text)
        return cls(**{**fields, "mask": tuple(fields["mask"])})

    def to_json(self) -> str:
        """For the environment of the workers."""
        return orjson.dumps(asdict(self)).decode()

    @property
    def segments(self) -> Segments:
        return Segments(Path(self.directory), self.max_bytes, self.keep_seconds)


@dataclass(frozen=True)
class Asked:
    """A request that was answered: what is known of it without looking into it."""

    id: str
    protocol: str
    tensors: Callable[[], Sequence[Tensor]]
    """Its inputs, which are only made of it if there is time."""


class Capture:
    """Of one version, in one worker."""

    def __init__(
        self,
        plan: Plan,
        model: str,
        version: int,
        golden: bytes,
        count: Callable[[Outcome], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`golden` is the version's `golden.json`, which is looked at only for a mask."""
        self._plan, self._segments = plan, plan.segments
        self._model, self._version = model, version
        self._stand_ins = _stand_ins(golden, plan.mask)
        self._count, self._clock = count, clock
        self._seconds_left, self._at = BURST_SECONDS, clock()
        self._logged_at = -LOG_SECONDS
        self._waiting: list[Asked] = []
        self._segment = -1
        self._size, self._until = 0, 0.0

    def wants(self) -> bool:
        """Whether the next request is one of those that are kept: a matter of chance."""
        return random.random() < self._plan.share  # noqa: S311 - a sample, and no secret

    def note(self, asked: Asked) -> None:
        """To be kept when `write` is called."""
        self._waiting.append(asked)

    def write(self) -> None:
        """Keep what was noted. It never raises."""
        waiting, self._waiting = self._waiting, []
        for asked in waiting:
            now = self._clock()
            self._seconds_left = min(BURST_SECONDS, self._seconds_left + TIME_SHARE * (now - self._at))
            self._at = now
            if self._seconds_left <= 0:
                self._count("busy")
                continue
            try:
                self._count(self._keep(asked, time.time()))
            except Exception as error:  # noqa: BLE001 - a full disk, or a kind of the user's own: it costs no answer
                self._after_fault(error, now)
            self._seconds_left -= self._clock() - now

    def _keep(self, asked: Asked, now: float) -> Outcome:
        tensors = [self._masked(tensor) for tensor in asked.tensors()]
        body, header_length = oip_json.encode_request(tensors)
        masked = tuple(tensor.name for tensor in tensors if tensor.name in self._stand_ins)
        request = CapturedRequest(asked.id, self._version, now, asked.protocol, masked, header_length, body)
        data = request.to_bytes()
        if len(data) > self._segments.segment_bytes:
            return "too_large"
        segment = self._segment_for(len(data), now)
        if os.write(segment, data) < len(data):
            raise OSError("the disk is full: a request was written in part")
        self._size += len(data)
        return "kept"

    def _segment_for(self, size: int, now: float) -> int:
        """The descriptor of one that is still there, is not too old, and has room."""
        full = self._size + size > self._segments.segment_bytes
        if self._segment < 0 or full or now > self._until or not os.fstat(self._segment).st_nlink:
            self._let_go()
            self._segment = self._segments.create(self._model, now)
            self._size, self._until = 0, now + self._segments.span_seconds
        return self._segment

    def _masked(self, tensor: Tensor) -> Tensor:
        if tensor.name not in self._plan.mask:
            return tensor
        return _repeated(self._stand_ins[tensor.name], tensor.shape[0])

    def _after_fault(self, error: Exception, now: float) -> None:
        self._count("failed")
        self._let_go()  # behind a request that is cut off nothing could be read
        if now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            # Its words alone: a traceback's could show a client's values.
            logger.error("a request was answered but not captured: %s: %s", type(error).__name__, error)

    def _let_go(self) -> None:
        if self._segment >= 0:
            with suppress(OSError):
                os.close(self._segment)
        self._segment = -1


def capture_of(directory: Path, model: str, version: str, count: Callable[[Outcome], None]) -> Capture | None:
    """What the node's settings allow of the version in `directory`; None where they allow nothing."""
    said = os.environ.get(CAPTURE)
    if not said:
        return None
    plan = Plan.from_json(said)
    golden = (directory / GOLDEN).read_bytes() if plan.mask else b""
    return Capture(plan, model, int(version), golden, count)


def _stand_ins(golden: bytes, mask: Sequence[str]) -> Mapping[str, Tensor]:
    """One row of each input that is masked, of the golden set, so that the version takes it as any other."""
    if not mask:
        return {}
    request = oip_json.decode(memoryview(orjson.dumps(orjson.loads(golden)["request"])), None)
    return {tensor.name: _first_row(tensor) for tensor in request.inputs if tensor.name in mask}


def _first_row(tensor: Tensor) -> Tensor:
    rows, *rest = tensor.shape
    return Tensor(tensor.name, tensor.datatype, (1, *rest), tensor.values[: len(tensor.values) // rows])


def _repeated(row: Tensor, rows: int) -> Tensor:
    values = row.values * rows if isinstance(row.values, list) else np.tile(row.values, rows)
    return Tensor(row.name, row.datatype, (rows, *row.shape[1:]), values)
