"""SIGKILL to whoever takes part in a rollout, at each step of it: what users see, and where one command leads."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from deploy.caller import caller
from deploy.drill.load import Load, Row
from deploy.node.desired import read_desired, running
from deploy.processes import marked
from deploy.programs import environment
from deploy.rollout import here
from deploy.rollout.ledger import unfinished
from deploy.rollout.machine import serves
from deploy.rollout.record import ENDED, Entry, State
from deploy.settings import Settings
from tests.bench.findings import Finding
from tests.bench.rollout.ground import MODEL, Ground

STATES: tuple[State, ...] = ("PENDING", "CANARY", "JUDGING", "ROLLING_BACK")
"""In which a rollout can be found; the others last no longer than it takes to write the next."""
# By what stands in a process's command line.
CANDIDATES_WORKER = "candidate's worker"
VICTIMS = {
    "command": None,
    "mlflow": "mlflow.server.fastapi_app",
    "prometheus": "prometheus --config.file",
    CANDIDATES_WORKER: "model_service_worker",
    "jvm": "org.pytorch.serve.ModelServer",
    "envoy": "envoy",
    "launcher": "-m deploy.cli node",
}
HARMLESS = ("command", "mlflow", "prometheus", CANDIDATES_WORKER)
"""Whose death costs no user an answer."""
BACK_WITHIN_SECONDS = 15.0
RATE = 40.0
_GIVE_UP_SECONDS = 120.0
_QUIET_SECONDS = 2.0
"""With nothing but answers for as long, the node serves again."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Case:
    victim: str
    state: State

    def __str__(self) -> str:
        return f"{self.victim} killed in {self.state}"


@dataclass(frozen=True)
class Found:
    """What one death did."""

    case: Case
    requests: int
    failed: int
    back_seconds: float
    """Until the node served again, with the weights as they were."""
    orphans: tuple[str, ...]
    end: Entry
    """Where one command, or the rollout's own, led."""
    problems: tuple[str, ...]


CASES = tuple(Case(victim, state) for victim in VICTIMS for state in STATES)


def kills(ground: Ground, console: Console, cases: Sequence[Case] = CASES) -> list[Finding]:
    found = []
    with users(ground) as load:
        for case in cases:
            one = killed(ground, load, case)
            found.append(one)
            words = "; ".join(one.problems) or "as it should"
            console.log(
                f"{case}: {one.failed} of {one.requests} requests failed, serving after {one.back_seconds:.1f} s, "
                f"then {one.end.state}: {words}",
                markup=False,
            )
    harmless = [one for one in found if one.case.victim in HARMLESS]
    return [
        Finding(
            "deaths that led to a stated end with the traffic that belongs to it",
            sum(not one.problems for one in found),
            "deaths",
            bar=len(found),
        ),
        Finding(
            "requests failed by the death of a command, MLflow, Prometheus or a worker",
            sum(one.failed for one in harmless),
            "requests",
            bar=0,
            at_most=True,
        ),
        Finding(
            "longest until the node served again",
            max(one.back_seconds for one in found),
            "s",
            bar=BACK_WITHIN_SECONDS,
            at_most=True,
        ),
        Finding("orphans", sum(len(one.orphans) for one in found), "processes", bar=0, at_most=True),
    ]


@contextlib.contextmanager
def users(ground: Ground) -> Iterator[Load]:
    rows = [Row(json.dumps({"inputs": tensors}).encode(), None) for tensors in ground.rows]
    with Load(caller(ground.settings), MODEL, rows, RATE) as load:
        yield load


def killed(ground: Ground, load: Load, case: Case, back_within_seconds: float = BACK_WITHIN_SECONDS) -> Found:
    """Roll version 2 out, kill the victim in this state, look, and end the rollout. Afterwards version 1 serves."""
    settings, begun = ground.settings, time.time()
    ledger = ground.endpoint.ledger
    before = len(ledger.entries())
    with _rollout(ground) as command:
        _reach(ground, command, before, case.state)
        at = time.time()
        _kill(ground, command, case.victim)
        back = _back(ground, load, at)
        orphans = _orphans(settings)
        end = _ended(ground, command, case)
    problems = list(_wrong(ground, case, end))
    seen = load.seen(begun)
    failed = sum(one.status != 200 for one in seen)
    if case.victim in HARMLESS and failed:
        problems.append(f"{failed} requests failed")
    if back > back_within_seconds:
        problems.append(f"it served again after {back:.1f} s")
    problems += orphans
    _reset(ground)
    return Found(case, len(seen), failed, back, orphans, end, tuple(problems))


@contextlib.contextmanager
def _rollout(ground: Ground) -> Iterator["subprocess.Popen[bytes]"]:
    command = _shipway("rollout", MODEL, str(ground.second.version), "--yes", "--json")
    log = ground.settings.logs_dir / "rollout.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment(ground.settings), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _shipway(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("shipway")), *words]


