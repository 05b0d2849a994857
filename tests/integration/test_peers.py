"""Pods as processes of this machine: a stable node sends the canary's share to the canary's node."""

import json
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from deploy.node import auth, tls
from deploy.node.desired import Desired, read_actual, write_state
from deploy.node.routing import RELEASE, ROLLOUT
from deploy.settings import Settings
from handlers.protocol.messages import SERVICE, ModelInferRequest
from model_store.files import write_atomically
from model_store.package import PackagedVersion
from tests.integration import clients
from tests.integration.clients import Load, Tally, post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.integration.test_node import grpc_request, sum_of, worker_of
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(400)  # the first one waits for the laboratory and two nodes

Ports = Callable[[int], list[int]]
SHARE = 10_000
REQUESTS = 6_000
PATH = "/predictions/flights"
LOST = 'shipway_edge_lost_requests_total{model="flights",version="2"}'


@contextmanager
def pod(lab: Lab, ports: list[int], packaged: PackagedVersion, **changes: object) -> Iterator[RunningNode]:
    """A node as the chart starts it, with the version that its template names."""
    serves = {"model": "flights", "version": packaged.version, "digest": packaged.digest}
    keys = "".join(path.read_text() for path in lab.settings.trust_dir.iterdir())
    given = {"serves": json.dumps(serves), "trusted_keys": keys, "trust_dir": Path("/nowhere"), **changes}
    with node(lab, ports, Desired(), **given) as running:
        yield running


@dataclass(frozen=True)
class Fleet:
    stable: RunningNode
    canary: RunningNode
    second: PackagedVersion

    def route(self, weight: int, mirror: int = 0, **changes: Any) -> None:
        """What the command line says while it rolls out."""
        self._write(ROLLOUT, weight=weight, mirror=mirror, **changes)

    def release(self, weight: int) -> None:
        """What the chart says."""
        self._write(RELEASE, weight=weight)

    def _write(self, name: str, **changes: Any) -> None:
        canary = {"version": 2, "digest": self.second.digest, "host": "127.0.0.1", "mirror": 0}
        canary |= {"port": self.canary.settings.peer_port, **changes}
        assert self.stable.settings.routing_dir is not None
        write_atomically(self.stable.settings.routing_dir / name, json.dumps({"canary": canary}).encode())

    def weights(self) -> dict[int, int]:
        """What is in force."""
        actual = read_actual(self.stable.settings.actual_file)
        return {v.version: v.weight for e in actual.endpoints for v in e.versions} if actual else {}

    def begin(self, weight: int, mirror: int = 0) -> dict[str, float]:
        """Have a split in force; the stable node's metrics then."""
        self.route(weight, mirror)
        wait_for(lambda: self.weights() == {1: 100 - weight, 2: weight}, 30)
        wait_until_ready(self.stable.settings, 2)
        return samples(self.stable.settings)


@contextmanager
def fleet_of(lab: Lab, ports: Ports, directory: Path, **changes: object) -> Iterator[Fleet]:
    numbers = ports(5)
    write_atomically(directory / RELEASE, b'{"canary": null}')
    with ExitStack() as stack:
        stable = stack.enter_context(pod(lab, numbers[:2], lab.first, routing_dir=directory, **changes))
        canary = stack.enter_context(pod(lab, numbers[2:4], lab.second, peer_port=numbers[4], **changes))
        fleet = Fleet(stable, canary, lab.second)
        for running in (stable, canary):
            wait_until_ready(running.settings, 1)
        fleet.release(0)
        wait_until_ready(stable.settings, 2)
        yield fleet


@pytest.fixture(scope="module")
def fleet(lab: Lab, free_ports: Ports, short_directory: Callable[[], Path]) -> Iterator[Fleet]:
    with fleet_of(lab, free_ports, short_directory()) as found:
        yield found


def rise(running: RunningNode, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in samples(running.settings).items()}


def until_counted(running: RunningNode, before: dict[str, float], requests: int) -> dict[str, float]:
    def counted() -> dict[str, float] | None:
        found = rise(running, before)
        return found if sum_of(found, "shipway_edge_requests_total", "") == requests else None

    return wait_for(counted, 20)


