import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monitoring.config import Config
from monitoring.dashboards.catalogue import dashboards
from monitoring.errors import FilesNotWritten
from monitoring.grafana import data_source
from monitoring.provisioning import write_provisioning


def test_files_hold_what_is_pushed(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    written = write_provisioning(directory, Config(), "http://prometheus:9090")
    assert sorted(path for path in directory.rglob("*") if path.is_file()) == sorted(written)
    (source,) = yaml.safe_load((directory / "provisioning/datasources/shipway.yaml").read_text())["datasources"]
    assert source == data_source("http://prometheus:9090")
    found = [
        json.loads(path.read_text()) for path in written if path.parent.name == "dashboards" and path.suffix == ".json"
    ]
    assert found == dashboards(Config())


def test_grafana_is_told_where_it_sees_the_dashboards(tmp_path: Path) -> None:
    def told() -> str:
        text = (tmp_path / "provisioning/dashboards/shipway.yaml").read_text()
        return str(yaml.safe_load(text)["providers"][0]["options"]["path"])

    write_provisioning(tmp_path, Config(), "http://prometheus:9090")
    assert told() == f"{tmp_path}/dashboards"
    write_provisioning(tmp_path, Config(), "http://prometheus:9090", Path("/etc/grafana/shipway"))
    assert told() == "/etc/grafana/shipway/dashboards"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "provisioning").touch()
    with pytest.raises(FilesNotWritten, match=f"cannot be written below {tmp_path}: "):
        write_provisioning(tmp_path, Config(), "http://prometheus:9090")


def test_command_prints_what_it_wrote(tmp_path: Path) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SHIPWAY_")}
    result = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "grafana", "files", str(tmp_path)],
        env={**outside, "SHIPWAY_GRAFANA_PROMETHEUS_URL": "http://prometheus:9090"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(result.stdout.splitlines()) == 6
    assert all(Path(line).is_file() for line in result.stdout.splitlines())
    assert "url: http://prometheus:9090\n" in (tmp_path / "provisioning/datasources/shipway.yaml").read_text()
