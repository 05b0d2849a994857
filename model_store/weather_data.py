"""The hourly weather at the three airports of New York in 2013, for a forecast of the temperature.

The same data files as the flights', with every hour of the year: those that are not recorded are missing values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from model_store import flights

TEMPERATURE = "temp"
FEATURES = (TEMPERATURE, "dewp", "humid", "wind_speed", "precip", "pressure", "visib", "hour")
"""Degrees Fahrenheit twice, %, miles an hour, inches, millibars, miles; the local hour of the day, 0 to 23."""
HORIZON = 24
"""Hours that are forecast."""
MIN_STEPS, MAX_STEPS = 24, 168
"""Hours of history: a day to a week."""
HELD_OUT_MONTHS = (3, 6, 9, 12)
"""One of every season."""

_FILE = "weather.csv"
_ZONE = "America/New_York"
_MAX_WIND = 200  # one record says 1,048 miles an hour

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Windows:
    """Histories with what came after them."""

    history: FloatArray
    """[n, T, features]; missing is NaN."""
    future: FloatArray
    """[n, HORIZON], the temperature; missing is NaN."""


@dataclass(frozen=True, eq=False)
class Weather:
    """Every hour at every airport."""

    values: FloatArray
    """[airports, hours, features]"""
    held_out: npt.NDArray[np.bool_]
    """Whether an hour is of HELD_OUT_MONTHS, [hours]."""
    digest: str
    """`sha256:` and 64 digits, of the data file."""

    def training_hours(self) -> FloatArray:
        """Every hour that is not held out, [n, features]."""
        return self.values[:, ~self.held_out].reshape(-1, len(FEATURES))

    def starts(self, steps: int, *, held_out: bool, every: int = 1) -> IntArray:
        """First hours of windows that lie, history and future, wholly inside or wholly outside the held-out months."""
        length = steps + HORIZON
        inside = np.concatenate(([0], np.cumsum(self.held_out == held_out)))
        first = np.arange(0, len(self.held_out) - length + 1, every)
        starts: IntArray = first[inside[first + length] - inside[first] == length]
        return starts

    def windows(self, airports: IntArray, starts: IntArray, steps: int) -> Windows:
        """The windows of `steps` hours of history that start there, both [n]."""
        hours = starts[:, None] + np.arange(steps + HORIZON)
        values = self.values[airports[:, None], hours]
        return Windows(values[:, :steps], values[:, steps:, FEATURES.index(TEMPERATURE)])

    def held_out_windows(self, steps: int, every: int) -> Windows:
        """Held-out windows of all airports, one in every so many hours."""
        starts = self.starts(steps, held_out=True, every=every)
        airports = np.repeat(np.arange(len(self.values)), len(starts))
        return self.windows(airports, np.tile(starts, len(self.values)), steps)


def load(data_dir: Path | None = None) -> Weather:
    """Read the data file, from `data_dir` or from the installed package. Raises DataMissing if there is none."""
    paths = flights.data_files(data_dir, (_FILE,))
    frame = pd.read_csv(paths[0], usecols=["origin", "time_hour", *FEATURES])
    frame["time_hour"] = pd.to_datetime(frame["time_hour"], utc=True)
    frame.loc[frame["wind_speed"] > _MAX_WIND, "wind_speed"] = np.nan
    hours = pd.date_range(frame["time_hour"].min(), frame["time_hour"].max(), freq="h")
    local = hours.tz_convert(_ZONE)
    airports = [
        own.set_index("time_hour").reindex(hours)[list(FEATURES)].assign(hour=local.hour).to_numpy(np.float32)
        for _, own in frame.groupby("origin")
    ]
    return Weather(np.stack(airports), np.isin(local.month, HELD_OUT_MONTHS), flights.digest(paths))


def to_lists(history: FloatArray) -> Sequence[float | None]:
    """Values as a client sends them, in one flat list: plain numbers, None where one is missing."""
    return [None if value != value else value for value in history.ravel().tolist()]  # noqa: PLR0124 - NaN alone
