"""Which programs make up the local stack, and how each is started, recognised as ready, and stopped."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.settings import Settings, variable
from model_store.mlflow_environment import ENVIRONMENT
from monitoring.config import Webhook

# What children may take over from the environment of whoever runs `shipway up`. Everything else stays outside, so that
# a stray MLFLOW_* or PYTHON* variable cannot change what the stack does.
INHERITED = (
    "CUDA_VISIBLE_DEVICES",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
)

SCRAPE_INTERVAL_SECONDS = 5
RULES = "rules.yml"
"""The rule file, beside Prometheus' configuration."""


@dataclass(frozen=True)
class Listener:
    """An address that a program listens on, and the setting that moves it elsewhere."""

    host: str
    port: int
    setting: str


@dataclass(frozen=True)
class Program:
    """One supervised program."""

    name: str
    command: tuple[str, ...]
    listeners: tuple[Listener, ...]
    # Answers 200 as soon as the program is up.
    ready_url: str
    ready_within_seconds: float
    # After SIGTERM and this time, SIGKILL goes to its whole process group.
    stop_within_seconds: int
    # SIGTERM goes to the whole group, or to the program alone when it stops its own children in its own order.
    stop_whole_group: bool


def programs(settings: Settings) -> list[Program]:
    """The programs in the order of their start; they are stopped in the opposite one."""
    mlflow = [_mlflow(settings)] if settings.mlflow_is_local else []
    # Alerts come from our own Prometheus alone.
    watchers = [_prometheus(settings), _alertmanager(settings)] if settings.prometheus_is_local else []
    return [*mlflow, _courier(settings), *watchers, _node(settings)]


def _mlflow(settings: Settings) -> Program:
    return Program(
        name="mlflow",
        command=(
            *(sys.executable, "-m", "model_store.mlflow_server", "server"),
            *("--host", "127.0.0.1", "--port", str(settings.mlflow_port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{settings.mlflow_dir}/mlflow.db"),
            *("--serve-artifacts", "--artifacts-destination", str(settings.mlflow_dir / "artifacts")),
        ),
        listeners=(Listener("127.0.0.1", settings.mlflow_port, variable("mlflow_port")),),
        ready_url=f"{settings.mlflow_uri}/health",
        # The first start creates the database, and importing MLflow takes seconds on a small machine.
        ready_within_seconds=120,
        stop_within_seconds=10,
        stop_whole_group=True,
    )


def _courier(settings: Settings) -> Program:
    return Program(
        name="courier",
        command=(sys.executable, "-m", "deploy.cli", "courier"),
        listeners=(Listener("127.0.0.1", settings.courier_port, variable("courier_port")),),
        ready_url=f"{settings.courier_url}/livez",
        ready_within_seconds=60,
        stop_within_seconds=10,
        stop_whole_group=True,
    )


def _prometheus(settings: Settings) -> Program:
    return Program(
        name="prometheus",
        command=(
            "prometheus",
            f"--config.file={settings.prometheus_dir / 'prometheus.yml'}",
            f"--storage.tsdb.path={settings.prometheus_dir / 'data'}",
            "--storage.tsdb.retention.time=15d",
            "--storage.tsdb.retention.size=1GB",
            f"--web.listen-address=127.0.0.1:{settings.prometheus_port}",
        ),
        listeners=(Listener("127.0.0.1", settings.prometheus_port, variable("prometheus_port")),),
        ready_url=f"{settings.prometheus_url}/-/ready",
        ready_within_seconds=60,
        stop_within_seconds=10,
        stop_whole_group=True,
    )


def _alertmanager(settings: Settings) -> Program:
    return Program(
        name="alertmanager",
        command=(
            "prometheus-alertmanager",
            f"--config.file={settings.alertmanager_dir / 'alertmanager.yml'}",
            f"--storage.path={settings.alertmanager_dir / 'data'}",
            f"--web.listen-address=127.0.0.1:{settings.alertmanager_port}",
            # Else it looks for others of its kind at port 9094, on every address.
            "--cluster.listen-address=",
        ),
        listeners=(Listener("127.0.0.1", settings.alertmanager_port, variable("alertmanager_port")),),
        ready_url=f"{settings.alertmanager_url}/-/ready",
        ready_within_seconds=60,
        stop_within_seconds=10,
        stop_whole_group=True,
    )


def _node(settings: Settings) -> Program:
    return Program(
        name="node",
        command=(sys.executable, "-m", "deploy.cli", "node"),
        listeners=(
            Listener(settings.host, settings.http_port, variable("http_port")),
            Listener(settings.metrics_host, settings.metrics_port, variable("metrics_port")),
        ),
        # Alive, not ready: a node that was given no model yet is never ready.
        ready_url=f"{settings.metrics_url}/livez",
        ready_within_seconds=90,
        # The launcher drains first and then stops its children itself.
        stop_within_seconds=math.ceil(settings.drain_seconds) + 20,
        stop_whole_group=False,
    )


def environment(settings: Settings, outside: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The whole environment of the stack's processes: these settings, resolved, and a few variables from `outside`."""
    return {
        **{name: outside[name] for name in INHERITED if name in outside},
        **settings.as_environment(),
        "PYTHONUNBUFFERED": "1",
        # MLflow's job runner (LLM judges) is a dozen processes that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **{name: ENVIRONMENT[name] for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")},
    }


def prometheus_config(settings: Settings, job: str) -> str:
    """Prometheus' configuration: a job that scrapes the node, the rules beside this file, and whom alerts go to."""
    return f"""\
global:
  scrape_interval: {SCRAPE_INTERVAL_SECONDS}s
rule_files: ["{RULES}"]
alerting:
  alertmanagers:
    - static_configs:
        - targets: ["{settings.alertmanager_url.removeprefix("http://")}"]
scrape_configs:
  - job_name: "{job}"
    static_configs:
      - targets: ["{settings.metrics_url.removeprefix("http://")}"]
"""


def alerts_receiver(settings: Settings) -> Webhook:
    """Where Alertmanager tells the courier, which writes alerts into the ledgers."""
    return Webhook(url=f"{settings.courier_url}/alerts", token_file=settings.courier_token)
