"""`up`, `down` and `status` of everything on one machine; `programs.py` says what that is, supervisord runs it."""

import contextlib
import fcntl
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.errors import ProgramFailed, ProgramMissing, SettingsChanged, StackBusy
from deploy.node import desired
from deploy.node.desired import Actual, ActualEndpoint
from deploy.objectives import read_objectives
from deploy.processes import MARK, check_free, end, marked
from deploy.programs import RULES, Program, alerts_receiver, environment, programs, prometheus_config
from deploy.settings import Settings
from deploy.supervision import Supervised, Supervisor, daemon_command, socket_path, supervisord_config
from monitoring.alertmanager import alertmanager_file
from monitoring.rules.file import rule_file

POLL_SECONDS = 0.1
LAST_LINES = 20
PROGRAMS_THAT_RUN = {"STARTING", "RUNNING"}
DAEMON_WITHIN_SECONDS = 20
FROM_DEBIAN = ("prometheus", "prometheus-alertmanager")


@dataclass(frozen=True)
class ModelStatus:
    """One version in service; `state` is LOADING, READY or FAILED, and so is its explainer's, empty without one."""

    model: str
    version: int
    digest: str
    weight: int
    state: str
    explainer: str


@dataclass(frozen=True)
class Status:
    """What runs now. `processes` has every program, stopped ones too; `models` is empty when no node runs."""

    urls: dict[str, str]
    processes: list[Supervised]
    models: list[ModelStatus]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Group:
        """The same for a person."""
        processes = Table("program", "state", "pid", "up for")
        for one in self.processes:
            processes.add_row(one.name, one.state, _or_dash(one.pid), _duration(one.uptime_seconds))
        models = Table("model", "version", "weight", "state", "explainer", "digest")
        for model in self.models:
            models.add_row(
                model.model, str(model.version), f"{model.weight}%", model.state, model.explainer or "-", model.digest
            )
        urls = Table("what", "where")
        for name, url in self.urls.items():
            urls.add_row(name, url)
        warnings = [f"Warning: {escape(each)}" for each in self.warnings]
        return Group(processes, models if self.models else "No model is in service.", urls, *warnings)


def up(settings: Settings, console: Console) -> None:
    """Start the programs that do not run yet, and return when each of them answers.

    Raises:
        InvalidSettings: the node would be open to everybody.
        StackError: with what is in the way, or with the end of the log of the program that did not come up; programs
            that did come up keep running.
    """
    settings.refuse_exposed()
    supervisor = Supervisor(socket_path(settings.run_dir))
    with _alone(settings.state_dir):
        if supervisor.answers():
            _refuse_other_settings(settings)
        else:
            _start_supervisord(settings, supervisor, console)
        running = supervisor.programs()
        wanted = programs(settings)
        stopped = [program for program in wanted if running[program.name].state not in PROGRAMS_THAT_RUN]
        check_free(listener for program in stopped for listener in program.listeners)
        log_sizes = {program.name: _size(_log(settings, program)) for program in stopped}
        for program in stopped:
            supervisor.start(program.name)
        for program in wanted:
            if program not in stopped:
                console.print(f"{program.name} already runs")
        _wait_until_ready(settings, supervisor, stopped, log_sizes, console)


def down(settings: Settings, console: Console) -> None:
    """Stop every process of the stack, also after supervisord was killed; harmless when nothing runs."""
    supervisor = Supervisor(socket_path(settings.run_dir))
    if not settings.state_dir.exists() and not marked(settings.state_dir):
        console.print("Nothing runs.")
        return
    with _alone(settings.state_dir):
        found = marked(settings.state_dir)
        if supervisor.answers():
            _shut_down(supervisor, settings)
        # Orphans of a killed supervisord, and whatever left its program's process group.
        end(marked(settings.state_dir), within_seconds=max(one.stop_within_seconds for one in programs(settings)))
        supervisor.socket.unlink(missing_ok=True)
    console.print(f"Stopped {len(found)} processes." if found else "Nothing runs.")


