"""What `make drift-study` computes: when flights ask, what Prometheus is given, and what alerts make of its answers."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deploy.traffic import Counts
from monitoring import drift
from monitoring.config import Config
from tests.bench.servers import Packaged
from tests.bench.study import replay, verdicts
from tests.bench.study.figure import draw, runs
from tests.bench.study.replay import Place
from tests.bench.study.samples import END, Confusion, stamped
from tests.bench.study.seasons import Season, in_words, seasons
from tests.bench.study.timetable import timetable
from tests.bench.study.verdicts import Array, Bools, Feature, Judged, Quality, judged, lasting, rolling

START = 1370044800  # the first of June 2013
HOUR, DAY = 3600, 86400
DAYS = 122  # to the end of September


def test_flights_ask_in_the_order_in_which_they_leave() -> None:
    left = [START + 7200, START + 60, START + DAY + 5]
    times = timetable(pd.DataFrame({"departed": left, "carrier": ["AA", "B6", "UA"]}))
    assert times.frame["carrier"].tolist() == ["B6", "AA", "UA"]
    assert (times.start, times.end) == (START, START + 2 * DAY)
    found = {end - START: times.frame["carrier"][rows].tolist() for end, rows in times.intervals(HOUR)}
    assert len(found) == 48
    assert {end: carriers for end, carriers in found.items() if carriers} == {
        HOUR: ["B6"], 2 * HOUR + HOUR: ["AA"], DAY + HOUR: ["UA"],
    }  # fmt: skip


def test_what_drift_needs_of_a_scrape_is_kept_with_another_time() -> None:
    exposition = (
        "# HELP shipway_rows_total Rows.\n"
        'shipway_rows_total{model="flights",version="1"} 7.0\n'
        'shipway_rows_total{model="trains",version="1"} 8.0\n'
        'shipway_workers{model="flights",state="alive",version="1"} 1.0\n'
        'shipway_feature_usual_psi_excess{model="flights",version="1",window="6h"} 0.5\n'
    )
    assert list(stamped(exposition, START, "flights")) == [
        f'shipway_rows_total{{model="flights",version="1"}} 7.0 {START}\n',
        f'shipway_feature_usual_psi_excess{{model="flights",version="1",window="6h"}} 0.5 {START}\n',
    ]


def test_labels_are_counted_when_they_are_known() -> None:
    confusion = Confusion("flights", 1, ("no", "yes"), delay=100)
    confusion.predicted(1000, [("no", "yes"), ("no", "no")])
    confusion.predicted(1050, [("no", "yes")])

    def counted(at: int) -> dict[str, int]:
        return {
            f"{one['predicted']} {one['actual']}": int(one["rows"])
            for line in confusion.lines(at)
            if (one := re.search(r'predicted="(?P<predicted>\w+)",actual="(?P<actual>\w+)"} (?P<rows>\d+)', line))
        }

    assert counted(1099) == {"no no": 0, "no yes": 0, "yes no": 0, "yes yes": 0}
    assert counted(1100) == {"no no": 1, "no yes": 1, "yes no": 0, "yes yes": 0}
    assert counted(1150) == {"no no": 1, "no yes": 2, "yes no": 0, "yes yes": 0}


def test_windows_are_sums_of_hours_and_hold_as_long_as_alerts_want() -> None:
    counts = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(rolling(counts, 2)[:, 0], [0, 2, 6, 10, 14, 18])
    condition = np.array([True, True, False, True, True, True])
    assert lasting(condition, HOUR // 2).tolist() == condition.tolist()
    assert lasting(condition, HOUR).tolist() == [False, True, False, False, True, True]
    assert runs(condition) == [(0, 2), (3, 6)]


def counts_of(live: Array, **usual: float) -> Counts:
    windows = {name.removeprefix("w"): value for name, value in usual.items()}
    return Counts("temp", "number", ("00", "01", "missing"), np.array([2500.0, 2500.0, 0.0]), live, 1.0, windows)


def by_the_time_of_day(days: int) -> Array:
    """400 rows an hour; those of the morning lie in the first bin, those of the evening in the second."""
    evening = np.arange(24 * days) % 24 >= 12
    return np.stack((np.where(evening, 100.0, 300.0), np.where(evening, 300.0, 100.0), 0.0 * evening), axis=-1)


def test_rhythm_alerts_unless_it_is_known_to_be_usual() -> None:
    live = by_the_time_of_day(days=20)
    plain, known = (judged(counts_of(live, **usual), Config()).windows["6h"] for usual in ({}, {"w6h": 1.3}))
    assert plain.alert[48:].mean() > 0.5
    assert known.without_usual[48:].mean() > 0.5
    assert not known.alert.any()
    assert plain.psi_excess[24:].max() < 1.3


def test_what_is_more_than_usual_alerts_once_the_window_is_full() -> None:
    moved = np.tile([390.0, 10.0, 0.0], (24 * 20, 1))
    known = judged(counts_of(moved, w6h=1.3, w7d=0.0), Config()).windows
    assert known["6h"].alert.tolist() == [hour >= 6 for hour in range(24 * 20)]
    assert known["7d"].alert.tolist() == [hour >= 7 * 24 + 1 for hour in range(24 * 20)]  # and lasts an hour
    assert known["1d"].alert[1:].all()


def test_dispersion_is_that_of_the_pairs_of_a_week() -> None:
    random = np.random.default_rng(4)
    live = random.multinomial(300, [0.3, 0.3, 0.4], 400).astype(np.float64) * 4  # runs of four equal rows
    found = verdicts.trailing_dispersion(live)
    assert found[-1] == pytest.approx(float(drift.dispersion(live[-169:])))
    assert found[-1] == pytest.approx(4, rel=0.3)


def as_judged(alert: Bools) -> Judged:
    return Judged(np.where(alert, 1.0, 0.0), alert, alert)


def a_year(*, hot: Bools, delayed: Bools, other: Bools, late: Array, low: Bools) -> tuple[list[Feature], Quality]:
    hours = len(hot)
    never = as_judged(np.zeros(hours, dtype=np.bool_))

    def feature(name: str, kind: str, labels: tuple[str, ...], reference: Array, live: Array, week: Bools) -> Feature:
        windows = {"1h": never, "6h": never, "1d": never, "7d": as_judged(week)}
        return Feature(Counts(name, kind, labels, reference, live, 1.0), windows)

    predicted = 1000 * np.stack((late, 1 - late), axis=-1)
    bins, nothing = ("00", "missing"), np.ones((hours, 2))
    confusion = np.stack((np.stack((late, 0 * late), -1), np.stack((0 * late, 1 - late), -1)), -2) * 100
    features = [
        feature("temp", "number", bins, np.ones(2), nothing, hot),
        feature("dep_delay", "number", bins, np.ones(2), nothing, delayed),
        feature("distance", "number", bins, np.ones(2), nothing, other),
        feature("class", "prediction", ("late", "on time"), np.array([20.0, 80.0]), predicted, never.alert),
    ]
    return features, Quality(("late", "on time"), confusion, 0.9, low)


def between(first_day: int, last_day: int) -> Bools:
    days = np.arange(24 * DAYS) // 24
    return (days >= first_day) & (days < last_day)


def the_year(**instead: Bools) -> tuple[list[Feature], Quality]:
    """Late in July and punctual in September, and both seen."""
    late = np.where(between(25, 60), 0.4, np.where(between(85, 122), 0.1, 0.2))
    seen = {"hot": between(7, 110), "delayed": between(33, 60) | between(94, 110), "other": between(93, 110)}
    return a_year(**{**seen, "low": between(10, 40), "late": late, **instead})


def found(**instead: Bools) -> dict[str, Season]:
    return {one.what.partition(":")[2].strip(): one for one in seasons(START, *the_year(**instead))}


def test_summer_and_september_are_found_where_they_are_seen() -> None:
    assert [one.found for one in found().values()] == [True] * 5
    punctual = found()["more punctual than in training (dep_delay)"]
    assert (punctual.first, round(punctual.share, 3)) == ("2013-09-03 01:00", round(16 / 30, 3))


@pytest.mark.parametrize(
    ("instead", "missed"),
    [
        ({"hot": between(0, 0)}, ["warmer than in training (temp)"]),
        ({"low": between(95, 122)}, ["predictions wrong more often (AccuracyLow)"]),
        ({"other": between(80, 81)}, ["other flights than in training (distance)"]),
        ({"delayed": between(33, 60)}, ["more punctual than in training (dep_delay)"]),
        # In September alone, and late: that is no change for the better.
        ({"late": np.full(24 * DAYS, 0.4)}, ["more punctual than in training (dep_delay)"]),
        ({"late": np.full(24 * DAYS, 0.1)}, ["later than in training (dep_delay)"]),
    ],
)
def test_what_no_alert_says_is_not_found(instead: dict[str, Bools], missed: list[str]) -> None:
    assert [what for what, one in found(**instead).items() if not one.found] == missed


def test_the_figure_is_the_same_bytes_for_the_same_data(tmp_path: Path) -> None:
    for name in ("one", "same", "other"):
        draw(tmp_path / name, START, *the_year(**({"hot": between(7, 50)} if name == "other" else {})))
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    assert all(f"<!-- {words} -->".encode() in one for words in ("dep_delay", "AccuracyLow", "Jul", "drift within 7d"))


def scrapes(hours: int) -> Iterator[str]:
    """A node's counters, every half hour: 60 rows an hour of each kind, the second bin from the middle on."""
    lines: dict[str, list[str]] = {}
    confusion = Confusion("flights", 1, ("late", "on time"), delay=HOUR)
    for half in range(2 * hours + 1):
        at = START + half * HOUR // 2
        before, after = min(half, hours), max(half - hours, 0)
        node = "".join(
            f'shipway_feature_{name}{{model="flights",version="1",feature="temp",kind="number",bin="{label}"}} {rows}\n'
            for label, counted, reference in (("00", 30 * before, 500), ("01", 30 * after, 500), ("missing", 0, 0))
            for name, rows in (("rows_total", counted), ("reference_rows", reference))
        )
        node += (
            'shipway_feature_usual_psi_excess{model="flights",version="1",feature="temp",kind="number",window="6h"} 9\n'
            'shipway_reference_accuracy{model="flights",version="1"} 0.9\n'
        )
        confusion.predicted(at, [("late", "late"), ("on time", "late")])
        for line in (*stamped(node, at, "flights"), *confusion.lines(at)):
            lines.setdefault(line.partition(" ")[0], []).append(line)
    yield from (line for series in lines.values() for line in series)
    yield END


