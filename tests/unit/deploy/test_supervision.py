import configparser
import shlex
import socket
from pathlib import Path

import pytest

from deploy.errors import SocketPathTooLong
from deploy.programs import environment, programs, prometheus_config
from deploy.settings import Settings
from deploy.supervision import SOCKET_PATH_LIMIT_BYTES, Supervisor, socket_path, supervisord_config


def parsed(settings: Settings) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(supervisord_config(programs(settings), settings.run_dir, settings.logs_dir))
    return parser


def test_node_is_told_to_stop_alone_and_has_the_time_to_drain(tmp_path: Path) -> None:
    config = parsed(Settings(state_dir=tmp_path, drain_seconds=45))
    assert config["program:node"]["stopasgroup"] == "false"
    assert int(config["program:node"]["stopwaitsecs"]) > 45
    assert config["program:mlflow"]["stopasgroup"] == "true"
    assert all(config[name]["killasgroup"] == "true" for name in config if name.startswith("program:"))


def test_command_survives_spaces_and_percent_signs() -> None:
    settings = Settings(state_dir=Path("/var/100% a b"))
    command = parsed(settings)["program:prometheus"]["command"]
    # What supervisord does: expand, then split.
    assert shlex.split(command % {})[1] == "--config.file=/var/100% a b/prometheus/prometheus.yml"


def test_configuration_holds_no_environment(tmp_path: Path) -> None:
    config = parsed(Settings(state_dir=tmp_path))
    assert not any("environment" in config[section] for section in config)


def test_mlflow_of_others_is_not_started(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, mlflow_uri="http://mlflow.example")
    assert [program.name for program in programs(settings)] == ["courier", "prometheus", "alertmanager", "node"]


def test_prometheus_of_others_is_not_started(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, prometheus_url="http://prometheus.example")
    assert [program.name for program in programs(settings)] == ["mlflow", "courier", "node"]


def test_environment_takes_little_from_outside_and_settings_win(tmp_path: Path) -> None:
    outside = {"PATH": "/bin", "MLFLOW_BACKEND_STORE_URI": "sqlite:///other", "SHIPWAY_HTTP_PORT": "1"}
    inside = environment(Settings(state_dir=tmp_path), outside)
    assert inside["PATH"] == "/bin"
    assert "MLFLOW_BACKEND_STORE_URI" not in inside
    assert inside["SHIPWAY_HTTP_PORT"] == "8080"
    assert inside["SHIPWAY_STATE_DIR"] == str(tmp_path)


def test_prometheus_scrapes_the_node(tmp_path: Path) -> None:
    assert 'targets: ["127.0.0.1:7777"]' in prometheus_config(
        Settings(state_dir=tmp_path, metrics_port=7777), "shipway-node"
    )


def test_longest_accepted_socket_path_can_be_bound(state_dir: Path) -> None:
    # supervisord binds a temporary name with its process id in it first; those have up to 7 digits.
    room = SOCKET_PATH_LIMIT_BYTES - len("/supervisor.sock") - len(".4194304")
    directory = state_dir / ("r" * (room - len(str(state_dir)) - 1))
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{socket_path(directory)}.4194304")
    with pytest.raises(SocketPathTooLong, match="SHIPWAY_RUN_DIR"):
        socket_path(directory.with_name(directory.name + "r"))


def test_nobody_answers_where_nothing_runs(state_dir: Path) -> None:
    assert not Supervisor(socket_path(state_dir)).answers()
