"""Counters that outlive their worker: fixed arrays of int64 in memory-mapped files, one per worker slot.

A worker takes the first slot whose lock is free; its death frees the lock, whatever killed it, and the next worker
goes on counting in the same file. So nothing is lost, nothing is counted twice, and files do not pile up.
"""

import fcntl
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from monitoring.profile import Profile

MAX_SLOTS = 1024
ROWS = 0
"""Index of the number of rows; the profile's bins follow it."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Slot:
    """A worker's place among all workers of the node, held until the process ends."""

    number: int
    lock: int  # file descriptor; closing it would give the slot away


def take_slot(directory: Path) -> Slot:
    """The first free slot below `directory`. OSError when none of `MAX_SLOTS` is free."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(MAX_SLOTS):
        lock = os.open(directory / f"slot-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return Slot(number, lock)
    raise OSError(f"no worker slot is free in {directory}: all {MAX_SLOTS} are taken")


class DriftCounter:
    """Counts rows into the bins of one version's profile, in this worker's slot."""

    def __init__(self, directory: Path, slot: Slot, profile: Profile) -> None:
        """`directory` is the version's own, see `counters_directory`."""
        self._binner = profile.binner()
        path = directory / f"{slot.number}.i64"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 1 + profile.layout.size
        # Grown with zeros where it is short; an existing file of a dead worker keeps its counts. Allocated now, because
        # writing into a hole of a mapped file kills the process once the disk is full.
        with path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size * 8)
        # A plain array over the mapped file: indexing numpy's own class for such files takes three times as long.
        self._counts: IntArray = np.asarray(np.memmap(path, dtype=np.int64, mode="r+", shape=(size,)))
        self._bins = self._counts[1:]

    def count(self, numbers: npt.NDArray[np.float32], codes: IntArray, outputs: npt.NDArray[np.float32]) -> None:
        """Count n rows: numbers [n, F], codes [n, C], outputs [n, O], in the order of the profile's features."""
        bins = self._binner(numbers, codes, outputs)
        if len(bins) == 1:
            self._bins[bins[0]] += 1  # a row's bins differ, so plain indexing counts each once
        else:
            self._bins += np.bincount(bins.ravel(), minlength=len(self._bins))
        self._counts[ROWS] += len(bins)

    def count_rows(self, rows: int) -> None:
        """Count rows whose values stand in no profile."""
        self._counts[ROWS] += rows


def read_counts(directory: Path, profile: Profile) -> IntArray:
    """Counts of all slots of a version's directory added up, int64 [1 + bins]: the rows, then each bin."""
    total: IntArray = np.zeros(1 + profile.layout.size, dtype=np.int64)
    for path in directory.glob("*.i64"):
        counts = np.fromfile(path, dtype=np.int64)
        if len(counts) == len(total):  # a file that is being made may still be short, and is all zeros then
            total += counts
    return total


def counters_directory(directory: Path, model: str, version: str, profile_json: bytes) -> Path:
    """Where the slots of one version count.

    Its name holds the version, because two versions may have the same profile, and the profile, so that counts are
    never added to those of another layout.
    """
    return directory / f"{model}-{version}-{hashlib.sha256(profile_json).hexdigest()[:16]}"
