"""What counting a row for drift costs: the part of a request that is paid for monitoring alone."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.slots import DriftCounter, take_slot
from handlers.tabular import TabularHandler
from monitoring.profile import Profile
from monitoring.rff import Rff
from tests.bench.findings import Finding

NUMBERS, CATEGORIES, OUTPUTS = 24, 5, 1
BARS = {1: 15.0, 32: 3.0}
"""Rows of a batch, and the microseconds that counting one of them may take."""
RFF_BAR = 40.0
"""Microseconds that the random Fourier features of one row may take."""
RFF_VALUES = 512
CLASSES = ("no", "yes")
_PROFILE_ROWS = 2000
_CODES = 20
_ROUNDS, _CALLS = 9, 2000


def measure_counting() -> list[Finding]:
    """Medians of rounds, for batches of 1 and of 32 rows, in processor time.

    On an idle machine the clock says the same; on a busy one it says how long counting was kept from the processor.
    """
    return [
        *(_counting(rows, bar, classes) for classes in ((), CLASSES) for rows, bar in BARS.items()),
        *(_transforming(rows) for rows in BARS),
    ]


def _counting(rows: int, bar: float, classes: tuple[str, ...]) -> Finding:
    """Rows of 30 features, and for `classes` also the class, the confidence and the entropy."""
    random = np.random.default_rng(1)
    inputs: list[npt.NDArray[Any]] = [
        random.standard_normal((rows, NUMBERS)).astype(np.float32),
        random.integers(0, _CODES, (rows, CATEGORIES)),
    ]
    outputs: list[npt.NDArray[Any]] = [random.random(rows).astype(np.float32) for _ in range(OUTPUTS)]
    handler = TabularHandler()
    handler.classes = classes
    with tempfile.TemporaryDirectory() as directory:
        drift = DriftCounter(Path(directory), take_slot(Path(directory)), _profile(classes))
        # As a handler does it, with all that it needs to.
        costs = _costs(lambda: drift.count(handler.measure(inputs, outputs)), rows)
    what = "features and the prediction" if classes else "features"
    return _finding(f"counting {NUMBERS + CATEGORIES + OUTPUTS} {what} of a row, {rows} at once", costs, bar)


def _transforming(rows: int) -> Finding:
    random = np.random.default_rng(2)
    rff = Rff.fit(random.standard_normal((_PROFILE_ROWS, RFF_VALUES)))
    vectors = random.standard_normal((rows, RFF_VALUES)).astype(np.float32)
    costs = _costs(lambda: rff(vectors), rows)
    return _finding(f"random Fourier features of a row of {RFF_VALUES} values, {rows} at once", costs, RFF_BAR)


def _costs(work: Callable[[], object], rows: int) -> list[float]:
    """Microseconds of processor time a row, in every round."""
    costs = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for _ in range(_CALLS):
            work()
        costs.append((time.process_time() - start) / _CALLS / rows * 1e6)
    return costs


def _finding(name: str, costs: list[float], bar: float) -> Finding:
    spread = (min(costs), max(costs))
    return Finding(name, statistics.median(costs), "µs of processor time", bar, at_most=True, spread=spread)


def _profile(classes: tuple[str, ...]) -> Profile:
    random = np.random.default_rng(0)
    names = [str(code) for code in range(_CODES)]
    likely = random.random(_PROFILE_ROWS).astype(np.float32)
    return Profile.build(
        {f"number {at}": random.standard_normal(_PROFILE_ROWS).astype(np.float32) for at in range(NUMBERS)},
        {f"category {at}": (random.integers(0, _CODES, _PROFILE_ROWS), names) for at in range(CATEGORIES)},
        {f"output {at}": random.random(_PROFILE_ROWS).astype(np.float32) for at in range(OUTPUTS)},
        np.stack((1 - likely, likely), axis=1) if classes else None,
        classes,
    )