def _reach(ground: Ground, command: "subprocess.Popen[bytes]", before: int, state: State) -> None:
    """Wait until the rollout is in this state."""
    ledger = ground.endpoint.ledger

    def found(wanted: State) -> bool:
        return any(entry.state == wanted for entry in ledger.entries()[before:])

    if state == "ROLLING_BACK":
        _wait("JUDGING", lambda: found("JUDGING"))
        command.send_signal(signal.SIGINT)
    _wait(state, lambda: found(state))


def _kill(ground: Ground, command: "subprocess.Popen[bytes]", victim: str) -> None:
    part = VICTIMS[victim]
    if part is None:
        command.kill()
        command.wait()
        return
    # The candidate's worker is not there from the first moment of PENDING on.
    _wait(f"a process of {victim} to kill", lambda: _killed(ground, part, candidate=victim == CANDIDATES_WORKER))


def _killed(ground: Ground, part: str, *, candidate: bool) -> int:
    """How many were killed of those whose command line has this part."""
    killed = 0
    for process in marked(ground.settings.state_dir):
        with contextlib.suppress(psutil.Error):
            ours = part in " ".join(process.cmdline())
            if ours and (not candidate or f"{MODEL}-{ground.second.version}-" in process.cwd()):
                process.kill()
                killed += 1
    return killed


def _desired(ground: Ground) -> dict[int, int]:
    endpoint = read_desired(ground.settings.desired_file).endpoint(MODEL)
    return {one.version: one.weight for one in endpoint.versions} if endpoint else {}


def _actual(ground: Ground) -> dict[int, int]:
    node = running(ground.settings.actual_file)
    found = node.endpoint(MODEL) if node else None
    return {one.version: one.weight for one in (found.versions if found else ()) if one.state == "READY"}


def _back(ground: Ground, load: Load, killed_at: float) -> float:
    """How long after the death the node served again with the weights that are asked for, seconds.

    Those are the weights as they were, unless the rollout has taken the candidate back meanwhile.
    """
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    right_since = 0.0
    while time.monotonic() < deadline:
        now = time.time()
        seen = load.seen(killed_at)
        last_failed = max((one.at + one.seconds for one in seen if one.status != 200), default=killed_at)
        right = _sharing(_desired(ground)) == _sharing(_actual(ground))
        right_since = (right_since or now) if right else 0.0
        back = max(last_failed, right_since)
        if right_since and now - back > _QUIET_SECONDS and any(one.at > back for one in seen):
            return back - killed_at
        time.sleep(_POLL_SECONDS)
    return _GIVE_UP_SECONDS


def _sharing(weights: dict[int, int]) -> dict[int, int]:
    """Who has traffic; a version that is being loaded has none."""
    return {version: weight for version, weight in weights.items() if weight}


def _orphans(settings: Settings) -> tuple[str, ...]:
    """Processes of the stack that no supervisord is above of; Envoy, whose environment is empty, by its files."""
    processes = {one.pid: one for one in marked(settings.state_dir)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            ours = process.pid in processes or str(settings.run_dir) in words
            of_command = "supervisord" in words or "shipway rollout" in words
            if ours and process.ppid() not in processes and not of_command:
                found.append(f"orphan {process.pid}: {words[:100]}")
    return tuple(found)


def _ended(ground: Ground, command: "subprocess.Popen[bytes]", case: Case) -> Entry:
    """Where one command led: going on where the rollout's own was killed, else taking it back where that was not."""
    ledger = ground.endpoint.ledger
    if case.victim == "command":
        _run("rollout", ground, "--resume", "--yes")
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(_GIVE_UP_SECONDS if case.state == "ROLLING_BACK" else _QUIET_SECONDS)
        if unfinished(ledger.newest()):
            _run("rollback", ground)
        command.wait(_GIVE_UP_SECONDS)
    newest = ledger.newest()
    assert newest is not None, "a rollout has written at least one entry"
    return newest


def _run(word: str, ground: Ground, *options: str) -> None:
    command = _shipway(word, MODEL, *options)
    subprocess.run(command, env=environment(ground.settings), check=False, capture_output=True, timeout=300)


def _wrong(ground: Ground, case: Case, end: Entry) -> Iterator[str]:
    """What the end state is not that it should be."""
    wanted: State = "PROMOTED" if case.victim == "command" and case.state != "ROLLING_BACK" else "ROLLED_BACK"
    if end.state != wanted:
        yield f"it is {end.state} and should be {wanted}: {end.words}"
    if end.state in ENDED and (release := serves(end)):
        with contextlib.suppress(TimeoutError):
            _wait("all traffic", lambda: _sharing(_actual(ground)) == {release.version: 100})
        if (weights := _sharing(_actual(ground))) != {release.version: 100}:
            yield f"version {release.version} should have all traffic; found {weights}"


def _reset(ground: Ground) -> None:
    """Version 1 alone, whatever went wrong."""
    endpoint = ground.endpoint
    newest = endpoint.ledger.newest()
    if newest is not None and newest.state not in ENDED:
        endpoint.roll_back()
    here.serve(ground.settings, MODEL, ground.first)
    _wait("version 1 has all traffic", lambda: _actual(ground).get(1) == 100)


def _wait(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_GIVE_UP_SECONDS:g} s: {what}")
        time.sleep(_POLL_SECONDS)
