"""From a metric to a person: the real Prometheus evaluates the rules, and the real Alertmanager tells a webhook."""

import contextlib
import json
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.node.desired import serve
from deploy.programs import RULES, alerts_receiver, environment, programs, prometheus_config
from deploy.rollout.ledger import Ledger
from deploy.settings import Settings
from monitoring.alertmanager import alertmanager_file
from monitoring.config import Config
from monitoring.names import EDGE_OVERFLOWS
from monitoring.rules.file import rule_file
from tests.waiting import wait_for

WITHIN_SECONDS = 60


@dataclass
class Outside:
    """What the two programs see of the world: a node whose version refuses more and more, and a person's webhook."""

    port: int = 0
    scrapes: int = 0
    messages: list[tuple[str | None, dict[str, Any]]] = field(default_factory=list)
    """Authorization and body of each call."""


@dataclass(frozen=True)
class Running:
    settings: Settings
    outside: Outside


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    seen = Outside()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.scrapes += 1
            self._answer(f'{EDGE_OVERFLOWS.name}{{model="flights",version="7"}} {seen.scrapes}\n'.encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.messages.append((self.headers["Authorization"], body))
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        seen.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield seen
        server.shutdown()


@pytest.fixture(scope="module")
def running(
    outside: Outside, short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]
) -> Iterator[Running]:
    """The three programs as `shipway up` starts them, with its files; only their intervals are shorter."""
    directory = short_directory()
    prometheus_port, alertmanager_port, courier_port = free_ports(3)
    settings = Settings(
        state_dir=directory,
        metrics_port=outside.port,
        prometheus_port=prometheus_port,
        alertmanager_port=alertmanager_port,
        courier_port=courier_port,
    )
    token = directory / "token"
    token.write_text("of-the-test")
    url = f"http://127.0.0.1:{outside.port}/"
    config = Config.model_validate({"webhook": {"url": url, "token_file": token}})
    files = {
        settings.prometheus_dir / "prometheus.yml": prometheus_config(settings, config.health.job),
        settings.prometheus_dir / RULES: rule_file(config),
        settings.alertmanager_dir / "alertmanager.yml": alertmanager_file(config, alerts_receiver(settings)),
    }
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        hurried = text.replace("interval: 1m", "interval: 1s").replace("interval: 5s", "interval: 1s")
        path.write_text(hurried.replace("group_wait: 30s", "group_wait: 1s"))
    serve(settings.desired_file, "flights", 7, "sha256:" + "7" * 64)
    started = {program.name: program for program in programs(settings)}
    with contextlib.ExitStack() as stack:
        for name in ("courier", "alertmanager", "prometheus"):
            log = stack.enter_context((directory / f"{name}.log").open("w"))
            process = subprocess.Popen(
                started[name].command, cwd=directory, env=environment(settings), stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for name in ("courier", "alertmanager", "prometheus"):
            wait_for(lambda url=started[name].ready_url: _answers(url), WITHIN_SECONDS)  # type: ignore[misc]
        yield Running(settings, outside)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _alerts(running: Running) -> dict[str, dict[str, Any]]:
    """Alertmanager's alerts by name."""
    with urllib.request.urlopen(f"{running.settings.alertmanager_url}/api/v2/alerts", timeout=5) as answer:
        return {one["labels"]["alertname"]: one for one in json.load(answer)}


def test_alert_reaches_the_webhook_with_all_that_a_person_needs(running: Running) -> None:
    authorization, message = wait_for(lambda: running.outside.messages, WITHIN_SECONDS)[0]
    assert authorization == "Bearer of-the-test"
    assert (message["status"], message["groupLabels"]) == ("firing", {"model": "flights", "version": "7"})
    (alert,) = message["alerts"]
    assert alert["labels"] == {
        "alertname": "QueueSaturated",
        "model": "flights",
        "version": "7",
        "severity": "ticket",
        "sign": "overflow",
    }
    assert alert["annotations"]["summary"] == "flights version 7 refuses requests because too many are there"
    assert alert["annotations"]["description"].endswith(" requests were answered 503 within 5 minutes.")
    assert alert["annotations"]["runbook_url"] == "monitoring/RUNBOOK.md#queuesaturated"


def test_alert_stands_in_the_ledger_of_its_model(running: Running) -> None:
    entry = wait_for(lambda: Ledger(running.settings.rollouts_dir, "flights").entries(), WITHIN_SECONDS)[0]
    assert (entry.kind, entry.detail["alertname"], entry.detail["status"]) == ("alert", "QueueSaturated", "firing")
    assert entry.words.startswith("QueueSaturated: flights version 7 refuses requests because too many are there")


def test_rules_are_evaluated_without_a_fault(running: Running) -> None:
    def evaluated() -> list[dict[str, Any]] | None:
        with urllib.request.urlopen(f"{running.settings.prometheus_url}/api/v1/rules", timeout=5) as answer:
            rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    faults = [rule for rule in wait_for(evaluated, WITHIN_SECONDS) if rule["health"] != "ok"]
    assert faults == []


@pytest.mark.parametrize(
    ("loud", "held_back", "told"),
    [
        (
            {"alertname": "NodeDown", "severity": "page", "instance": "n1"},
            {"alertname": "GpuXid", "severity": "page", "instance": "n1", "gpu": "0"},
            {"alertname": "GpuThrottled", "severity": "ticket", "instance": "n2", "gpu": "0"},
        ),
        (
            {"alertname": "AvailabilityBurn", "severity": "page", "model": "m", "version": "1"},
            {"alertname": "FeatureDrift", "severity": "ticket", "model": "m", "version": "1"},
            {"alertname": "RffDrift", "severity": "ticket", "model": "m", "version": "2"},
        ),
    ],
    ids=["node down", "page"],
)
def test_loud_alert_holds_back_what_it_explains(
    running: Running, loud: dict[str, str], held_back: dict[str, str], told: dict[str, str]
) -> None:
    body = json.dumps([{"labels": labels} for labels in (loud, held_back, told)]).encode()
    request = urllib.request.Request(
        f"{running.settings.alertmanager_url}/api/v2/alerts", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5):
        pass

    def held_back_alone() -> bool:
        found = _alerts(running)
        names = [labels["alertname"] for labels in (loud, held_back, told)]
        return [found[name]["status"]["state"] for name in names if name in found] == ["active", "suppressed", "active"]

    wait_for(held_back_alone, WITHIN_SECONDS)


def test_alertmanager_listens_for_no_others(running: Running) -> None:
    with urllib.request.urlopen(f"{running.settings.alertmanager_url}/api/v2/status", timeout=5) as answer:
        assert json.load(answer)["cluster"]["status"] == "disabled"
