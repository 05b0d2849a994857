"""Pods as processes of this machine: a stable node sends the canary's share to the canary's node."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.node.desired import Desired, read_actual
from deploy.node.routing import RELEASE, ROLLOUT
from handlers.protocol.messages import SERVICE
from model_store.files import write_atomically
from model_store.package import PackagedVersion
from tests.integration import clients
from tests.integration.clients import Load, Tally
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.integration.test_node import grpc_request, sum_of
from tests.waiting import wait_for

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
    tally = Tally.sum(clients.run(load, [clients.http1] * 4 + [clients.http2] * 2).wait(160))
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
