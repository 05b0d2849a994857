"""Slots: taken once each by real processes, taken over after SIGKILL, and counted in without loss."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers import slots
from handlers.measured import Measured, no_codes
from handlers.slots import UNIT, DriftCounter, Slot, counters_directory, read_counts, take_slot
from monitoring.profile import Feature, Profile
from monitoring.rff import CUT, Rff

PROFILE = Profile(
    rows=0,
    features=(
        Feature("delay", "number", (0.0, 10.0), (), (0, 0, 0), 0),
        Feature("carrier", "category", (), ("AA", "UA"), (0, 0, 0), 0),
        Feature("probability", "output", (0.5,), (), (0, 0), 0),
    ),
)
# Bins: delay 3 + missing | carrier 2 + other + missing | probability 2 + missing

TAKE = """
import sys
from pathlib import Path
from handlers.slots import take_slot
print(take_slot(Path(sys.argv[1])).number, flush=True)
sys.stdin.read()
"""
TAKE_AND_FORK = """
import os, sys
from pathlib import Path
from handlers.slots import take_slot
print(take_slot(Path(sys.argv[1])).number, flush=True)
if os.fork() == 0:
    sys.stdin.read()  # until the test closes the pipe
"""
COUNT = """
import sys
from pathlib import Path
import numpy as np
from handlers.measured import Measured
from handlers.slots import DriftCounter, take_slot
from monitoring.profile import Profile
directory = Path(sys.argv[1])
slot = take_slot(directory)
counter = DriftCounter(directory / "counts", slot, Profile.from_json((directory / "profile.json").read_bytes()))
rows = Measured(np.zeros((3, 1), np.float32), np.zeros((3, 1), np.int64), np.zeros((3, 1), np.float32))
print(slot.number, flush=True)
while True:
    counter.count(rows)
    sys.stdout.write(".")  # the answer: counted before it goes out
    sys.stdout.flush()
