"""What the months are known for, and whether the alerts found it: a hot and late summer, and a September that ends it.

In summer New York is warmer than in any week from January to April, and thunderstorms make every third flight late. On
Labor Day the timetable of the summer ends, and September and October are the most punctual months of the year.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.traffic import Counts
from monitoring import drift
from tests.bench.study.verdicts import HOUR, WEEK, WEEK_HOURS, Array, Bools, Feature, Quality, beginnings, rolling

SUMMER = ("2013-06-01", "2013-09-01")
SEPTEMBER = ("2013-09-01", "2013-10-01")
"""Days, the last one not included."""


LEAST_SHARE = 0.05
"""Of a season's hours: a day and a half of a month, four and a half of a summer."""


@dataclass(frozen=True)
class Season:
    """One thing that has to be found."""

    what: str
    first: str
    """When an alert that says so began within the season, in words; empty if none did."""
    share: float
    """Of the season's hours in which it is seen."""

    @property
    def found(self) -> bool:
        return bool(self.first) and self.share >= LEAST_SHARE


def seasons(start: int, features: Sequence[Feature], quality: Quality) -> Iterator[Season]:
    """Every thing that has to be found; `start` is the Unix time at which the first hour begins."""
    of = {(one.name, one.counts.kind): one for one in features}
    late, usually = predicted_share(of["class", "prediction"].counts, "late")

    def week(name: str) -> Bools:
        return of[name, "number"].windows[WEEK].alert

    def season(what: str, days: tuple[str, str], seen: Bools) -> Season:
        first, last = ((int(np.datetime64(day, "s").astype(np.int64)) - start) // HOUR for day in days)
        begins = [hour for hour in beginnings(seen) if first <= hour < last]
        return Season(what, in_words(start, begins[0]) if begins else "", float(seen[first:last].mean()))

    yield season("summer: warmer than in training (temp)", SUMMER, week("temp"))
    yield season("summer: later than in training (dep_delay)", SUMMER, week("dep_delay") & (late > usually))
    yield season("summer: predictions wrong more often (AccuracyLow)", SUMMER, quality.alert)
    yield season("September: other flights than in training (distance)", SEPTEMBER, week("distance"))
    yield season(
        "September: more punctual than in training (dep_delay)", SEPTEMBER, week("dep_delay") & (late < usually)
    )


def predicted_share(predicted: Counts, name: str) -> tuple[Array, float]:
    """The share of rows predicted to be of this class: of the week up to each hour, [hours], and of the profile."""
    place = predicted.labels.index(name)
    live, reference = drift.shares(rolling(predicted.live, WEEK_HOURS)), drift.shares(predicted.reference)
    return live[:, place], float(reference[place])


def in_words(start: int, hour: int) -> str:
    """The end of an hour, as a date and a time."""
    return str(np.datetime64(start + HOUR * (hour + 1), "s")).replace("T", " ")[:16]
