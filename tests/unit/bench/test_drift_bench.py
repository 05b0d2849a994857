"""The simulation behind `make drift-bench`: its windows and hold times, and that it fires when it should."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from rich.console import Console

from monitoring import drift
from monitoring.config import Config
from tests.bench import parts
from tests.bench.drift import __main__ as bench
from tests.bench.drift.alerts import Windows, episodes, firing, known_dispersion, lasting
from tests.bench.drift.delays import first
from tests.bench.drift.others import OTHERS
from tests.bench.drift.serving import interval
from tests.bench.drift.streams import DAY, Traffic, raw_values, shares, simulate
from tests.bench.findings import Finding

DRIFT = Config().drift


def test_the_same_seed_gives_the_same_traffic() -> None:
    one, same, other = (
        simulate(np.random.default_rng(seed), Traffic(360), features=2, minutes=60) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.minutes, same.minutes)
    np.testing.assert_array_equal(one.values, same.values)
    assert not np.array_equal(one.minutes, other.minutes)


def test_a_planted_shift_fires_within_minutes_and_quiet_traffic_does_not() -> None:
    stream = simulate(np.random.default_rng(1), Traffic(3600, shift=1), features=5, minutes=DAY, shifted_minutes=60)
    fires = firing(stream, DRIFT)
    assert not fires[:DAY].any()
    assert first(fires[DAY:]).max() <= 15


def test_bursts_without_correction_are_false_alarms_and_with_it_none() -> None:
    stream = simulate(np.random.default_rng(2), Traffic(100, run=5), features=10, minutes=DAY)
    found = known_dispersion(stream)
    assert 3 < np.median(found) < 7  # half a row added to each bin takes some of the 5
    assert episodes(firing(stream, DRIFT)) == 0
    at = np.arange(DAY)
    compared = drift.compare(Windows(stream.minutes).rows(60, at, np.arange(10)), stream.reference)
    assert drift.drifted(compared, min_effect=0.1, min_z=DRIFT.z, min_rows=DRIFT.rows).any()


def test_windows_hold_the_rows_of_their_minutes() -> None:
    random = np.random.default_rng(3)
    minutes = random.integers(0, 9, (500, 2, 3))
    windows, features = Windows(minutes), np.arange(2)
    for length in (10, 60):
        found = windows.rows(length, np.array([4, 300]), features)
        np.testing.assert_array_equal(found, [minutes[:5].sum(axis=0), minutes[301 - length : 301].sum(axis=0)])
    # Longer ones are means of ten increases over ten minutes each.
    sampled = np.array([minutes[max(0, at - 9) : at + 1].sum(axis=0) for at in range(500)])
    for at in (4, 200, 420):
        expected = sampled[max(0, at - 359) : at + 1].sum(axis=0) / 10
        np.testing.assert_allclose(windows.rows(360, np.array([at]), features)[0], expected)


@pytest.mark.parametrize("hold", [0, 2, 5])
def test_an_alert_waits_for_its_hold_time(hold: int) -> None:
    random = np.random.default_rng(hold)
    true = random.random((200, 20)) < 0.7
    found = lasting(lambda at, features: true[np.ix_(at, features)], hold, true.shape)
    expected = [[true[max(0, at - hold) : at + 1, f].all() and at >= hold for f in range(20)] for at in range(200)]
    np.testing.assert_array_equal(found, expected)


def test_an_episode_is_counted_once() -> None:
    fires = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=np.bool_)
    assert episodes(fires) == 3


def test_raw_values_fall_into_their_bins() -> None:
    edges = np.array([[-1.0, 0.0, 0.5]])
    for shift in (0.0, 2.0):
        counts = np.array([10, 20, 0, 5, 7])
        values = raw_values(np.random.default_rng(1), counts, edges[0], 5, shift)
        np.testing.assert_array_equal(
            np.bincount(np.searchsorted(edges[0], values, side="right"), minlength=4), counts[:4]
        )
        assert len(set(values)) == 7
        assert shares(edges, shift)[0].sum() == pytest.approx(1)
        assert shares(edges, shift)[0, 0] == pytest.approx(0.99 * NormalDist(shift).cdf(-1))


def test_others_see_a_large_shift_and_nothing_in_the_reference_itself() -> None:
    reference = np.random.default_rng(4).standard_normal(5000)
    for test in OTHERS.values():
        assert not test(reference, reference)
        assert test(reference, reference[:500] + 2)


def test_the_interval_is_students() -> None:
    low, middle, high = interval(np.array([1.0, 2.0, 3.0]))
    assert middle == pytest.approx(2)
    assert high - middle == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert middle - low == pytest.approx(high - middle)


def test_a_missed_bar_ends_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def part(*_: object) -> list[Finding]:
        return [Finding("rows lost", 1, "rows", 0, at_most=True)]

    monkeypatch.setenv("SHIPWAY_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(bench, "PARTS", {"one": part})
    monkeypatch.setattr(parts, "use_two_cores", lambda: [0, 1])
    monkeypatch.setattr("sys.argv", ["drift-bench"])
    monkeypatch.setattr(bench, "Console", lambda: Console(quiet=True))
    assert bench.main() == 1
    assert (tmp_path / "bench" / "drift.json").read_text().count('"held": false') == 1