def status(settings: Settings) -> Status:
    """What runs now; asks supervisord and reads the node's file, and starts or changes nothing."""
    supervisor = Supervisor(socket_path(settings.run_dir))
    running = supervisor.programs() if supervisor.answers() else {}
    node = desired.running(settings.actual_file)
    return Status(
        urls={
            "http": settings.http_url,
            "grpc": settings.grpc_target,
            "metrics": f"{settings.metrics_url}/metrics",
            "mlflow": settings.mlflow_uri,
            "prometheus": settings.prometheus_url,
            "alertmanager": settings.alertmanager_url,
            "courier": settings.courier_url,
        },
        processes=[
            running.get(program.name, Supervised(program.name, "STOPPED", None, None)) for program in programs(settings)
        ],
        models=_models(node) if node else [],
        warnings=[*node.warnings, *_unexplained(node)] if node else [],
    )


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[None]:
    """Hold the lock that keeps a second `up` or `down` away from this state directory."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state_dir / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackBusy(state_dir) from error
        yield


def _settings_file(settings: Settings) -> Path:
    return settings.run_dir / "settings.json"


def _refuse_other_settings(settings: Settings) -> None:
    theirs = json.loads(_settings_file(settings).read_text())
    ours = settings.as_environment()
    differences = [
        f"{name} is {theirs.get(name)}, now asked for: {value}"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    if differences:
        raise SettingsChanged(differences)


def _start_supervisord(settings: Settings, supervisor: Supervisor, console: Console) -> None:
    for program in FROM_DEBIAN if settings.prometheus_is_local else ():
        if shutil.which(program) is None:
            raise ProgramMissing(program, f"On Debian: apt-get install --no-install-recommends {program}.")
    orphans = marked(settings.state_dir)
    if orphans:
        console.print(f"Stopping {len(orphans)} processes that an earlier stack left behind")
        end(orphans, within_seconds=settings.drain_seconds)
    wanted = programs(settings)
    check_free(listener for program in wanted for listener in program.listeners)
    config = _write_configuration(settings, wanted)
    result = subprocess.run(
        daemon_command(config),
        env={**environment(settings), MARK: str(settings.state_dir)},
        cwd=settings.state_dir,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    log = settings.logs_dir / "supervisord.log"
    if result.returncode != 0:
        raise ProgramFailed("supervisord", "did not start", log, result.stderr.splitlines()[-LAST_LINES:])
    deadline = time.monotonic() + DAEMON_WITHIN_SECONDS
    while not supervisor.answers():
        if time.monotonic() > deadline:
            raise ProgramFailed("supervisord", f"did not answer in {DAEMON_WITHIN_SECONDS} s", log, _tail(log, 0))
        time.sleep(POLL_SECONDS)


def _write_configuration(settings: Settings, wanted: Sequence[Program]) -> Path:
    objectives = read_objectives(settings)
    prometheus, alertmanager = settings.prometheus_dir, settings.alertmanager_dir
    for directory in (settings.run_dir, settings.logs_dir, settings.mlflow_dir, prometheus, alertmanager):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.run_dir.chmod(0o700)
    (prometheus / "prometheus.yml").write_text(prometheus_config(settings, objectives.health.job))
    (prometheus / RULES).write_text(rule_file(objectives))
    (alertmanager / "alertmanager.yml").write_text(alertmanager_file(objectives, alerts_receiver(settings)))
    _settings_file(settings).write_text(json.dumps(settings.as_environment(), indent=2))
    config = settings.run_dir / "supervisord.conf"
    config.write_text(supervisord_config(wanted, settings.run_dir, settings.logs_dir))
    return config


def _wait_until_ready(
    settings: Settings,
    supervisor: Supervisor,
    wanted: Sequence[Program],
    log_sizes: dict[str, int],
    console: Console,
) -> None:
    """Wait for each program in turn; all of them are starting meanwhile."""
    progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
    with progress:
        for program in wanted:
            task = progress.add_task(f"waiting for {program.name}", total=1)
            reason = _why_not_ready(supervisor, program)
            if reason is not None:
                log = _log(settings, program)
                raise ProgramFailed(program.name, reason, log, _tail(log, log_sizes[program.name]))
            progress.update(task, completed=1, description=f"{program.name} is up")


def _why_not_ready(supervisor: Supervisor, program: Program) -> str | None:
    """Wait until `program` answers: None, or in words why it never will."""
    deadline = time.monotonic() + program.ready_within_seconds
    while time.monotonic() < deadline:
        state = supervisor.programs()[program.name].state
        if state not in PROGRAMS_THAT_RUN:
            # Else supervisord would go on trying, and succeed perhaps when nobody looks.
            if state == "BACKOFF":
                supervisor.stop(program.name)
            return "ended right after its start"
        if state == "RUNNING" and _answers(program.ready_url):
            return None
        time.sleep(POLL_SECONDS)
    return f"did not answer at {program.ready_url} within {program.ready_within_seconds:g} s"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http:// URLs
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _shut_down(supervisor: Supervisor, settings: Settings) -> None:
    """Let supervisord stop its programs, one after the other, and end."""
    process = psutil.Process(supervisor.pid())
    supervisor.shutdown()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(timeout=sum(program.stop_within_seconds for program in programs(settings)) + 5)


def _models(actual: Actual) -> list[ModelStatus]:
    """The versions that a node has loaded."""
    return [
        ModelStatus(endpoint.model, one.version, one.digest, one.weight, one.state, _explainer(endpoint, one.version))
        for endpoint in actual.endpoints
        for one in endpoint.versions
    ]


def _explainer(endpoint: ActualEndpoint, version: int) -> str:
    explainer = endpoint.explainer
    return explainer.state if explainer and explainer.version == version else ""


def _unexplained(actual: Actual) -> list[str]:
    explainers = [(endpoint.model, endpoint.explainer) for endpoint in actual.endpoints if endpoint.explainer]
    return [f"the explainer of {model} version {e.version}: {e.reason}" for model, e in explainers if e.reason]


def _log(settings: Settings, program: Program) -> Path:
    return settings.logs_dir / f"{program.name}.log"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> list[str]:
    """The last lines that were written after byte `start` (of this run, not of an earlier one)."""
    if not path.exists():
        return []
    # A rotated log is shorter than it was.
    written = path.read_bytes()[start if start <= _size(path) else 0 :]
    return written.decode(errors="replace").splitlines()[-LAST_LINES:]


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
