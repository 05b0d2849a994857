"""The life of a node: changes of the desired state, refusals, a killed worker, a drain, and what dies with it."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from deploy.node.children import SOON_SECONDS
from deploy.node.desired import Desired, read_actual, serve, write_state
from deploy.node.launcher import ACCESS_LOG_BYTES
from deploy.settings import Settings
from handlers.protocol.messages import ModelInferRequest
from model_store.archive import archive_name, signature_path
from tests.integration import clients
from tests.integration.clients import Load, Tally, post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]
BATCH = 64
"""Rows that one worker answers at once, as packaging sets it."""


def log_of(running: RunningNode) -> str:
    return (running.settings.state_dir / "node.log").read_text()


def versions_of(port: int, body: object, requests: int) -> Counter[str]:
    return Counter(post(port, "/predictions/flights", body)[1]["x-shipway-version"] for _ in range(requests))


def test_weights_move_without_a_lost_request(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.desired(100, 0)) as running:
        wait_until_ready(running.settings, 2)
        assert versions_of(running.port, lab.row(), 20) == {"1": 20}
        load = Load(running.port, json.dumps(lab.row()).encode(), 10**6, time.monotonic() + 60)
        asking = clients.run(load, [clients.http1] * 4)
        write_state(running.settings.desired_file, lab.desired(50, 50))
        wait_for(lambda: "2" in versions_of(running.port, lab.row(), 10), 30)
        split = versions_of(running.port, lab.row(), 200)
        assert 60 < split["1"] < 140  # five standard deviations around a half
        serve(running.settings.desired_file, "flights", 2, lab.second.digest)
        wait_for(lambda: versions_of(running.port, lab.row(), 20) == {"2": 20}, 30)
        write_state(running.settings.desired_file, lab.alone())  # version 2 is drained, then unregistered
        wait_until_ready(running.settings, 1)
        wait_for(lambda: post(running.port, "/predictions/flights/2", lab.row())[0] == 404, 30)
        store = running.settings.run_dir / "node" / "store"
        wait_for(lambda: [path.name.rpartition("-")[0] for path in store.iterdir()] == ["flights-1"], 30)
        load.deadline = 0
        tally = Tally.sum(asking.wait(60))
        assert tally.dropped == []
        assert tally.statuses.keys() == {200}


def broken(path: Path, what: str) -> None:
    """Damage the archive at `path`, or its signature."""
    if what == "altered":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif what == "half-written":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "unsigned":
        signature_path(path).unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("altered", "its content was altered or is incomplete: expected sha256:{digest}, found sha256:"),
        ("half-written", "its content was altered or is incomplete: expected sha256:{digest}, found sha256:"),
        ("unsigned", "there is no "),
        ("untrusted", "it is signed with a key that is not trusted: expected one of none"),
        ("absent", "make it with: shipway package models:/flights/2"),
    ],
)
def test_an_archive_that_is_not_right_is_refused_and_the_rest_goes_on(
    lab: Lab, free_ports: Ports, state_dir: Path, what: str, words: str
) -> None:
    archives, trust = state_dir / "archives", state_dir / "trust"
    shutil.copytree(lab.settings.archives_dir, archives)
    shutil.copytree(lab.settings.trust_dir, trust)
    second = archives / archive_name("flights", 2, lab.second.digest)
    broken(second, what)
    if what == "absent":
        second.unlink()
    with node(lab, free_ports(2), lab.desired(100, 0), archives_dir=archives, trust_dir=trust) as running:
        if what == "untrusted":
            for key in trust.iterdir():
                key.unlink()
        actual = wait_for(lambda: failed(running.settings), 90)
        assert words.format(digest=lab.second.digest.removeprefix("sha256:")) in actual
        unpacked = list((running.settings.run_dir / "node" / "ts" / "models").glob("*/MAR-INF/MANIFEST.json"))
        assert [json.loads(path.read_text())["model"]["modelVersion"] for path in unpacked] in (["1"], [])
        if what != "untrusted":  # then version 1 is as good as ever
            wait_for(lambda: post(running.port, "/predictions/flights", lab.row())[0] == 200, 60)
            status, _, body = post(running.port, "/v2/health/ready", None, method="GET")
            assert (status, json.loads(body)) == (503, {"ready": False})


def failed(settings: Settings) -> str | None:
    """Why version 2 is FAILED."""
    actual = read_actual(settings.actual_file)
    versions = actual.endpoints[0].versions if actual and actual.endpoints else ()
    return next((v.reason for v in versions if v.version == 2 and v.state == "FAILED"), None)


def test_a_worker_killed_under_load_costs_nobody_an_answer(lab: Lab, free_ports: Ports) -> None:
    """16 clients, 20,000 predictions, SIGKILL to one worker half-way."""
    requests = 20_000
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        before = samples(running.settings)
        assert before['shipway_rows_total{model="flights",version="1"}'] == 0  # replaying the golden set does not count
        load = Load(running.port, json.dumps(lab.row()).encode(), requests, time.monotonic() + 150)
        asking = clients.run(load, [clients.http1] * 16)
        wait_for(lambda: load.taken > requests // 2, 120)
        victim = worker_of(running, version=1)
        victim.kill()
        tally = Tally.sum(asking.wait(150))
        assert tally.sent == requests
        assert tally.dropped == []
        assert tally.statuses == {200: requests}  # what was in flight was asked once more, of its successor
        after = wait_for(lambda: counted(running.settings, before, requests), 15)
        rows = after['shipway_rows_total{model="flights",version="1"}']
        # A batch is counted before its answers go out, and that of the killed worker was asked once more.
        assert requests <= rows <= requests + BATCH
        for feature in ("dep_delay", "carrier", "probability", "class", "confidence"):
            assert rows <= sum_of(after, "shipway_feature_rows_total", f'feature="{feature}"') <= requests + BATCH
        assert after['shipway_worker_restarts_total{model="flights",version="1"}'] == 1
        assert sum_of(after, "shipway_edge_requests_total", 'code="200"') == requests
        (successor,) = workers_of(running, 1)
        assert successor.pid != victim.pid


def counted(settings: Settings, before: dict[str, float], requests: int) -> dict[str, float] | None:
    """What the metrics rose by, once the edge has counted everything."""
    rise = {name: value - before.get(name, 0.0) for name, value in samples(settings).items()}
    return rise if sum_of(rise, "shipway_edge_requests_total", "") == requests else None


def sum_of(series: dict[str, float], name: str, label: str) -> float:
    return sum(value for key, value in series.items() if key.startswith(name + "{") and label in key)


def workers_of(running: RunningNode, version: int) -> list[psutil.Process]:
    """The workers that have loaded `version`: their working directory is the unpacked archive."""
    found = []
    for worker in running.children("model_service_worker"):
        manifest = json.loads((Path(worker.cwd()) / "MAR-INF" / "MANIFEST.json").read_text())
        if manifest["model"]["modelVersion"] == str(version):
            found.append(worker)
    return found


def worker_of(running: RunningNode, version: int) -> psutil.Process:
    return workers_of(running, version)[0]


def grpc_request(lab: Lab) -> bytes:
    message = ModelInferRequest(model_name="flights")
    for name, value in lab.row().items():
        tensor = message.inputs.add(name=name, datatype="BYTES" if isinstance(value, str) else "FP32", shape=[1])
        if isinstance(value, str):
            tensor.contents.bytes_contents.append(value.encode())
        else:
            tensor.contents.fp32_contents.append(float("nan") if value is None else value)
    data: bytes = message.SerializeToString()
    return data


def test_sigterm_under_load_drops_nothing_that_was_accepted(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        load = Load(running.port, json.dumps(lab.row()).encode(), 10**6, time.monotonic() + 60)
        kinds = [clients.http1] * 6 + [clients.http2] * 5 + [clients.grpc_unary(grpc_request(lab))] * 5
        asking = clients.run(load, kinds)
        wait_for(lambda: load.taken > 2000, 60)
        running.process.send_signal(signal.SIGTERM)
        tallies = asking.wait(60)
        assert running.process.wait(30) == 0
        for tally in tallies:
            assert tally.dropped == []
            assert tally.statuses.keys() <= {0, 200}
        for tally in tallies[:11]:  # gRPC's library reconnects without a word
            assert tally.told_to_reconnect > 0
        # The edge's own word: whatever it took it answered, and nothing else was answered.
        lines = (running.settings.logs_dir / "access.log").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        assert all(entry["status"] == 200 and entry["flags"] == "-" for entry in entries)
        assert len(entries) == sum(sum(tally.statuses.values()) for tally in tallies)


def test_everything_dies_with_a_killed_launcher(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) >= 3  # Envoy, the JVM, a worker
        running.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=15)
        assert alive == []


def killed(running: RunningNode, program: str) -> psutil.Process:
    """Kill a program of the node, not too soon after its start; its successor."""
    (victim,) = running.children(program)
    wait_for(lambda: time.time() - victim.create_time() > SOON_SECONDS + 1, 60)
    victim.kill()

    def successor() -> psutil.Process | None:
        return next((child for child in running.children(program) if child.pid != victim.pid), None)

    return wait_for(successor, 30)


@pytest.mark.parametrize("program", ["envoy -c", "ModelServer"])
def test_a_program_that_dies_is_started_again_with_what_it_had(lab: Lab, free_ports: Ports, program: str) -> None:
    with node(lab, free_ports(2), lab.desired(50, 50)) as running:
        wait_until_ready(running.settings, 2)
        killed(running, program)
        wait_for(lambda: statuses(running, lab) == {200}, 60)
        wait_until_ready(running.settings, 2)
        assert versions_of(running.port, lab.row(), 40).keys() == {"1", "2"}
        assert running.process.poll() is None
        write_state(running.settings.desired_file, lab.desired(0, 100))  # it still obeys
        wait_for(lambda: versions_of(running.port, lab.row(), 20) == {"2": 20}, 30)


def statuses(running: RunningNode, lab: Lab) -> set[int]:
    try:
        return {post(running.port, "/predictions/flights", lab.row())[0] for _ in range(5)}
    except OSError:  # nobody listens
        return set()


@pytest.mark.parametrize("program", ["envoy -c", "ModelServer"])
def test_the_node_ends_when_a_program_of_it_dies_for_good(lab: Lab, free_ports: Ports, program: str) -> None:
    with node(lab, free_ports(2), Desired()) as running:
        wait_until_ready(running.settings, 0)
        second = killed(running, program)
        children = psutil.Process(running.process.pid).children(recursive=True)
        second.kill()
        assert running.process.wait(30) == 1
        assert "a program of the node died for good" in log_of(running)
        assert psutil.wait_procs(children, timeout=15)[1] == []


def test_a_second_node_in_the_same_directory_is_refused(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), Desired()) as running:
        wait_until_ready(running.settings, 0)
        again = running.settings.model_copy(update=dict(zip(("http_port", "metrics_port"), free_ports(2), strict=True)))
        second = subprocess.run(
            [sys.executable, "-m", "deploy.cli", "node"],
            env={**os.environ, **again.as_environment()},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert second.returncode == 1
        assert f"another node holds {running.settings.run_dir}/node.lock" in second.stderr
        assert post(running.port, "/v2/health/live", None, method="GET")[0] == 200


def test_a_node_that_starts_with_no_usable_state_says_so(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), Desired()) as running:
        running.settings.desired_file.write_text("{")  # long before the node's programs are up
        port = running.settings.metrics_port
        wait_for(
            lambda: answers(port) and b"desired.json is not usable" in post(port, "/readyz", None, method="GET")[2], 60
        )


def test_a_desired_state_that_is_no_state_changes_nothing(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.desired(100, 0)) as running:
        wait_until_ready(running.settings, 2)
        for text in ("{", '{"endpoints": [{"model": "flights", "versions": []}]}', '{"endpoint": []}'):
            running.settings.desired_file.write_text(text)
            wait_for(lambda: log_of(running).count("desired.json is not usable") > 0, 15)
        assert versions_of(running.port, lab.row(), 5) == {"1": 5}
        write_state(running.settings.desired_file, lab.desired(0, 100))
        wait_for(lambda: versions_of(running.port, lab.row(), 5) == {"2": 5}, 30)


def test_what_a_local_user_can_do_at_torchserve(lab: Lab, free_ports: Ports) -> None:
    """TorchServe insists on two gRPC ports. They are on loopback, at random numbers, and want a token for everything.

    What is left to another user of the machine: to connect, and to be refused. HTTP, management and metrics are unix
    sockets in a directory of mode 0700.
    """
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        (jvm,) = running.children("org.pytorch.serve.ModelServer")
        listening = [c.laddr for c in jvm.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
        assert len(listening) == 2
        assert all(address.ip.removeprefix("::ffff:") == "127.0.0.1" for address in listening)
        assert not {7070, 7071, 8080, 8081, 8082} & {address.port for address in listening}
        calls = {
            "org.pytorch.serve.grpc.management.ManagementAPIsService": (
                "RegisterModel", "UnregisterModel", "ScaleWorker", "SetDefault", "ListModels", "DescribeModel",
            ),
            "org.pytorch.serve.grpc.inference.InferenceAPIsService": ("Predictions", "Ping"),
        }  # fmt: skip
        refused = 0
        for address in listening:
            with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
                for service, methods in calls.items():
                    for method in methods:
                        unary: Any = channel.unary_unary(f"/{service}/{method}")
                        with pytest.raises(grpc.RpcError) as caught:
                            unary(b"", timeout=10)
                        error: Any = caught.value
                        assert error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
                        refused += error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert refused == 8
        run = running.settings.run_dir / "node"
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        assert stat.S_IMODE((run / "admin.sock").stat().st_mode) == 0o600
        assert stat.S_IMODE((run / "ts" / "key_file.json").stat().st_mode) == 0o600
        assert {child.name for child in run.iterdir() if child.is_socket()} == {
            "admin.sock", "control.sock", "infer.sock", "manage.sock", "metrics.sock", "places.sock",
            "predictions.sock",
        }  # fmt: skip


def test_health_says_why_not(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.alone()) as running:
        port = running.settings.metrics_port
        wait_for(lambda: answers(port), 30)
        assert post(port, "/livez", None, method="GET")[0] == 200
        status, _, body = post(port, "/readyz", None, method="GET")
        assert status == 503
        assert body.decode() == "the node is starting\n" or b"flights version" in body
        wait_until_ready(running.settings, 1)
        status, _, body = post(port, "/readyz", None, method="GET")
        assert (status, body) == (200, b"ready\n")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_request_in_flight_survives_the_drain(lab: Lab, free_ports: Ports) -> None:
    """A slow request: its worker is stopped for a while, SIGTERM comes, and it still gets its answer."""
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        workers = workers_of(running, 1)
        for worker in workers:
            worker.suspend()
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(post(running.port, "/predictions/flights", lab.row())[0]))
        asking.start()
        wait_for(lambda: samples(running.settings).get(IN_FLIGHT) == 1, 15)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not answers(running.port), 15)  # the listener has gone
        assert asking.is_alive()
        for worker in workers:
            worker.resume()
        asking.join(30)
        assert found == [200]
        assert running.process.wait(30) == 0


def test_no_answer_in_time(lab: Lab, free_ports: Ports) -> None:
    """A worker that does not answer: 504 and DEADLINE_EXCEEDED in words, and both say which version it was."""
    with node(lab, free_ports(2), lab.alone(), request_timeout_seconds=1.5) as running:
        wait_until_ready(running.settings, 1)
        workers = workers_of(running, 1)
        for worker in workers:
            worker.suspend()
        status, headers, body = post(running.port, "/predictions/flights", lab.row())
        assert status == 504
        assert json.loads(body)["error"] == "no answer within 1.5 s, the node's limit for one request"
        assert headers["x-shipway-version"] == "1"
        assert headers["x-shipway-prediction-id"]
        with pytest.raises(grpc.RpcError) as caught:
            clients.call(running.port, "ModelInfer", grpc_request(lab))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "no answer within 1.5 s, the node's limit for one request"
        assert dict(error.initial_metadata())["x-shipway-version"] == "1"
        for worker in workers:
            worker.resume()
        wait_for(lambda: post(running.port, "/predictions/flights", lab.row())[0] == 200, 30)


def test_the_access_log_is_bounded(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), Desired()) as running:
        wait_until_ready(running.settings, 0)
        log = running.settings.logs_dir / "access.log"
        wait_for(lambda: post(running.port, "/v2", None, method="GET")[0] == 200 and log.exists(), 15)
        os.truncate(log, ACCESS_LOG_BYTES + 1)
        wait_for(log.with_suffix(".1.log").exists, 15)
        post(running.port, "/v2", None, method="GET")
        wait_for(lambda: log.exists() and 0 < log.stat().st_size < 1000, 30)


IN_FLIGHT = 'shipway_edge_requests_in_flight{model="flights",version="1"}'
