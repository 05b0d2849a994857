"""Two versions side by side outside traffic: each in a process of its own that runs a worker's own code."""

import asyncio
import base64
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import orjson
import yaml

from deploy.errors import RehearsalFailed
from deploy.node.torchserve import THREADS
from deploy.rollout.record import Release
from handlers.captured import CapturedRequest
from model_store.archive import archive_name, signature_path, unpack, verify_archive
from model_store.errors import ArchiveMissing
from model_store.signing import TrustedKeys

ANSWERED_WITHIN_SECONDS = 600.0
"""All requests together, once; and the loading of the version."""
TIMED_SECONDS = 2.0
"""What one pass of timing takes, about: fewer requests are timed where each takes long."""
LEAST_TIMED = 8
ROUNDS = 2
_MAX_LINE_BYTES = 1 << 30
_MS = 1000.0

Answer = tuple[int, bytes]
"""HTTP status and Open Inference JSON."""


@dataclass(frozen=True)
class Cost:
    """What a version takes, in a process without traffic and of the least priority."""

    alone_p50_ms: float
    """Of one request by itself."""
    alone_p95_ms: float
    batch_p50_ms: float
    """Of a request in a full batch: the batch's time over its requests."""
    peak_mib: float
    """The most memory of the process, the handlers' libraries included."""


@dataclass(frozen=True)
class Rehearsed:
    """Each version's answers to all requests in order, and its cost."""

    answers: tuple[Sequence[Answer], Sequence[Answer]]
    costs: tuple[Cost, Cost]


@dataclass(frozen=True)
class Unpacked:
    """A release in a directory of its own."""

    release: Release
    directory: Path
    batch_size: int
    workers: int


def unpack_release(archives_dir: Path, trusted: TrustedKeys, model: str, release: Release, into: Path) -> Unpacked:
    """Unpack a copy of the archive that was verified, below `into`. Raises ArchiveMissing, ArchiveRefused."""
    source = archives_dir / archive_name(model, release.version, release.digest)
    if not source.is_file() or not signature_path(source).is_file():
        raise ArchiveMissing(source if not source.is_file() else signature_path(source))
    copy = into / source.name
    for path in (source, signature_path(source)):
        shutil.copyfile(path, into / path.name)
    verify_archive(copy, model, release.version, release.digest, trusted)
    directory = unpack(copy)
    copy.unlink()
    plan = yaml.safe_load((directory / "model-config.yaml").read_text())
    return Unpacked(release, directory, int(plan["batchSize"]), int(plan["minWorkers"]))


async def rehearse(
    model: str, champion: Unpacked, candidate: Unpacked, requests: Sequence[CapturedRequest], into: Path
) -> Rehearsed:
    """Ask both for all requests, and time them by turns. Raises RehearsalFailed."""
    logs = into / "champion.log", into / "candidate.log"
    async with _actor(model, champion, logs[0]) as one, _actor(model, candidate, logs[1]) as other:
        await asyncio.gather(one.learn(requests), other.learn(requests))
        answers = [await actor.answers(len(requests)) for actor in (one, other)]
        timed = list(range(min(len(requests), one.affordable, other.affordable)))
        for turn in (one, other, other, one) * ROUNDS:
            await turn.time(timed)
        return Rehearsed((answers[0], answers[1]), (one.cost(), other.cost()))


class _Done(TypedDict):
    """What `handlers/rehearsal.py` says; that module loads torch, which is not wanted here."""

    seconds: list[float]
    answers: list[tuple[int, str]]
    peak_bytes: int


class Actor:
    """One version's process."""

    def __init__(self, version: Unpacked, process: asyncio.subprocess.Process, log: Path) -> None:
        self._version, self._process, self._log = version, process, log
        self._orders = cast(asyncio.StreamWriter, process.stdin)
        self._heard = cast(asyncio.StreamReader, process.stdout)
        self._alone: list[float] = []
        self._batched: list[float] = []
        self._peak_bytes = 0
        self.affordable = LEAST_TIMED
        """Requests that one pass of timing has time for."""

    async def learn(self, requests: Sequence[CapturedRequest]) -> None:
        """Return when it has loaded its version and knows the requests, of which no file is made: it might stay."""
        segment = b"".join(request.to_bytes() for request in requests)
        self._orders.write(base64.b64encode(segment) + b"\n")
        await self._hear()

    async def answers(self, count: int) -> list[Answer]:
        done = await self._do([[at] for at in range(count)], answers=True)
        self.affordable = max(LEAST_TIMED, int(count * TIMED_SECONDS / max(sum(done["seconds"]), 1e-6)))
        return [(status, body.encode()) for status, body in done["answers"]]

    async def time(self, requests: Sequence[int]) -> None:
        """Each request by itself, then all of them in batches as large as a worker takes them."""
        self._alone += (await self._do([[at] for at in requests]))["seconds"]
        size = self._version.batch_size
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        seconds = (await self._do(batches))["seconds"]
        self._batched += [each / len(batch) for each, batch in zip(seconds, batches, strict=True)]

    def cost(self) -> Cost:
        return Cost(
            alone_p50_ms=_quantile(self._alone, 0.5) * _MS,
            alone_p95_ms=_quantile(self._alone, 0.95) * _MS,
            batch_p50_ms=_quantile(self._batched, 0.5) * _MS,
            peak_mib=self._peak_bytes / 2**20,
        )

    async def _do(self, batches: Sequence[Sequence[int]], *, answers: bool = False) -> _Done:
        self._orders.write(orjson.dumps({"batches": batches, "answers": answers}) + b"\n")
        return await self._hear()

    async def _hear(self) -> _Done:
        try:
            line = await asyncio.wait_for(self._heard.readline(), ANSWERED_WITHIN_SECONDS)
        except TimeoutError:
            raise self._failure(f"it took longer than {ANSWERED_WITHIN_SECONDS:g} s") from None
        if not line:
            raise self._failure(f"its process ended with {await self._process.wait()}")
        done: _Done = orjson.loads(line)
        self._peak_bytes = max(self._peak_bytes, done["peak_bytes"])
        return done

    def _failure(self, reason: str) -> RehearsalFailed:
        return RehearsalFailed(self._version.release.version, reason, self._log.read_text(errors="replace"))


@asynccontextmanager
async def _actor(model: str, version: Unpacked, log: Path) -> AsyncIterator[Actor]:
    """A version's process, which ends with the block, and when this process ends, as it reads no more orders then."""
    arguments = (version.directory, model, version.release.version, version.workers)
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "handlers.rehearsal",
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **THREADS},
            limit=_MAX_LINE_BYTES,
            start_new_session=True,  # a terminal's Ctrl-C is for the command, which then ends this
        )
    actor = Actor(version, process, log)
    try:
        yield actor
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
