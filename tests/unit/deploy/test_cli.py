import json
import subprocess
import sys
from pathlib import Path

from model_store.training import TRAININGS


def shipway(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nothing_runs_in_a_new_state_directory(state_dir: Path) -> None:
    result = shipway("status", "--json", SHIPWAY_STATE_DIR=str(state_dir / "new"))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found["urls"]) == {"http", "grpc", "metrics", "mlflow", "prometheus", "alertmanager", "courier"}
    assert {one["name"]: one["state"] for one in found["processes"]} == {
        "mlflow": "STOPPED",
        "courier": "STOPPED",
        "prometheus": "STOPPED",
        "alertmanager": "STOPPED",
        "node": "STOPPED",
    }
    assert found["models"] == []
    assert not (state_dir / "new").exists()


def test_down_is_harmless_when_nothing_runs(state_dir: Path) -> None:
    result = shipway("down", SHIPWAY_STATE_DIR=str(state_dir / "new"))
    assert (result.returncode, result.stdout) == (0, "Nothing runs.\n")


def test_error_is_one_message_and_exit_code_1() -> None:
    result = shipway("status", SHIPWAY_PORT="1")
    assert result.returncode == 1
    assert result.stderr.startswith("shipway: the settings are not usable:\n  SHIPWAY_PORT is not a setting")
    assert "Traceback" not in result.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert shipway("start").returncode == 2


def test_delivery_to_a_grafana_that_is_not_configured_is_wrong_usage(state_dir: Path) -> None:
    result = shipway("deliver", "--to", "grafana", SHIPWAY_STATE_DIR=str(state_dir))
    assert result.returncode == 2
    assert "no Grafana is configured; name it in SHIPWAY_GRAFANA_URL" in result.stderr


def test_unknown_training_is_refused_with_the_list() -> None:
    result = shipway("train", "trains")
    assert result.returncode == 2
    assert "'trains' is not one of 'flights'" in result.stderr
    found = shipway("train", "--help").stdout
    assert all(name in found and what in found for name, (_, what) in TRAININGS.items())


def test_missing_extra_is_named() -> None:
    source = "import sys; sys.modules['psutil'] = None; sys.argv[1:] = ['status']; from deploy.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr == "shipway: this command needs 'psutil', which the extra shipway[local] installs\n"


def test_rules_are_printed_for_those_who_run_their_own(tmp_path: Path) -> None:
    config = tmp_path / "monitoring.yml"
    config.write_text("drift: {z: 6.25}")
    rules = shipway("rules", SHIPWAY_MONITORING_CONFIG=str(config))
    assert (rules.returncode, rules.stderr) == (0, "")
    assert rules.stdout.startswith("groups:\n")
    assert "shipway_feature:z:1h > 6.25" in rules.stdout
    assert shipway("rules", "--alertmanager").stdout.startswith("route:\n")
