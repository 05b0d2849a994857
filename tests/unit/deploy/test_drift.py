"""`shipway drift` on a real Prometheus: two nodes, one of them restarted, counted as one."""

import json
from pathlib import Path

import numpy as np
import pytest

from deploy.drift import Judged, Question, Thresholds, examine
from deploy.errors import NoData
from model_store.archive import archive_name, file_digest, sign_archive, write
from model_store.signing import create_key
from monitoring import config, drift
from monitoring.profile import Profile
from tests.unit.deploy.conftest import FEATURES, NASTY, Fleet
from tests.unit.deploy.test_cli import shipway

HOUR = 3600


def ask(fleet: Fleet, archives_dir: Path, version: int | None = None, window_seconds: int = 6 * HOUR) -> Question:
    limits = Thresholds.of(config.Drift(), window_seconds)
    return Question("flights", version, window_seconds, fleet.end, limits, archives_dir)


def by_name(features: tuple[Judged, ...]) -> dict[str, Judged]:
    return {one.counts.feature: one for one in features}


def packaged(archives_dir: Path, keys: Path) -> None:
    """An archive of version 3 whose dep_delay has its edges at 100, 200, ... 900."""
    values = np.arange(1000, dtype=np.float32)
    profile = Profile.build({"dep_delay": values}, {}, {})
    archives_dir.mkdir()
    path = archives_dir / "new"
    write(path, {"profile.json": profile.to_json()})
    path = path.rename(archives_dir / archive_name("flights", 3, file_digest(path)))
    create_key(keys / "signing.pem", keys / "trust")
    sign_archive(path, "flights", 3, keys / "signing.pem")


def test_two_nodes_and_a_restart_are_counted_as_one_process(fleet: Fleet, tmp_path: Path) -> None:
    found = examine(fleet.prometheus, ask(fleet, tmp_path))
    assert found.version == 3
    assert found.versions[3] == pytest.approx(72_000)
    one, traffic = by_name(found.features)["dep_delay"], FEATURES[0]
    counts = [72_000 * traffic.shares[label] for label in one.counts.labels]
    expected = drift.compare(counts, list(traffic.reference.values()))
    assert one.psi_excess == pytest.approx(float(expected.psi_excess), rel=1e-3)
    assert one.z == pytest.approx(float(expected.z), rel=1e-3)


def test_what_moved_is_found_and_what_stayed_is_left(fleet: Fleet, tmp_path: Path) -> None:
    found = examine(fleet.prometheus, ask(fleet, tmp_path))
    assert [(one.counts.feature, one.verdict) for one in found.features[:3]] == [
        ("dep_delay", "drifted"),
        ("origin", "steady"),
        ("carrier", "drifted"),
    ]
    assert {one.verdict for one in found.features[3:]} == {"steady"}
    features = by_name(found.features)
    assert features["dep_delay"].words == (
        "the profile's highest 10% went from 10% to 34%; missing from 0% to 5%"  # 0.32 of the 0.95 that have a value
    )
    assert features["carrier"].words == f"UA went from 16% to 2%; {NASTY} from 34% to 48%"
    assert found.fourier_verdict == "drifted"
    assert found.fourier is not None
    assert found.fourier.shift_excess == pytest.approx(0.2**2, rel=0.01)


@pytest.mark.parametrize(
    ("window_seconds", "verdict", "wanted"),
    [(6 * HOUR, "steady", 0.7), (HOUR, "drifted", 0.2), (24 * HOUR, "too young", 0.2)],
)
def test_what_windows_of_the_training_rows_reach_is_no_drift(
    fleet: Fleet, tmp_path: Path, window_seconds: int, verdict: str, wanted: float
) -> None:
    found = examine(fleet.prometheus, ask(fleet, tmp_path, window_seconds=window_seconds))
    origin = by_name(found.features)["origin"]
    assert (origin.verdict, origin.effect) == (verdict, wanted)
    assert 0.2 < origin.psi_excess < 0.7
    assert by_name(found.features)["carrier"].effect == found.thresholds.effect < wanted
    assert found.notes()[1].startswith("Of 1 features, windows of")


