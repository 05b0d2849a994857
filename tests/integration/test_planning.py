"""Requests kept by a real node, over every protocol, and two real versions compared on them."""

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from deploy.node.capturing import capture_plan
from deploy.programs import environment
from deploy.settings import Settings
from handlers.captured import CapturedRequest
from handlers.protocol.messages import SERVICE
from tests.integration.clients import post
from tests.integration.conftest import Lab, node, samples, wait_until_ready
from tests.integration.test_node import grpc_request, worker_of
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]
SECRET = 4321.0


def kept(settings: Settings) -> list[CapturedRequest]:
    return capture_plan(settings).segments.newest("flights", 1000, time.time())


def files(settings: Settings) -> list[Path]:
    return [path for path in settings.capture_dir.rglob("*") if path.is_file()]


def plan(settings: Settings, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The command's exit code, and what it says in JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "plan", "flights", *arguments, "--json"],
        env=environment(settings),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def test_requests_are_kept_masked_survive_a_killed_worker_and_are_planned_with(lab: Lab, free_ports: Ports) -> None:
    changes = {"capture_share": 1.0, "capture_mask": "dep_delay", "mlflow_uri": lab.settings.mlflow_uri}
    with node(lab, free_ports(2), lab.alone(), **changes) as running:
        wait_until_ready(running.settings, 1)
        rows = [{**lab.row(at), "dep_delay": SECRET} for at in range(8)]
        for row in rows:
            assert post(running.port, "/predictions/flights", row)[0] == 200
        golden = lab.golden["request"]
        status, headers, _ = post(running.port, "/v2/models/flights/infer", golden)
        assert status == 200
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            infer(grpc_request(lab), timeout=30)
        wait_for(lambda: len(kept(running.settings)) == 10, 30)
        protocols = [each.protocol for each in kept(running.settings)]
        assert sorted(protocols) == ["oip_grpc", "oip_http", *["predictions"] * 8]
        assert headers["x-shipway-prediction-id"] in {each.id for each in kept(running.settings)}

        assert {stat.S_IMODE(path.stat().st_mode) for path in files(running.settings)} == {0o600}
        content = b"".join(path.read_bytes() for path in files(running.settings))
        assert b"4321" not in content
        assert {each.masked for each in kept(running.settings)} == {("dep_delay",)}

        worker_of(running, version=1).send_signal(signal.SIGKILL)
        for row in rows:
            assert post(running.port, "/predictions/flights", row)[0] == 200
        wait_for(lambda: len(kept(running.settings)) == 18, 30)
        series = 'shipway_captured_requests_total{model="flights",outcome="kept",version="1"}'
        wait_for(lambda: samples(running.settings).get(series) == 18, 15)

        code, same = plan(running.settings, "@champion", "--max-changed", "0")
        assert (code, same["verdict"]) == (0, "safe")
        captured, at_registration = same["sources"]
        assert (captured["requests"], captured["changed"], captured["unanswered"]) == (18, 0, 0)
        assert (at_registration["changed"], at_registration["largest_difference"]) == (0, 0.0)

        code, retrained = plan(running.settings, "2", "--max-changed", "0", "--show-inputs")
        assert retrained["changes"]["breaking"] == []
        captured, at_registration = retrained["sources"]
        assert 0 < at_registration["changed"] < at_registration["rows"]
        assert (code, retrained["verdict"]) == (3, "answers change")
        for row in retrained["worst"]:
            assert row["inputs"]
            assert ("dep_delay" in row["inputs"]) == row["id"].startswith("golden-")


def test_node_keeps_nothing_by_default(lab: Lab) -> None:
    assert post(lab.port, "/predictions/flights", lab.row())[0] == 200
    assert not lab.settings.capture_dir.exists()
    assert not any("captured" in name for name in samples(lab.settings))