def test_canary_gets_its_share_over_http_and_is_counted_once(lab: Lab, fleet: Fleet) -> None:
    before, canary_before = fleet.begin(5), samples(fleet.canary.settings)
    load = Load(fleet.stable.port, json.dumps(lab.row()).encode(), SHARE, time.monotonic() + 150)
    users: list[clients.Client] = [*[clients.http1] * 4, *[clients.http2] * 2]
    tally = Tally.sum(clients.run(load, users).wait(160))
    assert tally.dropped == []
    assert tally.statuses == {200: SHARE}
    found = until_counted(fleet.stable, before, SHARE)
    share = sum_of(found, "shipway_edge_requests_total", 'version="2"') / SHARE
    assert 0.04 <= share <= 0.06
    assert found.get(LOST, 0.0) == 0
    # Its node counts the rows that it saw, and none of these requests.
    canary = rise(fleet.canary, canary_before)
    assert canary['shipway_rows_total{model="flights",version="2"}'] == pytest.approx(share * SHARE)
    assert sum_of(canary, "shipway_edge_requests_total", "") == 0


def test_canary_gets_its_share_over_one_grpc_channel(lab: Lab, fleet: Fleet) -> None:
    before = fleet.begin(5)
    seen: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{fleet.stable.port}") as channel:
        infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        request = grpc_request(lab)
        under_way = [infer.future(request, timeout=30) for _ in range(16)]
        for number in range(SHARE):
            answer = under_way.pop(0)
            answer.result()
            seen[dict(answer.initial_metadata())["x-shipway-version"]] += 1
            if number < SHARE - 16:
                under_way.append(infer.future(request, timeout=30))
    assert sum(seen.values()) == SHARE
    assert 0.04 <= seen["2"] / SHARE <= 0.06
    found = until_counted(fleet.stable, before, SHARE)
    assert sum_of(found, "shipway_edge_requests_total", 'version="2"') == seen["2"]


def load_of(lab: Lab, fleet: Fleet, requests: int = REQUESTS) -> tuple[Load, clients.Running]:
    """Users with connections of all three kinds."""
    load = Load(fleet.stable.port, json.dumps(lab.row()).encode(), requests, time.monotonic() + 150)
    users = [clients.http1] * 4 + [clients.http2] * 2 + [clients.grpc_unary(grpc_request(lab))] * 2
    return load, clients.run(load, users)


def nobody_lost_anything(asking: clients.Running, requests: int = REQUESTS) -> None:
    tally = Tally.sum(asking.wait(150))
    assert tally.dropped == []
    assert tally.statuses.keys() == {200, 0}  # of gRPC, OK
    assert tally.statuses.total() == requests


def test_every_answer_names_who_gave_it_and_says_what_that_version_says(lab: Lab, fleet: Fleet) -> None:
    fleet.begin(50)
    golden = {1: lab.expected(), 2: golden_outputs(lab, 2)}
    assert not np.allclose(golden[1], golden[2], rtol=1e-3, atol=1e-3)
    digests = {"1": lab.first.digest, "2": lab.second.digest}
    for path in (
        "/v2/models/flights/infer",
        "/v2/models/flights/versions/1/infer",
        "/v2/models/flights/versions/2/infer",
    ):
        seen = set()
        for _ in range(30):
            status, headers, body = post(fleet.stable.port, path, lab.golden["request"], {"x-request-id": "mine"})
            version = headers["x-shipway-version"]
            seen.add(version)
            assert (status, headers["x-shipway-digest"]) == (200, digests[version])
            assert (headers["x-shipway-model"], headers["x-request-id"]) == ("flights", "mine")
            assert json.loads(body)["model_version"] == version
            found = json.loads(body)["outputs"][0]["data"]
            assert np.allclose(found, golden[int(version)], rtol=1e-3, atol=1e-4)
        assert seen == ({"1", "2"} if "versions" not in path else {path.split("/")[5]})
    refused = {headers["x-shipway-version"]: body for _, headers, body in wrong(fleet.stable.port, 30)}
    assert refused["1"] == refused["2"]


def golden_outputs(lab: Lab, version: int) -> list[float]:
    status, _, body = post(lab.port, f"/v2/models/flights/versions/{version}/infer", lab.golden["request"])
    assert status == 200
    data: list[float] = json.loads(body)["outputs"][0]["data"]
    return data


