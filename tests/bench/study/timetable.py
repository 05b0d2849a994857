"""When each flight of the study asks: simulated time in UTC, which stands for the clock in New York."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from model_store.flights import DEPARTED

DAY_SECONDS = 86400


@dataclass(frozen=True, eq=False)
class Timetable:
    """Flights in the order of their departures."""

    frame: pd.DataFrame
    """The schema's columns and `late`, index from 0."""
    seconds: npt.NDArray[np.int64]
    """Departure of each flight, Unix time, [flights]."""
    start: int
    end: int
    """First and last midnight around all flights, Unix times."""

    def intervals(self, step: int) -> Iterator[tuple[int, slice]]:
        """End of each interval of `step` seconds, Unix time, and the flights that departed in it."""
        ends = np.arange(self.start + step, self.end + step, step)
        first = 0
        for end, last in zip(ends.tolist(), np.searchsorted(self.seconds, ends).tolist(), strict=True):
            yield end, slice(first, last)
            first = last


def timetable(flights: pd.DataFrame) -> Timetable:
    """These flights, at the minute when each leaves the gate."""
    frame = flights.sort_values(DEPARTED, kind="stable", ignore_index=True)
    seconds = frame[DEPARTED].to_numpy()
    start, end = int(seconds[0]) // DAY_SECONDS, int(seconds[-1]) // DAY_SECONDS + 1
    return Timetable(frame, seconds, start * DAY_SECONDS, end * DAY_SECONDS)
