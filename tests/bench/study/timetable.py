"""When each flight of the study asks: simulated time in UTC, which stands for the clock in New York."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

YEAR = 2013


@dataclass(frozen=True, eq=False)
class Timetable:
    """Flights in the order of their departures."""

    frame: pd.DataFrame
    """The schema's columns and `late`, index from 0."""
    seconds: npt.NDArray[np.int64]
    """Departure of each flight, Unix time, [flights]."""
    start: int
    end: int
    """First and last midnight around all months, Unix times."""

    def intervals(self, step: int) -> Iterator[tuple[int, slice]]:
        """End of each interval of `step` seconds, Unix time, and the flights that departed in it."""
        ends = np.arange(self.start + step, self.end + step, step)
        first = 0
        for end, last in zip(ends.tolist(), np.searchsorted(self.seconds, ends).tolist(), strict=True):
            yield end, slice(first, last)
            first = last


def timetable(flights: pd.DataFrame, months: tuple[int, int], every: int = 1) -> Timetable:
    """Every `every`-th flight of these months, at the minute when it leaves the gate.

    `flights` has `month` and, within a month, stands in the order of days: where the day of the week changes, a day
    ends. ValueError if that gives a month another number of days than the calendar.
    """
    frame = flights[flights["month"].between(*months)]
    days = frame.groupby("month")["day_of_week"].transform(lambda day: (day.diff() != 0).cumsum()).astype(int)
    dates = pd.DataFrame({"year": YEAR, "month": frame["month"], "day": days})
    last = dates.groupby("month")["day"].max()
    calendar = [pd.Period(year=YEAR, month=int(month), freq="M").days_in_month for month in last.index]
    if last.tolist() != calendar:
        raise ValueError(f"months have {last.tolist()} days with flights; the calendar has {calendar}")
    minutes = frame["sched_dep_minute"] + frame["dep_delay"]
    seconds = _unix(pd.to_datetime(dates)) + (60 * minutes).astype(np.int64).to_numpy()
    start, end = pd.Timestamp(YEAR, months[0], 1), pd.Timestamp(YEAR, months[1], 1) + pd.offsets.MonthBegin()
    # Who left before the first midnight or after the last is counted there.
    seconds = seconds.clip(int(start.timestamp()), int(end.timestamp()) - 1)
    order = np.argsort(seconds, kind="stable")[::every]
    return Timetable(
        frame=frame.iloc[order].drop(columns="month").reset_index(drop=True),
        seconds=seconds[order],
        start=int(start.timestamp()),
        end=int(end.timestamp()),
    )


def _unix(dates: "pd.Series[pd.Timestamp]") -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = dates.to_numpy().astype("datetime64[s]").astype(np.int64)
    return found