def wrong(port: int, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    answers = [post(port, PATH, {"nonsense": 1}) for _ in range(count)]
    assert {status for status, _, _ in answers} == {400}
    return answers


def test_errors_over_grpc_are_the_canarys_own_words(lab: Lab, fleet: Fleet) -> None:
    fleet.begin(0)
    request = ModelInferRequest(model_name="flights", model_version="2", raw_input_contents=[b"x"])
    found = []
    for port in (fleet.stable.port, lab.port):
        with pytest.raises(grpc.RpcError) as caught:
            clients.call(port, "ModelInfer", request.SerializeToString())
        error: Any = caught.value
        found.append((error.code(), error.details()))
        assert dict(error.initial_metadata())["x-shipway-version"] == "2"
    assert found[0] == found[1]
    assert found[0][0] is grpc.StatusCode.INVALID_ARGUMENT


def test_who_asks_for_the_canary_by_its_version_gets_it_without_a_fall_back(lab: Lab, fleet: Fleet) -> None:
    before = fleet.begin(0)
    for _ in range(20):
        assert post(fleet.stable.port, f"{PATH}/2", lab.row())[1]["x-shipway-version"] == "2"
        assert post(fleet.stable.port, PATH, lab.row())[1]["x-shipway-version"] == "1"
    found = until_counted(fleet.stable, before, 40)
    assert sum_of(found, "shipway_edge_requests_total", 'version="2"') == 20
    status, _, body = post(fleet.stable.port, "/v2/models/flights/versions/2", None, method="GET")
    assert (status, json.loads(body)["error"]) == (
        404,
        "version '2' of model 'flights' is on other nodes: here it answers predictions alone",
    )
    assert json.loads(post(fleet.stable.port, "/v2/models/flights", None, method="GET")[2])["versions"] == ["1", "2"]


def test_rollout_is_obeyed_for_the_canarys_digest_alone(lab: Lab, fleet: Fleet) -> None:
    fleet.begin(25)
    fleet.route(50, digest=lab.first.digest)
    wait_for(lambda: fleet.weights() == {1: 100, 2: 0}, 30)
    fleet.release(10)
    wait_for(lambda: fleet.weights() == {1: 90, 2: 10}, 30)
    fleet.route(100)
    wait_for(lambda: fleet.weights() == {1: 0, 2: 100}, 30)
    assert {post(fleet.stable.port, PATH, lab.row())[1]["x-shipway-version"] for _ in range(20)} == {"2"}
    fleet.release(0)
    assert fleet.stable.settings.routing_dir is not None
    (fleet.stable.settings.routing_dir / ROLLOUT).unlink()
    wait_for(lambda: fleet.weights() == {1: 100, 2: 0}, 30)


def test_routing_that_cannot_be_read_is_said_and_changes_nothing(fleet: Fleet) -> None:
    fleet.begin(25)
    assert fleet.stable.settings.routing_dir is not None
    path = fleet.stable.settings.routing_dir / ROLLOUT
    write_atomically(path, b"{")
    url = f"{fleet.stable.settings.metrics_url}/readyz"

    def warned() -> str | None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return text if "warning: the routing that was there before" in text else None

    assert wait_for(warned, 30).startswith("ready\n")
    assert fleet.weights() == {1: 75, 2: 25}
    fleet.begin(0)


def test_copies_go_to_the_canary_and_nobody_sees_them(lab: Lab, fleet: Fleet) -> None:
    before, canary_before = fleet.begin(0, mirror=50), samples(fleet.canary.settings)
    for _ in range(300):
        assert post(fleet.stable.port, PATH, lab.row())[1]["x-shipway-version"] == "1"
    found = until_counted(fleet.stable, before, 300)
    copied = 'shipway_edge_shadow_requests_total{code="200",model="flights",version="2"}'
    wait_for(lambda: 90 < rise(fleet.stable, before).get(copied, 0) < 210, 20)
    assert sum_of(found, "shipway_edge_requests_total", 'version="2"') == 0
    assert rise(fleet.canary, canary_before)['shipway_rows_total{model="flights",version="2"}'] == 0


def test_canarys_worker_killed_under_load_costs_nobody_an_answer(lab: Lab, fleet: Fleet) -> None:
    before = fleet.begin(50)
    load, asking = load_of(lab, fleet)
    wait_for(lambda: load.taken > REQUESTS // 4, 120)
    worker_of(fleet.canary, version=2).kill()
    nobody_lost_anything(asking)
    found = until_counted(fleet.stable, before, REQUESTS)
    assert found[LOST] > 0
    wait_until_ready(fleet.canary.settings, 1)


def test_canary_that_drains_ends_its_peers_connections_and_costs_nobody_an_answer(lab: Lab, fleet: Fleet) -> None:
    before = fleet.begin(50)
    load, asking = load_of(lab, fleet)
    wait_for(lambda: load.taken > REQUESTS // 4, 120)
    told = time.monotonic()
    fleet.canary.process.send_signal(signal.SIGTERM)
    assert fleet.canary.process.wait(20) == 0
    assert time.monotonic() - told < 8  # not the whole time that a drain may take
    nobody_lost_anything(asking)
    until_counted(fleet.stable, before, REQUESTS)
    assert wait_until_ready(fleet.stable.settings, 2).ready
    fleet.canary.start_again()
    wait_until_ready(fleet.canary.settings, 1)
    wait_for(lambda: "2" in {post(fleet.stable.port, PATH, lab.row())[1]["x-shipway-version"] for _ in range(10)}, 30)


def test_canary_killed_under_load_costs_nobody_an_answer(lab: Lab, fleet: Fleet) -> None:
    before = fleet.begin(50)
    load, asking = load_of(lab, fleet)
    wait_for(lambda: load.taken > REQUESTS // 4, 120)
    fleet.canary.kill()
    nobody_lost_anything(asking)
    found = until_counted(fleet.stable, before, REQUESTS)
    assert found[LOST] > 0
    assert wait_until_ready(fleet.stable.settings, 2).ready
    status, headers, _ = post(fleet.stable.port, f"{PATH}/2", lab.row())
    assert (status, headers["x-shipway-version"]) == (503, "2")
    fleet.canary.start_again()
    wait_until_ready(fleet.canary.settings, 1)


def test_pod_that_is_told_to_stop_is_not_ready_within_a_second(lab: Lab, free_ports: Ports) -> None:
    with pod(lab, free_ports(2), lab.first) as running:
        wait_until_ready(running.settings, 1)
        load = Load(running.port, json.dumps(lab.row()).encode(), 10**6, time.monotonic() + 60)
        asking = clients.run(load, [clients.http1] * 2)
        wait_for(lambda: load.taken > 50, 30)
        running.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        wait_for(lambda: readiness(running.settings) == 503, 5)
        assert time.monotonic() - told < 1
        assert running.process.wait(30) == 0
        assert Tally.sum(asking.wait(60)).dropped == []


def readiness(settings: Settings) -> int:
    try:
        with urllib.request.urlopen(f"{settings.metrics_url}/readyz", timeout=1) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_handler_settings_of_the_template_are_those_of_the_workers(lab: Lab, free_ports: Ports) -> None:
    serves = {"model": "flights", "version": 1, "digest": lab.first.digest, "handler": {"workers": 2, "maxQueue": 77}}
    with pod(lab, free_ports(2), lab.first, serves=json.dumps(serves)) as running:
        wait_until_ready(running.settings, 1)
        found = samples(running.settings)
        assert found['shipway_workers{model="flights",state="alive",version="1"}'] == 2
        assert found['shipway_edge_requests_limit{model="flights",version="1"}'] == 77
        assert post(running.port, PATH, lab.row())[0] == 200
        # What the command line of one machine asks for is nothing to a pod.
        write_state(running.settings.desired_file, lab.desired(0, 100))
        assert post(running.port, f"{PATH}/2", lab.row())[0] == 404


def test_pod_whose_archive_no_key_has_signed_says_so_and_serves_nothing(lab: Lab, free_ports: Ports) -> None:
    with pod(lab, free_ports(2), lab.first, trusted_keys="") as running:

        def reason() -> str | None:
            actual = read_actual(running.settings.actual_file)
            return actual.reason if actual and "FAILED" in actual.reason else None

        assert "it is signed with a key that is not trusted" in wait_for(reason, 60)
        assert post(running.port, PATH, lab.row())[0] == 404


@dataclass(frozen=True)
class Secured:
    """Two pods that want HTTPS and credentials, each with files of its own, as each has Secrets mounted."""

    fleet: Fleet
    keys: Mapping[str, str]
    """API keys by the name of the client. `new` is known to the stable pod alone."""
    directories: Mapping[str, Path]

    def ask(self, key: str | None, path: str = PATH, *, row: object, port: int | None = None) -> httpx.Response:
        settings = self.fleet.stable.settings
        headers = {} if key is None else {"authorization": f"Bearer {self.keys[key]}"}
        url = f"https://127.0.0.1:{port or settings.http_port}{path}"
        # Whose certificate is which is between the nodes here.
        return httpx.post(url, json=row, headers=headers, verify=False, timeout=30)  # noqa: S501

    def versions(self, key: str, row: object, count: int = 40) -> Counter[str]:
        answers = [self.ask(key, row=row) for _ in range(count)]
        assert {answer.status_code for answer in answers} == {200}
        return Counter(answer.headers["x-shipway-version"] for answer in answers)

    def lost(self) -> float:
        return samples(self.fleet.stable.settings).get(LOST, 0.0)


@pytest.fixture(scope="module")
def secured(lab: Lab, free_ports: Ports, short_directory: Callable[[], Path]) -> Iterator[Secured]:
    numbers = free_ports(5)
    directories = {name: short_directory() for name in ("stable", "canary")}
    tls.create_self_signed(directories["stable"] / "tls.crt", directories["stable"] / "tls.key", ["flights.svc"])
    keys = {"old": auth.add_api_key(directories["stable"] / "keys.json", "old", ["infer"])}
    copy_secrets(directories["stable"], directories["canary"])
    keys["new"] = auth.add_api_key(directories["stable"] / "keys.json", "new", ["infer"])
    given = {name: secrets_in(directory) for name, directory in directories.items()}
    routing = directories["stable"]
    write_atomically(routing / RELEASE, b'{"canary": null}')
    with (
        pod(lab, numbers[:2], lab.first, routing_dir=routing, **given["stable"]) as stable,
        pod(lab, numbers[2:4], lab.second, peer_port=numbers[4], **given["canary"]) as canary,
    ):
        fleet = Fleet(stable, canary, lab.second)
        for running in (stable, canary):
            wait_until_ready(running.settings, 1)
        fleet.release(0)
        wait_until_ready(stable.settings, 2)
        yield Secured(fleet, keys, directories)


def secrets_in(directory: Path) -> dict[str, Path]:
    files = {"tls_certificate": "tls.crt", "tls_key": "tls.key", "api_keys": "keys.json"}
    return {setting: directory / name for setting, name in files.items()}


def copy_secrets(here: Path, there: Path) -> None:
    for path in secrets_in(here).values():
        write_atomically(there / path.name, path.read_bytes(), 0o600)


def test_canary_checks_the_clients_credentials_again(lab: Lab, secured: Secured) -> None:
    before = secured.fleet.begin(50)
    assert set(secured.versions("old", lab.row())) == {"1", "2"}
    assert rise(secured.fleet.stable, before).get(LOST, 0) == 0
    assert secured.ask(None, row=lab.row()).status_code == 401
    # One that only the stable pod knows yet: its canary refuses, and the stable version answers.
    assert secured.versions("new", lab.row()) == {"1": 40}
    assert secured.lost() > 0
    port = secured.fleet.canary.settings.peer_port
    for key in (None, "new"):
        answer = secured.ask(key, "/peer/flights/2", row=lab.row(), port=port)
        assert (answer.status_code, answer.headers["x-shipway-refused"]) == (401, "true")
    log = (secured.fleet.canary.settings.logs_dir / "access.log").read_text()
    assert '"caller":"key:old"' in log
    assert not any(key in log for key in secured.keys.values())


def test_canary_must_show_the_certificate_of_the_release(lab: Lab, secured: Secured) -> None:
    secured.fleet.begin(50)
    there = secured.directories["canary"]
    lost = secured.lost()
    tls.create_self_signed(there / "tls.crt", there / "tls.key", ["flights.svc"])
    secured.fleet.canary.kill()  # a connection that is there stays good
    secured.fleet.canary.start_again()
    wait_until_ready(secured.fleet.canary.settings, 1)
    assert secured.versions("old", lab.row()) == {"1": 40}
    assert secured.lost() > lost
    # Once both have the new one, and nobody was failed on the way.
    for name in ("tls.key", "tls.crt"):
        write_atomically(secured.directories["stable"] / name, (there / name).read_bytes(), 0o600)
    wait_for(lambda: set(secured.versions("old", lab.row(), 20)) == {"1", "2"}, 30)


def test_stable_pod_that_has_a_new_certificate_first_still_knows_the_one_before(lab: Lab, secured: Secured) -> None:
    secured.fleet.begin(50)
    wait_for(lambda: set(secured.versions("old", lab.row(), 20)) == {"1", "2"}, 30)
    here = secured.directories["stable"]
    tls.create_self_signed(here / "tls.crt", here / "tls.key", ["flights.svc"])
    shown = ssl.PEM_cert_to_DER_cert((here / "tls.crt").read_text())
    wait_for(lambda: certificate_at(secured.fleet.stable.port) == shown, 30)
    lost = secured.lost()
    assert set(secured.versions("old", lab.row())) == {"1", "2"}
    for name in ("tls.key", "tls.crt"):
        write_atomically(secured.directories["canary"] / name, (here / name).read_bytes(), 0o600)
    peer_port = secured.fleet.canary.settings.peer_port
    assert peer_port is not None
    wait_for(lambda: certificate_at(peer_port) == shown, 30)
    assert set(secured.versions("old", lab.row())) == {"1", "2"}
    assert secured.lost() == lost


def certificate_at(port: int) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))
