"""`up`, `down` and `status` with the real MLflow, Prometheus, Alertmanager and node."""

import contextlib
import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from deploy import stack
from deploy.errors import PortTaken, ProgramFailed, SettingsChanged, StackBusy
from deploy.processes import marked
from deploy.settings import Settings
from deploy.supervision import Supervisor, socket_path
from monitoring.config import Config
from monitoring.rules.file import rule_file
from tests.stacks import PORTS, free_stack_ports
from tests.waiting import wait_for


def quiet() -> Console:
    return Console(file=StringIO())


def settings_on(state_dir: Path) -> Settings:
    return Settings.model_validate({"state_dir": state_dir, "drain_seconds": 5, **free_stack_ports()})


def states(settings: Settings) -> dict[str, str]:
    return {one.name: one.state for one in stack.status(settings).processes}


def pids(settings: Settings) -> dict[str, int | None]:
    return {one.name: one.pid for one in stack.status(settings).processes}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Settings]:
    try:
        stack.up(settings, quiet())
        yield settings
    finally:
        stack.down(settings, quiet())


@pytest.fixture(scope="module")
def shared(short_directory: Callable[[], Path]) -> Iterator[Settings]:
    """A stack that runs for all tests of this module which leave it as it was."""
    directory = short_directory()
    with running(settings_on(directory)) as settings:
        yield settings
    assert marked(directory) == []


def test_everything_runs_and_answers(shared: Settings) -> None:
    assert states(shared) == dict.fromkeys(("mlflow", "courier", "prometheus", "alertmanager", "node"), "RUNNING")
    urls = stack.status(shared).urls
    assert get(f"{urls['mlflow']}/health") == "OK"
    assert "Prometheus" in get(f"{urls['prometheus']}/-/ready")
    assert get(f"{urls['alertmanager']}/-/ready") == "OK"
    assert "# TYPE" in get(urls["metrics"])


def test_status_is_json_and_a_table(shared: Settings) -> None:
    found = json.loads(json.dumps(stack.status(shared).as_dict()))
    assert {one["name"] for one in found["processes"]} == {"mlflow", "courier", "prometheus", "alertmanager", "node"}
    assert all(one["pid"] > 0 and one["uptime_seconds"] >= 0 for one in found["processes"])
    assert found["models"] == []
    console = quiet()
    console.print(stack.status(shared).table())
    assert isinstance(console.file, StringIO)
    assert f"http://127.0.0.1:{shared.http_port}" in console.file.getvalue()


def test_second_up_changes_nothing(shared: Settings) -> None:
    before = pids(shared)
    stack.up(shared, quiet())
    assert pids(shared) == before


def test_up_starts_what_has_stopped(shared: Settings) -> None:
    before = pids(shared)
    Supervisor(socket_path(shared.run_dir)).stop("prometheus")
    assert states(shared)["prometheus"] == "STOPPED"
    stack.up(shared, quiet())
    after = pids(shared)
    assert after.pop("prometheus") != before.pop("prometheus")
    assert after == before


def test_program_that_dies_is_started_again(shared: Settings) -> None:
    pid = pids(shared)["prometheus"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pids(shared)["prometheus"] not in (pid, None), within_seconds=15)
    wait_for(lambda: states(shared)["prometheus"] == "RUNNING", within_seconds=15)


def test_other_settings_are_refused_while_it_runs(shared: Settings) -> None:
    other = shared.model_copy(update={"jvm_heap_mib": 1024})
    with pytest.raises(SettingsChanged, match="SHIPWAY_JVM_HEAP_MIB is 512, now asked for: 1024"):
        stack.up(other, quiet())


def test_prometheus_scrapes_the_node(shared: Settings) -> None:
    def healthy() -> bool:
        targets = json.loads(get(f"{shared.prometheus_url}/api/v1/targets"))["data"]["activeTargets"]
        return [(one["labels"]["job"], one["health"]) for one in targets] == [("shipway-node", "up")]

    wait_for(healthy, within_seconds=20)


def test_prometheus_evaluates_the_rules_and_knows_alertmanager(shared: Settings) -> None:
    groups = json.loads(get(f"{shared.prometheus_url}/api/v1/rules"))["data"]["groups"]
    assert len(groups) == rule_file(Config()).count("- name: ")
    found = json.loads(get(f"{shared.prometheus_url}/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
    assert [one["url"] for one in found] == [f"{shared.alertmanager_url}/api/v2/alerts"]


def test_sockets_are_for_their_owner_alone(shared: Settings) -> None:
    assert shared.run_dir.stat().st_mode & 0o777 == 0o700
    assert socket_path(shared.run_dir).stat().st_mode & 0o077 == 0


def test_down_ends_everything_even_after_supervisord_was_killed(state_dir: Path) -> None:
    with running(settings_on(state_dir)) as settings:
        ports = [getattr(settings, name) for name in PORTS]
        os.kill(Supervisor(socket_path(settings.run_dir)).pid(), signal.SIGKILL)
        assert len(marked(state_dir)) >= 3
        assert set(states(settings).values()) == {"STOPPED"}
        stack.down(settings, quiet())
        assert marked(state_dir) == []
        for port in ports:
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
                pass
        # And once more, with nothing to do.
        stack.down(settings, quiet())


def test_taken_port_stops_up_before_anything_starts(state_dir: Path) -> None:
    settings = settings_on(state_dir)
    with socket.create_server(("127.0.0.1", settings.http_port)):
        with pytest.raises(PortTaken, match=rf"taken by process {os.getpid()} .*SHIPWAY_HTTP_PORT=<port>"):
            stack.up(settings, quiet())
        assert marked(state_dir) == []


def test_failed_start_shows_the_end_of_the_log(state_dir: Path) -> None:
    # With an MLflow of others, Prometheus is the first program, and it wants a directory where we put a file.
    settings = settings_on(state_dir).model_copy(update={"mlflow_uri": "http://127.0.0.1:1"})
    settings.prometheus_dir.mkdir()
    (settings.prometheus_dir / "data").touch()
    try:
        with pytest.raises(
            ProgramFailed, match=r"(?s)prometheus ended right after its start.*prometheus\.log.*\| .*data"
        ):
            stack.up(settings, quiet())
    finally:
        stack.down(settings, quiet())
    assert marked(state_dir) == []


def test_two_at_once_are_refused(state_dir: Path) -> None:
    settings = settings_on(state_dir)
    with stack._alone(state_dir), pytest.raises(StackBusy, match="another `shipway up`"):
        stack.up(settings, quiet())
