"""Counts of workers and replicas added up against one process that saw every row: the statistics must be the same."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from handlers.measured import Measured
from handlers.slots import UNIT, Counts, DriftCounter, Slot, counters_directory, read_counts
from monitoring import drift
from monitoring.profile import Profile
from monitoring.rff import Rff, digest
from tests.bench.drift.streams import Array
from tests.bench.findings import Finding

BAR = 1e-6
FEATURES, CLASSES, VALUES = 30, 3, 64
REFERENCE_ROWS, ROWS = 5000, 4000
SPLITS = ((1, 4), (3, 1), (4, 8))
"""Replicas, and worker slots of each."""
_MAX_BATCH = 40


def merging(seed: int) -> Finding:
    """The largest difference of any statistic, in any split; of those above 1 as a share."""
    random = np.random.default_rng([seed, 11])
    reference, rows = _measured(random, REFERENCE_ROWS, 0.0), _measured(random, ROWS, 0.1)
    assert reference.vectors is not None
    rff = Rff.fit(reference.vectors)
    names = [f"f{at}" for at in range(FEATURES)]
    profile = replace(
        Profile.build(
            dict(zip(names, reference.numbers.T, strict=True)),
            {},
            {},
            reference.probabilities,
            [str(at) for at in range(CLASSES)],
        ),
        rff=digest(rff.to_bytes()),
    )
    whole = _statistics(_counted(random, rows, profile, rff, 1, 1), profile)
    scale = np.maximum(1, np.abs(whole))
    furthest = max(
        float((np.abs(_statistics(_counted(random, rows, profile, rff, *split), profile) - whole) / scale).max())
        for split in SPLITS
    )
    return Finding("statistics of any split against one process", furthest, "difference", BAR, at_most=True)


def _measured(random: np.random.Generator, rows: int, shift: float) -> Measured:
    vectors = (random.standard_normal((rows, VALUES)) + shift).astype(np.float32)
    likely = random.dirichlet(np.ones(CLASSES), rows)
    return Measured(
        vectors[:, :FEATURES], np.empty((rows, 0), np.int64), np.empty((rows, 0), np.float32), likely, vectors
    )


def _counted(
    random: np.random.Generator, rows: Measured, profile: Profile, rff: Rff, replicas: int, slots: int
) -> Sequence[Counts]:
    """What each replica exports, after batches of any size went to any of its workers."""
    with tempfile.TemporaryDirectory() as place:
        directories = [
            counters_directory(Path(place) / str(replica), "m", "1", profile.to_json()) for replica in range(replicas)
        ]
        counters = [
            DriftCounter(directory, Slot(number, lock=-1), profile, rff)
            for directory in directories
            for number in range(slots)
        ]
        for batch in _batches(random, ROWS):
            counters[random.integers(len(counters))].count(_part(rows, batch))
        return [read_counts(directory, profile) for directory in directories]


def _batches(random: np.random.Generator, rows: int) -> Iterator[slice]:
    start = 0
    while start < rows:
        end = start + int(random.integers(1, _MAX_BATCH))
        yield slice(start, end)
        start = end


def _part(rows: Measured, batch: slice) -> Measured:
    assert rows.probabilities is not None
    assert rows.vectors is not None
    return Measured(
        rows.numbers[batch], rows.codes[batch], rows.outputs[batch], rows.probabilities[batch], rows.vectors[batch]
    )


def _statistics(replicas: Sequence[Counts], profile: Profile) -> Array:
    """PSI, its excess and z of every feature, T^2 and the mean confidence, of sums over replicas as in the rules."""
    rows = sum(counts.rows for counts in replicas)
    bins = np.split(np.sum([counts.bins for counts in replicas], axis=0), profile.layout.offsets[1:])
    compared = [
        drift.compare(counts, feature.reference) for counts, feature in zip(bins, profile.features, strict=True)
    ]
    sums = np.sum([counts.rff / UNIT for counts in replicas], axis=0)
    confidence = sum(counts.confidence / UNIT for counts in replicas) / rows
    return np.array(
        [
            *(value for one in compared for value in (one.psi, one.psi_excess, one.z)),
            drift.rff_t2(sums, rows, rows, profile.rows),
            confidence,
        ],
        dtype=np.float64,
    )
