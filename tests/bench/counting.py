"""What counting a row for drift costs: the part of a table's request that is paid for monitoring alone."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.slots import DriftCounter, take_slot
from handlers.tabular import TabularHandler
from monitoring.profile import Profile
from tests.bench.findings import Finding

NUMBERS, CATEGORIES, OUTPUTS = 24, 5, 1
BARS = {1: 15.0, 32: 3.0}
"""Rows of a batch, and the microseconds that counting one of them may take."""
_PROFILE_ROWS = 2000
_CODES = 20
_ROUNDS, _CALLS = 9, 2000


def measure_counting() -> list[Finding]:
    """Medians of rounds, for batches of 1 and of 32 rows of 30 features, in processor time.

    On an idle machine the clock says the same; on a busy one it says how long counting was kept from the processor.
    """
    with tempfile.TemporaryDirectory() as directory:
        slot = take_slot(Path(directory))
        drift = DriftCounter(Path(directory), slot, _profile())
        return [_measured(drift, rows, bar) for rows, bar in BARS.items()]


def _measured(drift: DriftCounter, rows: int, bar: float) -> Finding:
    random = np.random.default_rng(1)
    inputs: list[npt.NDArray[Any]] = [
        random.standard_normal((rows, NUMBERS)).astype(np.float32),
        random.integers(0, _CODES, (rows, CATEGORIES)),
    ]
    outputs: list[npt.NDArray[Any]] = [random.random(rows).astype(np.float32) for _ in range(OUTPUTS)]
    count = TabularHandler().count  # as a handler does it, with all that it needs to
    costs = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(_CALLS):
            count(drift, inputs, outputs)
        costs.append((time.process_time() - start) / _CALLS / rows * 1e6)
    name = f"counting {NUMBERS + CATEGORIES + OUTPUTS} features of a row, {rows} at once"
    spread = (min(costs), max(costs))
    return Finding(name, statistics.median(costs), "µs of processor time", bar, at_most=True, spread=spread)


def _profile() -> Profile:
    random = np.random.default_rng(0)
    names = [str(code) for code in range(_CODES)]
    return Profile.build(
        {f"number {at}": random.standard_normal(_PROFILE_ROWS).astype(np.float32) for at in range(NUMBERS)},
        {f"category {at}": (random.integers(0, _CODES, _PROFILE_ROWS), names) for at in range(CATEGORIES)},
        {f"output {at}": random.random(_PROFILE_ROWS).astype(np.float32) for at in range(OUTPUTS)},
    )
