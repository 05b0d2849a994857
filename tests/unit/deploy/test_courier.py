"""The courier as a process: what it takes, and what it starts when there is something to deliver."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.courier import LARGEST_MESSAGE_BYTES
from deploy.programs import environment
from deploy.rollout.ledger import Ledger
from deploy.settings import Settings
from tests.unit.deploy.rollout.stories import ledger, rolled_back
from tests.unit.deploy.rollout.test_alerts import alert, message
from tests.unit.monitoring.grafana_stub import ADMIN, Stub, running
from tests.waiting import wait_for

WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Courier:
    settings: Settings
    process: "subprocess.Popen[bytes]"
    grafana: Stub

    def tell(self, body: bytes, token: str | None = None) -> tuple[int, str]:
        token = self.settings.courier_token.read_text().strip() if token is None else token
        request = urllib.request.Request(
            f"{self.settings.courier_url}/alerts", body, {"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="module")
def courier(short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]) -> Iterator[Courier]:
    """It has an MLflow that is down, and a Grafana."""
    directory = short_directory()
    token = directory / "grafana.token"
    token.write_text(ADMIN)
    token.chmod(0o600)
    mlflow_port, courier_port = free_ports(2)
    with running(13) as grafana, (directory / "courier.log").open("wb") as log:
        settings = Settings(
            state_dir=directory,
            mlflow_port=mlflow_port,
            courier_port=courier_port,
            grafana_url=grafana.url,
            grafana_token_file=token,
        )
        ledger(settings.rollouts_dir, *rolled_back())
        command = [sys.executable, "-m", "deploy.cli", "courier"]
        process = subprocess.Popen(command, env=environment(settings), stdout=log, stderr=log)
        try:
            wait_for(lambda: _live(settings), WITHIN_SECONDS)
            yield Courier(settings, process, grafana)
        finally:
            process.kill()
            process.wait()


def _live(settings: Settings) -> bool:
    try:
        with urllib.request.urlopen(f"{settings.courier_url}/livez", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_place_that_is_down_does_not_hold_up_the_other(courier: Courier) -> None:
    found = Ledger(courier.settings.rollouts_dir, "flights")
    wait_for(lambda: not found.undelivered("grafana"), WITHIN_SECONDS)
    assert [each["text"].partition(":")[0] for each in courier.grafana.annotations] == [
        "flights CANARY",
        "flights ROLLING_BACK",
        "flights ROLLED_BACK",
    ]
    log = courier.settings.state_dir / "courier.log"
    wait_for(lambda: "mlflow: no MLflow server answers" in log.read_text(), WITHIN_SECONDS)
    assert len(found.undelivered("mlflow")) == 6
    assert courier.process.poll() is None


def test_alert_is_in_the_ledger_when_it_is_answered_and_then_in_grafana(courier: Courier) -> None:
    status, text = courier.tell(message(alert()))
    assert (status, json.loads(text)) == (200, {"written": 1, "repeated": 0, "ignored": 0})
    assert Ledger(courier.settings.rollouts_dir, "flights").entries()[-1].kind == "alert"
    wait_for(lambda: "flights alert" in str(courier.grafana.annotations), WITHIN_SECONDS)


@pytest.mark.parametrize(
    ("body", "token", "status", "words"),
    [
        (message(alert()), "wrong", 401, "courier.token is wanted as a bearer token"),
        (message(alert()), "", 401, "wanted"),
        (b"{}", None, 400, "alerts: Field required"),
        (b" " * (LARGEST_MESSAGE_BYTES + 1), None, 413, ""),
    ],
)
def test_what_is_not_alertmanagers_is_refused(
    courier: Courier, body: bytes, token: str | None, status: int, words: str
) -> None:
    found = courier.tell(body, token)
    assert found[0] == status
    assert words in found[1]


def test_it_is_small_and_ends_with_what_it_started(courier: Courier) -> None:
    process = psutil.Process(courier.process.pid)
    assert process.memory_info().rss < 100 * 2**20
    assert "torch" not in str(process.memory_maps())
    assert courier.settings.courier_token.stat().st_mode & 0o777 == 0o600
    courier.tell(message(alert(fingerprint="of its end")))  # there is something to deliver
    started = wait_for(lambda: process.children(recursive=True), WITHIN_SECONDS)
    courier.process.send_signal(signal.SIGTERM)
    assert courier.process.wait(timeout=20) == 0
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