"""


@contextlib.contextmanager
def process(source: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", source, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def number(running: subprocess.Popen[str]) -> int:
    """The slot that a process says it has taken."""
    assert running.stdout is not None
    return int(running.stdout.readline())


def test_processes_take_different_slots_and_the_next_takes_what_is_freed(tmp_path: Path) -> None:
    with process(TAKE, tmp_path) as first, process(TAKE, tmp_path) as second:
        assert {number(first), number(second)} == {0, 1}
        assert take_slot(tmp_path).number == 2
        second.kill()
        second.wait()
    with process(TAKE, tmp_path) as third:
        assert number(third) in (0, 1)


def test_successor_of_a_killed_worker_takes_its_slot_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_bytes(PROFILE.to_json())
    answered = 0
    for _ in range(2):
        with process(COUNT, tmp_path) as running:
            assert number(running) == 0
            assert running.stdout is not None
            answered += len(running.stdout.read(200))
            os.kill(running.pid, signal.SIGKILL)
            answered += len(running.stdout.read())
    counts = read_counts(tmp_path / "counts", PROFILE)
    # Whatever was answered was counted; each killed process may have counted one batch more than it answered.
    assert 3 * answered <= counts.rows <= 3 * (answered + 2)
    # Killed between two bins, a batch may be in one of them only; no answered one is, and none is there twice.
    for bins in np.split(counts.bins, np.cumsum(PROFILE.layout.bins)[:-1]):
        assert 3 * answered <= bins.sum() <= 3 * (answered + 2)
    assert [path.name for path in (tmp_path / "counts").iterdir()] == ["0.i64"]


def test_full_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_SLOTS", 1)
    with process(TAKE, tmp_path) as holder:
        assert number(holder) == 0
        with pytest.raises(OSError, match=r"no worker slot is free in .*: all 1 are taken"):
            take_slot(tmp_path)


ROWS = st.lists(
    st.tuples(
        st.floats(width=32),
        st.integers(0, 2),
        st.floats(0, 1, width=32),
        st.integers(0, 2),  # the slot that counts it
        st.booleans(),  # whether a new batch begins with it
    ),
    max_size=40,
)


@given(ROWS)
def test_counts_equal_a_plain_reference_however_rows_are_split(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, float, int, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("counts")
    counters = [DriftCounter(directory, Slot(slot, lock=-1), PROFILE) for slot in range(3)]
    for batch in split(rows):
        numbers = np.array([[row[0]] for row in batch], dtype=np.float32)
        codes = np.array([[row[1]] for row in batch], dtype=np.int64)
        outputs = np.array([[row[2]] for row in batch], dtype=np.float32)
        counters[batch[0][3]].count(Measured(numbers, codes, outputs))
    counts = read_counts(directory, PROFILE)
    assert [counts.rows, *counts.bins] == reference(rows)


def split(rows: list[tuple[float, int, float, int, bool]]) -> list[list[tuple[float, int, float, int, bool]]]:
    batches: list[list[tuple[float, int, float, int, bool]]] = []
    for row in rows:
        if row[4] or not batches:
            batches.append([])
        batches[-1].append(row)
    return batches


def reference(rows: list[tuple[float, int, float, int, bool]]) -> list[int]:
    found = [0] * (1 + 4 + 4 + 3)
    for delay, carrier, probability, _, _ in rows:
        found[0] += 1
        found[1 + (3 if delay != delay else (delay >= 0) + (delay >= 10))] += 1  # noqa: PLR0124 - NaN
        found[5 + carrier] += 1
        found[9 + (probability >= 0.5)] += 1
    return found


def test_versions_with_the_same_profile_count_apart(tmp_path: Path) -> None:
    profile_json = PROFILE.to_json()
    paths = {counters_directory(tmp_path, model, version, profile_json) for model in "ab" for version in ("1", "2")}
    assert len(paths) == 4
    assert counters_directory(tmp_path, "a", "1", b"other") not in paths


def test_file_that_is_being_made_is_not_read(tmp_path: Path) -> None:
    assert read_counts(tmp_path / "none", PROFILE).rows == 0
    (tmp_path / "0.i64").write_bytes(np.array([7]).tobytes())
    counts = read_counts(tmp_path, PROFILE)
    assert (counts.rows, counts.bins.tolist()) == (0, [0] * 11)


def test_slot_is_free_although_a_child_of_its_worker_lives_on(tmp_path: Path) -> None:
    """A model may start a process of its own, which outlives the worker."""
    with process(TAKE_AND_FORK, tmp_path) as parent:
        assert number(parent) == 0
        parent.wait()
        assert take_slot(tmp_path).number == 0


def test_rows_without_values_are_counted_beside_an_empty_profile(tmp_path: Path) -> None:
    empty = Profile(rows=0, features=())
    counter = DriftCounter(tmp_path, Slot(0, lock=-1), empty)
    counter.count_rows(3)
    counter.count_rows(1)
    counts = read_counts(tmp_path, empty)
    assert (counts.rows, counts.bins.tolist(), counter.measures) == (4, [], False)


CLASSES = ("no", "yes", "perhaps")


def pictures(rows: int, seed: int) -> Measured:
    """What a classifier of pictures measures, a row without a probability among them."""
    random = np.random.default_rng(seed)
    likely = random.dirichlet(np.ones(3), rows).astype(np.float32)
    likely[rows // 2] = np.nan
    vectors = random.standard_normal((rows, 20)).astype(np.float32)
    return Measured(vectors[:, :1], no_codes(rows), vectors[:, :0], likely, vectors)


@functools.cache
def learned() -> tuple[Profile, Rff]:
    """The profile of such rows, and its map."""
    rows = pictures(200, 0)
    assert rows.vectors is not None
    return Profile.build({"brightness": rows.numbers[:, 0]}, {}, {}, rows.probabilities, CLASSES), Rff.fit(rows.vectors)


def part(whole: Measured, rows: slice) -> Measured:
    assert whole.probabilities is not None
    assert whole.vectors is not None
    return Measured(
        whole.numbers[rows], whole.codes[rows], whole.outputs[rows], whole.probabilities[rows], whole.vectors[rows]
    )


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=12))
def test_any_split_over_workers_and_replicas_adds_up_to_one_process(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int]]
) -> None:
    """Batches, each counted by one of two workers of one of two replicas; RFF but for rounding within a batch."""
    whole, (profile, rff) = pictures(sum(rows for rows, _ in batches), 1), learned()
    directory = tmp_path_factory.mktemp("counts")
    workers = [DriftCounter(directory / f"{n // 2}", Slot(n % 2, lock=-1), profile, rff) for n in range(4)]
    DriftCounter(directory / "one", Slot(0, lock=-1), profile, rff).count(whole)
    at = 0
    for rows, worker in batches:
        workers[worker].count(part(whole, slice(at, at + rows)))
        at += rows
    one, *replicas = (read_counts(directory / name, profile) for name in ("one", "0", "1"))
    assert sum(counts.rows for counts in replicas) == one.rows == at
    assert sum(counts.confidence for counts in replicas) == one.confidence
    np.testing.assert_array_equal(np.sum([counts.bins for counts in replicas], axis=0), one.bins)
    np.testing.assert_allclose(np.sum([counts.rff for counts in replicas], axis=0) / UNIT, one.rff / UNIT, rtol=1e-6)


def test_sums_are_those_of_the_rows(tmp_path: Path) -> None:
    rows, (profile, rff) = pictures(50, 3), learned()
    DriftCounter(tmp_path, Slot(0, lock=-1), profile, rff).count(rows)
    counts = read_counts(tmp_path, profile)
    assert rows.probabilities is not None
    assert rows.vectors is not None
    assert counts.confidence / UNIT == pytest.approx(np.nansum(rows.probabilities.max(axis=1)), abs=1e-5)
    np.testing.assert_allclose(counts.rff / UNIT - CUT * 50, rff(rows.vectors).sum(axis=0), atol=1e-4)
    classes = counts.bins[len(profile.features[0].labels) :][: len(CLASSES) + 2]
    found = np.bincount(np.delete(rows.probabilities, 25, axis=0).argmax(axis=1), minlength=3)
    assert classes.tolist() == [*found, 0, 1]  # one has no class


@pytest.mark.parametrize("width", [0, 19, 21])
def test_batch_that_cannot_be_counted_leaves_no_trace(tmp_path: Path, width: int) -> None:
    profile, rff = learned()
    counter = DriftCounter(tmp_path, Slot(0, lock=-1), profile, rff)
    wrong = pictures(3, 1)
    wrong.vectors = np.zeros((3, width), dtype=np.float32) if width else None
    with pytest.raises(ValueError, match=f"features are of 20 values a row; the handler gives {width}$"):
        counter.count(wrong)
    counts = read_counts(tmp_path, profile)
    assert (counts.rows, counts.confidence, counts.bins.sum(), counts.rff.sum()) == (0, 0, 0, 0)
