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

from handlers.measured import Measured
from monitoring.prediction import predicted
from monitoring.profile import Profile
from monitoring.rff import CUT, DIMENSIONS, Rff

MAX_SLOTS = 1024
UNIT = 1 << 24
"""Sums are kept as whole numbers of this part of 1, so that they add up exactly, in any order."""

# A file holds the number of rows, the sum of confidences, those of the random Fourier features, and the bins.
_ROWS, _CONFIDENCE, _RFF, _BINS = 0, 1, slice(2, 2 + DIMENSIONS), 2 + DIMENSIONS

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """What all workers of a version have counted."""

    rows: int
    confidence: int
    """Sum over rows, in UNIT."""
    rff: IntArray
    """Sum over rows of each dimension raised by CUT, in UNIT, [DIMENSIONS]."""
    bins: IntArray
    """Rows of each bin of the profile, in its order."""


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

    def __init__(self, directory: Path, slot: Slot, profile: Profile, rff: Rff | None = None) -> None:
        """`directory` is the version's own, see `counters_directory`; `rff` is the profile's map where it has one."""
        self.measures = bool(profile.features or rff)
        """Whether there is a profile to count into; without one rows are counted, and nothing of them."""
        self._binner = profile.binner()
        self._rff = rff
        path = directory / f"{slot.number}.i64"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = _BINS + profile.layout.size
        # Grown with zeros where it is short; an existing file of a dead worker keeps its counts. Allocated now, because
        # writing into a hole of a mapped file kills the process once the disk is full.
        with path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size * 8)
        # A plain array over the mapped file: indexing numpy's own class for such files takes three times as long.
        self._counts: IntArray = np.asarray(np.memmap(path, dtype=np.int64, mode="r+", shape=(size,)))
        self._bins, self._sums = self._counts[_BINS:], self._counts[_RFF]

    def count(self, measured: Measured) -> None:
        """Count the rows of a batch, all of them or, where it raises, none."""
        bins, confidence, sums = self.found(measured)
        if len(bins) == 1:
            self._bins[bins[0]] += 1  # a row's bins differ, so plain indexing counts each once
        else:
            self._bins += np.bincount(bins.ravel(), minlength=len(self._bins))
        if sums is not None:
            self._sums += sums
        self._counts[_CONFIDENCE] += confidence
        self._counts[_ROWS] += len(bins)

    def found(self, measured: Measured) -> tuple[IntArray, int, IntArray | None]:
        """What `count` adds for a batch: its rows' bins, their confidence, and the sums of a map. All that may raise.

        ValueError where the rows are not those that the profile was made of.
        """
        values, codes = [measured.numbers, measured.outputs], [measured.codes]
        confidence, sums = 0, None
        if measured.probabilities is not None:
            found, sure = predicted(measured.probabilities)
            values.append(sure)
            codes.append(found)
            confidence = sum([int(UNIT * min(each, 1.0)) for each in sure[:, 0].tolist() if each > 0])
        bins = self._binner(values, codes)
        if self._rff is not None:
            width = 0 if measured.vectors is None else measured.vectors.shape[1]
            if measured.vectors is None or width != len(self._rff.frequencies):
                taken = len(self._rff.frequencies)
                raise ValueError(f"its random Fourier features are of {taken} values a row; the handler gives {width}")
            # Each row is rounded by itself, so that sums of rounded rows add up exactly.
            sums = np.rint((self._rff(measured.vectors) + CUT) * UNIT).astype(np.int64).sum(axis=0)
        return bins, confidence, sums

    def count_rows(self, rows: int) -> None:
        """Count rows whose values stand in no profile."""
        self._counts[_ROWS] += rows


def read_counts(directory: Path, profile: Profile) -> Counts:
    """Counts of all slots of a version's directory added up."""
    total: IntArray = np.zeros(_BINS + profile.layout.size, dtype=np.int64)
    for path in directory.glob("*.i64"):
        counts = np.fromfile(path, dtype=np.int64)
        if len(counts) == len(total):  # a file that is being made may still be short, and is all zeros then
            total += counts
    return Counts(int(total[_ROWS]), int(total[_CONFIDENCE]), total[_RFF], total[_BINS:])


def counters_directory(directory: Path, model: str, version: str, profile_json: bytes) -> Path:
    """Where the slots of one version count.

    Its name holds the version, because two versions may have the same profile, and the profile, which names its map of
    random Fourier features, so that counts are never added to those of another layout or map.
    """
    return directory / f"{model}-{version}-{hashlib.sha256(profile_json).hexdigest()[:16]}"