def test_a_real_prometheus_gives_back_what_it_was_given(tmp_path: Path) -> None:
    hours = 48
    place = Place(tmp_path, Packaged("flights", 1, "sha256:00", tmp_path / "none.mar", tmp_path))
    (tmp_path / "0.om").write_text("".join(scrapes(hours)))
    replay._create_blocks(tmp_path / "0.om", place.blocks)
    with replay.prometheus(place) as served:
        features, quality = verdicts.read(served, "flights", 1, START, START + hours * HOUR, Config())
    (temp,) = features
    assert temp.counts.usual == {"6h": 9.0}
    np.testing.assert_allclose(temp.counts.live[1 : hours // 2, 0], 60, rtol=0.02)
    np.testing.assert_allclose(temp.counts.live[hours // 2 + 1 :, 1], 60, rtol=0.02)
    # A day of one bin alone is far from the profile in any window, and in six hours as far as is usual.
    assert temp.windows["1d"].alert[-1]
    assert temp.windows["6h"].without_usual[-1]
    assert not temp.windows["6h"].alert.any()
    assert quality.reference == 0.9
    assert quality.accuracy(24)[-1] == pytest.approx(0.5, abs=0.01)
    assert quality.alert[-1]
    assert in_words(START, 0) == "2013-06-01 01:00"
