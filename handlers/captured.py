"""Captured requests: what clients asked, kept for `shipway plan` where the node's settings allow it, and nowhere else.

They lie in segments, one worker's requests of some time each, which only grow and then go as a whole: so all of them
together never take more room than they may, and none is older than it may be. A worker that is killed leaves at most
one request that is cut off, the last of its segment, which is skipped.
"""

import fcntl
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import orjson

SEGMENTS = 64
"""At most, of all workers and models together; each may be this part of all the room."""
SPANS = 8
"""A segment's requests come from this part of the time that requests are kept."""
_SUFFIX = ".requests"
_FRAME = struct.Struct("<II")
"""Before each request: its length, and its CRC-32."""


@dataclass(frozen=True)
class CapturedRequest:
    """One answered request, its inputs as an HTTP request of the Open Inference Protocol with binary tensors."""

    id: str
    """Of the prediction; the client has it too."""
    version: int
    """That answered."""
    at: float
    """When it was answered, a Unix time."""
    protocol: str
    """By which it came."""
    masked: tuple[str, ...]
    """Inputs whose values are not the client's."""
    header_length: int
    """Bytes of the body that are JSON."""
    body: bytes

    def to_bytes(self) -> bytes:
        """As it stands in a segment."""
        head = {name: value for name, value in vars(self).items() if name != "body"}
        content = orjson.dumps(head) + b"\n" + self.body
        return _FRAME.pack(len(content), zlib.crc32(content)) + content

    @classmethod
    def from_content(cls, content: bytes) -> Self:
        """Raises ValueError, KeyError or TypeError for what no worker writes."""
        head, _, body = content.partition(b"\n")
        fields = orjson.loads(head)
        return cls(**{**fields, "masked": tuple(fields["masked"])}, body=body)


def read_segment(data: bytes) -> Iterator[CapturedRequest]:
    """Its requests, the oldest first; what stands behind one that is cut off or damaged cannot be read."""
    at = 0
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        content = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(content) < length or zlib.crc32(content) != checksum:
            return
        yield CapturedRequest.from_content(content)
        at += _FRAME.size + length


@dataclass(frozen=True)
class Segments:
    """All segments of a node, below one directory of mode 0700, a directory for each model."""

    directory: Path
    max_bytes: int
    keep_seconds: float

    @property
    def segment_bytes(self) -> int:
        """The most that one of them may hold."""
        return self.max_bytes // SEGMENTS

    @property
    def span_seconds(self) -> float:
        """From a segment's making to its last request."""
        return self.keep_seconds / SPANS

    def create(self, model: str, now: float) -> int:
        """The descriptor of a new segment; the oldest go where there would be too many. OSError as ever."""
        with self._locked():
            self._remove_expired(now)
            paths = self._paths()
            for path in paths[: max(0, len(paths) - SEGMENTS + 1)]:
                path.unlink(missing_ok=True)
            (self.directory / model).mkdir(mode=0o700, exist_ok=True)
            path = self.directory / model / f"{int(now * 1000):015d}-{secrets.token_hex(4)}{_SUFFIX}"
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def remove_expired(self, now: float) -> None:
        """Remove segments whose first request may be older than it may be. OSError as ever."""
        if self.directory.is_dir():
            with self._locked():
                self._remove_expired(now)

    def newest(self, model: str, count: int, now: float) -> list[CapturedRequest]:
        """At most `count` requests that are not too old, the newest first."""
        if count < 1:
            return []
        found: list[CapturedRequest] = []
        for written, path in sorted(_written(self._paths(model)), reverse=True):
            # Workers write at the same time: one that was begun earlier may hold what is newer.
            if len(found) >= count and written < found[count - 1].at:
                break
            with suppress(FileNotFoundError):  # it was just removed
                found += [each for each in read_segment(path.read_bytes()) if now - each.at <= self.keep_seconds]
                found = sorted(found, key=lambda each: -each.at)[:count]
        return found

    def _remove_expired(self, now: float) -> None:
        for path in self._paths():
            if now - int(path.name.partition("-")[0]) / 1000 > self.keep_seconds:
                path.unlink(missing_ok=True)

    def _paths(self, model: str = "*") -> list[Path]:
        """The oldest first."""
        return sorted(self.directory.glob(f"{model}/*{_SUFFIX}"), key=lambda path: path.name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Workers make segments one after the other, or there would be more than there may be."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _written(paths: Iterable[Path]) -> Iterator[tuple[float, Path]]:
    """When each that is still there was written to last."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime, path
