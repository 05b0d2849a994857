"""A tiny model that sums two columns, over real HTTP and gRPC, right and wrong."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from click.testing import CliRunner

from deploy.cli import cli
from deploy.golden_check import Served, Service, check
from handlers.protocol import oip_grpc, oip_json
from handlers.protocol.messages import SERVICE
from handlers.tensors import InferRequest, Tensor
from model_store.archive import archive_name, write
from model_store.errors import ArchiveMissing, ArchiveRefused

ROWS = 3
Ports = Callable[[int], list[int]]


@dataclass
class Node:
    """What it answers over each protocol, beside the sum of the two inputs."""

    served: Served
    error: dict[str, float] = field(default_factory=dict)
    version: dict[str, str] = field(default_factory=dict)
    refuses: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, protocol: str, request: InferRequest) -> tuple[list[Tensor], dict[str, str]]:
        a, b = (np.asarray(one.values, dtype=np.float32) for one in request.inputs)
        values = a + b + np.float32(self.error.get(protocol, 0.0))
        headers = {
            "x-shipway-version": self.version.get(protocol, str(self.served.version)),
            "x-shipway-digest": self.served.digest,
        }
        return [Tensor("sum", "FP32", (len(values),), values)], headers

    async def over_http(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get("x-api-key")))
        if self.refuses:
            return web.Response(status=503, text="too many requests")
        body = memoryview(await request.read())
        outputs, headers = self.answer("HTTP", oip_json.decode(body, request.headers[oip_json.HEADER_LENGTH]))
        answer, _ = oip_json.encode("tiny", "1", InferRequest((), binary=frozenset()), outputs)
        return web.Response(body=answer, headers=headers, content_type="application/json")

    def over_grpc(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked.append((SERVICE, dict(context.invocation_metadata()).get("x-api-key")))  # type: ignore[arg-type]
        if self.refuses:
            context.abort(grpc.StatusCode.UNAVAILABLE, "too many requests")
        request = oip_grpc.decode(memoryview(body))
        outputs, headers = self.answer("gRPC", request)
        context.send_initial_metadata(tuple(headers.items()))
        return oip_grpc.encode("tiny", "1", request, outputs)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    a, b = [0.0, 1.0, 2.0], [0.5, 0.25, 0.125]
    inputs = [{"name": name, "datatype": "FP32", "shape": [ROWS], "data": data} for name, data in zip("ab", (a, b))]  # noqa: B905
    output = {"name": "sum", "datatype": "FP32", "shape": [ROWS], "data": [x + y for x, y in zip(a, b, strict=True)]}
    golden = {"rtol": 1e-4, "atol": 1e-5, "request": {"inputs": inputs}, "response": {"outputs": [output]}}
    draft = tmp_path / "draft.mar"
    digest = write(draft, {"golden.json": json.dumps(golden).encode()})
    draft.rename(tmp_path / archive_name("tiny", 1, digest))
    return Served("tiny", 1, digest)


@contextmanager
def serving(node: Node, ports: list[int]) -> Iterator[tuple[str, str]]:
    """The URL for HTTP, and that for gRPC: no library here speaks both at one port."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/{path:.*}", node.over_http)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", ports[0]).start()
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    handler: Any = grpc.unary_unary_rpc_method_handler(node.over_grpc)
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
        server.add_insecure_port(f"127.0.0.1:{ports[1]}")
        server.start()
        try:
            assert ready.wait(20)
            yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        finally:
            server.stop(None).wait()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def found(archives: Path, node: Node, free_ports: Ports) -> dict[str, str]:
    """What is wrong over each protocol."""
    with serving(node, free_ports(2)) as (http, over_grpc):
        over = {"HTTP": http, "gRPC": over_grpc}
        results: dict[str, str] = {}
        for protocol, url in over.items():
            results[protocol] = dict(check(archives, node.served, Service(url, None, None, {"x-api-key": "k"})))[
                protocol
            ]
        return results


def test_right_answers_pass_over_both_protocols_each_row_pinned(
    tmp_path: Path, served: Served, free_ports: Ports
) -> None:
    node = Node(served)
    assert found(tmp_path, node, free_ports) == {"HTTP": "", "gRPC": ""}
    pinned = [key for path, key in node.asked if path == "/v2/models/tiny/versions/1/infer"]
    assert pinned[:ROWS] == ["k"] * ROWS
    assert [key for path, key in node.asked if path == SERVICE] == ["k"] * ROWS


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_a_wrong_answer_is_named(tmp_path: Path, served: Served, free_ports: Ports, protocol: str) -> None:
    problems = found(tmp_path, Node(served, error={protocol: 0.25}), free_ports)
    assert "output sum, value 0: expected 0.5" in problems[protocol]
    assert "gives 0.75" in problems[protocol]
    assert sum(1 for problem in problems.values() if problem) == 1


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_another_version_must_not_answer(tmp_path: Path, served: Served, free_ports: Ports, protocol: str) -> None:
    problems = found(tmp_path, Node(served, version={protocol: "2"}), free_ports)
    assert problems[protocol] == "row 0: answered by another: x-shipway-version is 2; expected 1"


def test_a_refusal_is_told_with_its_status(tmp_path: Path, served: Served, free_ports: Ports) -> None:
    problems = found(tmp_path, Node(served, refuses=True), free_ports)
    assert problems == {
        "HTTP": "row 0: answered 503: too many requests",
        "gRPC": "row 0: answered UNAVAILABLE: too many requests",
    }


def test_the_archive_must_be_there_and_be_it(tmp_path: Path, served: Served) -> None:
    service = Service("http://127.0.0.1:1", None, None, {})
    archive = tmp_path / archive_name("tiny", 1, served.digest)
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(ArchiveRefused, match="another digest"):
        list(check(tmp_path, served, service))
    archive.unlink()
    with pytest.raises(ArchiveMissing):
        list(check(tmp_path, served, service))


def test_the_command_prints_which_and_exits_with_1(
    tmp_path: Path, served: Served, free_ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPWAY_ARCHIVES_DIR", str(tmp_path))
    (tmp_path / "header").write_text("x-api-key: secret\n")
    node = Node(served)
    command: list[Any] = ["golden", "tiny", "--version", "1", served.digest, "--header-file", str(tmp_path / "header")]
    with serving(node, free_ports(2)) as (http, _):
        result = CliRunner().invoke(cli, [*command, "--url", http])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "tiny version 1 over HTTP: all golden outputs are right"
    assert lines[1].startswith("tiny version 1 over gRPC: row 0: answered ")
    assert node.asked[0][1] == "secret"


def test_a_file_without_a_header_is_refused(tmp_path: Path, served: Served) -> None:
    (tmp_path / "header").write_text("secret\n")
    command = ["golden", "tiny", "--version", "1", served.digest, "--url", "http://127.0.0.1:1"]
    result = CliRunner().invoke(cli, [*command, "--header-file", str(tmp_path / "header")])
    assert result.exit_code == 2
    assert "expected one line, `name: value`" in result.output
    assert "secret" not in result.output
