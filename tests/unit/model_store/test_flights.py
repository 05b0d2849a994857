"""The flights: only what is known at departure, rows without a label counted, and the real data as it is."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model_store import flights
from model_store.errors import DataMissing

FLIGHTS = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,\
air_time,distance,hour,minute,time_hour
2013,1,1,517,515,2,830,819,16,UA,1545,N1,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,4,30,2359,2359,0,400,2400,15,B6,1714,NA,JFK,BQN,200,1576,23,59,2013-05-01T03:00:00Z
2013,5,1,NA,600,NA,NA,700,NA,AA,1,N1,LGA,ORD,NA,733,6,0,2013-05-01T10:00:00Z
2013,5,1,600,600,0,900,700,NA,AA,2,N1,LGA,ORD,NA,733,6,0,2013-05-01T10:00:00Z
2013,5,5,700,705,-5,900,910,-10,AA,3,N2,LGA,ORD,110,733,7,5,2013-05-05T11:00:00Z
"""
WEATHER = """\
origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour
EWR,2013,1,1,5,39.02,28.04,64.43,260,12.66,NA,0,1011.9,10,2013-01-01T10:00:00Z
"""
PLANES = """\
tailnum,year,type,manufacturer,model,engines,seats,speed,engine
N1,1999,Fixed wing multi engine,BOEING,737-824,2,149,NA,Turbo-fan
N2,NA,Fixed wing multi engine,BOEING,737-824,2,149,NA,Turbo-fan
"""


def write_data(directory: Path, flights_csv: str = FLIGHTS) -> Path:
    with zipfile.ZipFile(directory / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", flights_csv)
    (directory / "weather.csv").write_text(WEATHER)
    (directory / "planes.csv").write_text(PLANES)
    return directory


def test_a_flight_becomes_its_features_and_label(tmp_path: Path) -> None:
    rows = flights.to_rows(flights.load(write_data(tmp_path)).rows(1, 12))
    assert rows[0] == {
        "dep_delay": 2,
        "sched_dep_minute": 5 * 60 + 15,
        "sched_arr_minute": 8 * 60 + 19,
        "day_of_week": 2,  # a Tuesday
        "distance": 1400,
        "plane_age": 14,
        "seats": 149,
        "temp": 39.02,
        "dewp": 28.04,
        "humid": 64.43,
        "wind_dir": 260,
        "wind_speed": 12.66,
        "wind_gust": None,
        "precip": 0,
        "pressure": 1011.9,
        "visib": 10,
        "carrier": "UA",
        "origin": "EWR",
        "dest": "IAH",
    }
    assert rows[1]["sched_arr_minute"] == 0  # written 2400
    assert rows[1]["temp"] is None
    assert rows[1]["seats"] is None
    assert rows[2]["plane_age"] is None
    assert rows[2]["seats"] == 149


def test_flights_stand_in_the_order_of_days_and_know_when_they_left(tmp_path: Path) -> None:
    head, *lines = FLIGHTS.splitlines()
    frame = flights.load(write_data(tmp_path, "\n".join([head, lines[4], lines[0], lines[1]]) + "\n")).frame
    left = [str(time) for time in pd.to_datetime(frame["departed"], unit="s")]
    assert left == ["2013-01-01 05:17:00", "2013-04-30 23:59:00", "2013-05-05 07:00:00"]
    assert frame["carrier"].tolist() == ["UA", "B6", "AA"]


def test_late_is_more_than_fifteen_minutes(tmp_path: Path) -> None:
    frame = flights.load(write_data(tmp_path)).rows(1, 12)
    assert frame["late"].tolist() == [True, False, False]


def test_rows_without_a_label_are_dropped_and_counted_in_words(tmp_path: Path) -> None:
    data = flights.load(write_data(tmp_path))
    assert len(data.frame) == 3
    assert data.dropped == (
        "2 of 5 flights have no arrival delay and were dropped: 1 cancelled (no departure), 1 diverted (no arrival)"
    )


def test_months_are_cut_with_both_ends(tmp_path: Path) -> None:
    data = flights.load(write_data(tmp_path))
    assert data.rows(*flights.TRAINING_MONTHS)["carrier"].tolist() == ["UA", "B6"]
    assert data.rows(*flights.VALIDATION_MONTHS)["carrier"].tolist() == ["AA"]
    assert len(data.rows(*flights.TRAFFIC_MONTHS)) == 0


def test_no_feature_knows_the_arrival(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    later = FLIGHTS.replace(",830,819,16,", ",1230,819,256,").replace(",227,1400", ",467,1400")
    assert later != FLIGHTS
    before = flights.load(write_data(tmp_path / "before"))
    after = flights.load(write_data(tmp_path / "after", later))
    assert flights.to_rows(before.frame) == flights.to_rows(after.frame)
    assert before.digest != after.digest


def test_the_schema_holds_the_training_categories_and_takes_the_rest_as_other(tmp_path: Path) -> None:
    data = flights.load(write_data(tmp_path))
    schema = flights.schema_of(data.rows(*flights.TRAINING_MONTHS))
    assert [column.vocabulary for column in schema.categories] == [("B6", "UA"), ("EWR", "JFK"), ("BQN", "IAH")]
    numbers, codes = schema.encode(flights.to_columns(data.rows(*flights.VALIDATION_MONTHS)))
    assert numbers.shape == (1, len(flights.NUMBERS))
    assert codes.tolist() == [[2, 2, 2]]
    assert {column.name for column in schema.numbers if column.nullable} == flights.NULLABLE


@pytest.mark.parametrize("missing", ["flights.csv.zip", "weather.csv", "planes.csv"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (write_data(tmp_path) / missing).unlink()
    with pytest.raises(DataMissing, match=missing):
        flights.load(tmp_path)


def test_the_real_data_is_all_there() -> None:
    data = flights.load()
    assert len(data.frame) + data.cancelled + data.diverted == 336_776
    assert data.frame["month"].is_monotonic_increasing
    assert (data.cancelled, data.diverted) == (8_255, 1_175)
    assert data.digest == "sha256:e4ec9991131e568c9423e782e578dfeed78d7fe2157e69eff7fa7ef93a2b300f"
    required = [name for name in flights.NUMBERS if name not in flights.NULLABLE]
    assert not data.frame[required].isna().any().any()
    assert np.isfinite(data.frame[required].to_numpy()).all()
    assert data.frame["sched_dep_minute"].between(0, 1439).all()
    assert data.frame["temp"].isna().mean() < 0.02  # the join with the weather found its hours
