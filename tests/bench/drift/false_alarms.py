"""How often traffic that is what it was in training raises an alarm: 30 features, at every rate."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import chi2

from monitoring.config import Config
from tests.bench.drift.alerts import Bools, episodes, firing
from tests.bench.drift.others import OTHERS
from tests.bench.drift.streams import DAY, Stream, Traffic, raw_values, simulate
from tests.bench.findings import Finding

FEATURES = 30
RATES = (100, 360, 1000, 3600, 36000)
BARS = {1: 0.1, 5: 0.5}
"""Rows in a run, and false episodes a week."""
WEEK = 7 * DAY
OTHERS_HOURS = 24
"""Of each kind of traffic that the others see, too: they need every single value."""
_WORDS = {1: "independent rows", 5: "runs of 5 identical rows"}


@dataclass(frozen=True)
class Job:
    """One week of one kind of traffic, against a reference of its own, after a day that fills the longest window."""

    seed: int
    rows_per_hour: int
    run: int
    week: int

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.rows_per_hour, self.run)


@dataclass(frozen=True)
class Week:
    job: Job
    ours: int
    others: Sequence[int]
    """In OTHERS_HOURS, in the order of OTHERS; only of the first week."""


def false_alarms(pool: ProcessPoolExecutor, seed: int, weeks: int) -> Iterator[Finding]:
    jobs = [Job(seed, rate, run, week) for run, rate, week in product(BARS, RATES, range(weeks))]
    found = list(pool.map(simulated_week, jobs))
    for run, rate in product(BARS, RATES):
        of_kind = [one for one in found if (one.job.run, one.job.rows_per_hour) == (run, rate)]
        where = f"{rate} rows/h, {_WORDS[run]}"
        yield _finding(f"false episodes, {where}", sum(one.ours for one in of_kind), weeks, BARS[run])
        for name, count in zip(OTHERS, of_kind[0].others, strict=True):
            yield _finding(f"   {name}, {where}", count, OTHERS_HOURS * 60 / WEEK)


def simulated_week(job: Job) -> Week:
    random = np.random.default_rng([job.seed, job.rows_per_hour, job.run, job.week])
    stream = simulate(random, job.traffic, features=FEATURES, minutes=DAY + WEEK)
    ours = episodes(firing(stream, Config().drift)[DAY:])
    return Week(job, ours, [] if job.week else [episodes(said) for said in _others(random, stream, job.run)])


def _others(random: np.random.Generator, stream: Stream, run: int) -> list[Bools]:
    """What each of the others says of every hour, [hours, F]."""
    said = np.zeros((len(OTHERS), OTHERS_HOURS, FEATURES), dtype=np.bool_)
    hours = stream.minutes[DAY:][: OTHERS_HOURS * 60].reshape(OTHERS_HOURS, 60, FEATURES, -1).sum(axis=1)
    for feature, column in enumerate(stream.values.T):
        reference = column[~np.isnan(column)]
        for hour, counts in enumerate(hours[:, feature]):
            values = raw_values(random, counts, stream.edges[feature], run)
            if len(values):
                said[:, hour, feature] = [test(reference, values) for test in OTHERS.values()]
    return list(said)


def _finding(name: str, count: int, weeks: float, bar: float | None = None) -> Finding:
    """A rate with the bounds that Poisson counts have at 95%, each by itself (Garwood 1936)."""
    low = chi2.ppf(0.05, 2 * count) / 2 if count else 0.0
    high = chi2.ppf(0.95, 2 * (count + 1)) / 2
    seen = f"{weeks:g} weeks" if weeks >= 1 else f"{weeks * 7:g} day"
    return Finding(
        f"{name} ({count} in {seen})",
        count / weeks,
        "a week",
        bar,
        at_most=True,
        spread=(float(low / weeks), float(high / weeks)),
    )
