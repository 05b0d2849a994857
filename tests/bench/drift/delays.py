"""How long after one feature's shift its alert fires, hold time included; the median of repetitions."""

from collections.abc import Iterator

import numpy as np

from monitoring.config import Config
from tests.bench.drift.alerts import Bools, firing
from tests.bench.drift.others import OTHERS
from tests.bench.drift.streams import DAY, Array, Stream, Traffic, raw_values, simulate
from tests.bench.findings import Finding

BARS = {(1.0, 360): 30.0, (1.0, 1000): 10.0, (0.5, 1000): 50.0}
"""Standard deviations and rows an hour, and the minutes that it may take."""
REPETITIONS = 400
OTHERS_REPETITIONS = 100
LOOKED_AT_HOURS = 12
SCRAPE_MINUTES = 1
"""The longest time from a row to the scrape that sees it, added to every delay of ours."""


def delays(seed: int, repetitions: int = REPETITIONS) -> Iterator[Finding]:
    for (shift, rate), bar in BARS.items():
        random = np.random.default_rng([seed, int(shift * 100), rate])
        traffic = Traffic(rate, shift=shift)
        stream = simulate(random, traffic, features=repetitions, minutes=DAY, shifted_minutes=LOOKED_AT_HOURS * 60)
        where = f"shift of {shift:g} sd, {rate} rows/h"
        ours = first(firing(stream, Config().drift)[DAY:]) + SCRAPE_MINUTES
        yield _finding(f"delay, {where}", ours, bar)
        for name, minutes in zip(OTHERS, _others(random, stream, shift), strict=True):
            yield _finding(f"   {name}, {where}", minutes)


def first(fires: Bools) -> Array:
    """Minutes from the beginning of [minutes, F] to the end of the first that is true, [F]; inf for none."""
    return np.where(fires.any(axis=0), fires.argmax(axis=0) + 1.0, np.inf)


def _others(random: np.random.Generator, stream: Stream, shift: float) -> Array:
    """Minutes until each of the others says so, [OTHERS, repetitions]; the shift comes anywhere within an hour."""
    found = np.full((len(OTHERS), OTHERS_REPETITIONS), np.inf)
    for repetition in range(OTHERS_REPETITIONS):
        column, edges = stream.values[:, repetition], stream.edges[repetition]
        reference = column[~np.isnan(column)]
        # A chunk has `before` minutes from before the shift, if it is the first.
        before = int(random.integers(60))
        for end in range(60 - before, LOOKED_AT_HOURS * 60, 60):
            chunk = stream.minutes[DAY + end - 60 : DAY + end, repetition]
            old = max(0, 60 - end)
            values = np.concatenate(
                (
                    raw_values(random, chunk[:old].sum(axis=0), edges, 1),
                    raw_values(random, chunk[old:].sum(axis=0), edges, 1, shift),
                )
            )
            for row, test in enumerate(OTHERS.values()):
                if np.isinf(found[row, repetition]) and test(reference, values):
                    found[row, repetition] = end
            if np.isfinite(found[:, repetition]).all():
                break
    return found


def _finding(name: str, minutes: Array, bar: float | None = None) -> Finding:
    """The median, and between which delays nine of ten lie."""
    low, middle, high = np.quantile(minutes, [0.05, 0.5, 0.95], method="higher")
    return Finding(name, float(middle), "minutes", bar, at_most=True, spread=(float(low), float(high)))
