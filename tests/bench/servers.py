"""A server of either side in a directory of its own: started as its users start it, and stopped with all it started.

All of a scenario's servers run at once, but only one of them at a time is asked. The others sleep (SIGSTOP): Ray and
LitServe without a request take an eighth of a core each, which would be missing to whoever is asked.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from deploy.node.desired import serve
from deploy.node.torchserve import free_ports
from deploy.processes import MARK, end, marked
from deploy.settings import Settings
from tests.bench import client

READY_WITHIN_SECONDS = 120.0
STOP_WITHIN_SECONDS = 10.0

# By what stands in a process's command line; the first that fits.
_PARTS = {
    "model_service_worker": "model",
    "ServeReplica": "model",
    "envoy": "edge",
    "haproxy": "edge",
    "ProxyActor": "edge",
    "ModelServer": "jvm",
}
_REST = "server"


@dataclass(frozen=True)
class Packaged:
    """One signed archive of a model, as a node takes it."""

    model: str
    version: int
    digest: str
    path: Path
    trust_dir: Path


@dataclass(frozen=True)
class Server:
    """A running server; all its processes carry `directory` as their mark."""

    name: str
    address: tuple[str, int]
    directory: Path
    output: Path
    metrics_url: str | None = None
    """Of a node of ours."""

    def last_output(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-15:])

    def sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in marked(self.directory):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, user and system, by the part of the server that took it."""
        found: dict[str, float] = {}
        for process in marked(self.directory):
            with suppress(psutil.NoSuchProcess):
                words, times = " ".join(process.cmdline()), process.cpu_times()
                part = next((part for mark, part in _PARTS.items() if mark in words), _REST)
                found[part] = found.get(part, 0.0) + times.user + times.system
        return found


@contextmanager
def node(name: str, packaged: Packaged, directory: Path, probe: bytes) -> Iterator[Server]:
    """Our node as shipped: Envoy and its access log, metrics, drift counters."""
    http_port, metrics_port = free_ports(2)
    settings = Settings(
        state_dir=directory,
        http_port=http_port,
        metrics_port=metrics_port,
        archives_dir=packaged.path.parent,
        trust_dir=packaged.trust_dir,
    )
    settings.node_dir.mkdir(parents=True)
    serve(settings.desired_file, packaged.model, packaged.version, packaged.digest)
    command = [str(Path(sys.executable).with_name("shipway")), "node"]
    with running(name, command, directory, settings.as_environment(), http_port, probe) as server:
        yield replace(server, metrics_url=settings.metrics_url)


@contextmanager
def running(
    name: str, command: list[str], directory: Path, environment: Mapping[str, str], port: int, probe: bytes
) -> Iterator[Server]:
    """The server once it answers `probe` with 200; stopped with all its processes at the end."""
    log = directory / "output.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SHIPWAY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**inherited, **environment, MARK: str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(name, ("127.0.0.1", port), directory, log)
    try:
        _wait_until_ready(server, probe, process.poll)
        yield server
    finally:
        server.wake()
        # By the mark: Ray and HAProxy put some of theirs into the background.
        end(marked(directory), STOP_WITHIN_SECONDS)
        end(marked(directory), STOP_WITHIN_SECONDS)  # what their parents' end has left behind
        process.wait()


def _wait_until_ready(server: Server, probe: bytes, exit_code: Callable[[], int | None]) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    problem = ""
    while time.monotonic() < deadline and exit_code() is None:
        try:
            answer = client.ask(server.address, probe)
        except OSError as error:
            problem = str(error)
        else:
            if answer.status == 200:
                return
            problem = f"{answer.status} {answer.body[:200]!r}"
        time.sleep(0.25)
    raise TimeoutError(
        f"{server.name}: no answer in {READY_WITHIN_SECONDS:g} s ({problem}); it ended with:\n{server.last_output()}"
    )