def test_edges_come_from_the_archive_of_the_version(fleet: Fleet, tmp_path: Path) -> None:
    packaged(tmp_path / "archives", tmp_path)
    found = examine(fleet.prometheus, ask(fleet, tmp_path / "archives"))
    assert by_name(found.features)["dep_delay"].words.startswith("values of 900 or more went from 10% to 34%")


def test_few_rows_are_no_verdict(fleet: Fleet, tmp_path: Path) -> None:
    found = examine(fleet.prometheus, ask(fleet, tmp_path, version=4))
    assert {one.verdict for one in found.features} == {"too few rows"}
    assert "5 too few rows" in found.headline()


def test_no_data_says_what_there_is_instead(fleet: Fleet, tmp_path: Path) -> None:
    asked = ask(fleet, tmp_path)
    with pytest.raises(
        NoData, match=r"no rows of trains in the last 6h; models with rows are flights\. Send it traffic"
    ):
        examine(fleet.prometheus, Question("trains", None, *list(vars(asked).values())[2:]))
    with pytest.raises(NoData, match=r"no rows of flights version 9 in the last 6h; versions with rows are 3, 4"):
        examine(fleet.prometheus, ask(fleet, tmp_path, version=9))


@pytest.mark.parametrize(
    ("window", "effect"), [(60, 0.25), (600, 0.25), (HOUR, 0.1), (3 * HOUR, 0.1), (8 * HOUR, 0.05)]
)
def test_thresholds_are_those_of_the_longest_alert_window_that_fits(window: int, effect: float) -> None:
    assert Thresholds.of(config.Drift(), window).effect == effect


def test_the_command_prints_a_table_for_people_and_json_for_programs(fleet: Fleet, state_dir: Path) -> None:
    settings = {
        "SHIPWAY_STATE_DIR": str(state_dir),
        "SHIPWAY_PROMETHEUS_URL": fleet.prometheus.url,
        "COLUMNS": "200",
    }
    table = shipway("drift", "flights", "--since", "6h", **settings)
    assert table.returncode == 0, table.stderr
    assert "2 of 5 features drifted" in table.stdout
    assert "the profile's highest 10% went from 10% to 34%" in table.stdout
    assert "bursts of equal rows look like drift" in table.stdout
    assert "distance" not in table.stdout
    assert "distance" in shipway("drift", "flights", "--all", **settings).stdout
    found = json.loads(shipway("drift", "flights", "--json", **settings).stdout)
    assert (found["version"], found["window_seconds"]) == (3, HOUR)
    assert found["features"][0]["feature"] == "dep_delay"
    assert found["features"][0]["bins"][-1] == {
        "bin": "missing",
        "reference_rows": 0,
        "rows": pytest.approx(600, rel=0.05),
    }
    assert all('version="3"' in found["queries"][name] for name in ("live", "reference"))


def test_the_command_ends_with_1_and_words_where_there_is_no_data(fleet: Fleet, state_dir: Path) -> None:
    result = shipway("drift", "trains", SHIPWAY_STATE_DIR=str(state_dir), SHIPWAY_PROMETHEUS_URL=fleet.prometheus.url)
    assert result.returncode == 1
    assert result.stderr.startswith(f"shipway: the Prometheus at {fleet.prometheus.url} has no rows of trains")


def test_the_command_judges_by_the_configured_thresholds(fleet: Fleet, state_dir: Path) -> None:
    (state_dir / "monitoring.yaml").write_text("drift: {rows: 1000000}")
    settings = {
        "SHIPWAY_STATE_DIR": str(state_dir),
        "SHIPWAY_PROMETHEUS_URL": fleet.prometheus.url,
        "SHIPWAY_MONITORING_CONFIG": str(state_dir / "monitoring.yaml"),
    }
    found = json.loads(shipway("drift", "flights", "--json", **settings).stdout)
    assert found["thresholds"]["rows"] == 1_000_000
    assert {one["verdict"] for one in found["features"]} == {"too few rows"}
