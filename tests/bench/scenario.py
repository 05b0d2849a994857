"""One scenario from its model to its findings: what is served and asked, which answers are right, which bars hold."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from model_store.archive import read_member
from tests.bench import client, packages, rivals, rounds, servers
from tests.bench.findings import Finding
from tests.bench.lab import Lab
from tests.bench.packages import Batching, Network
from tests.bench.rounds import Asked, Contestant, Measured, WrongAnswer
from tests.bench.servers import Packaged, Server

OURS, OPTIMISED, BARE = "Shipway", "Shipway optimised", "bare loop"
PEERS = tuple(rivals.PATHS)

CHECKED = 64
"""Answers of each server that are compared number by number."""

BARE_ROWS = 128
"""Of one pass of the bare loop, which only makes whole ones: some batches are longer than others."""

Answers = npt.NDArray[np.float32]
"""The first output, [rows, …]."""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    model: str
    train: Callable[[Lab], object]
    network: Network
    bodies: Sequence[bytes]
    """One row each, as the peers take them."""
    as_asked: Callable[[bytes], bytes]
    """The same row as a whole request to our node."""
    connections: Sequence[int]
    threads: int
    """Of a model that has both cores to itself."""
    peers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Fields of Batching in which a peer does best with other values than ours."""
    variants: Mapping[str, Sequence[str]] = field(default_factory=lambda: {OURS: ()})
    """Our archives by name, with the options of `shipway package`."""
    bare_batch: int | None = None
    """Rows of a batch of the bare loop; None for no such loop."""
    agreement: Callable[[Answers, Answers], Finding] | None = None
    """How far answers of the optimised archive are from the reference. All others are compared number by number."""
    bars: Callable[[Measured], list[Finding]] = field(default=lambda _: [])

    @property
    def names(self) -> list[str]:
        """The contestants in the order of the report."""
        return [*self.variants, *PEERS, *([BARE] if self.bare_batch else [])]


@dataclass(frozen=True)
class Outcome:
    scenario: Scenario
    measured: Measured
    findings: list[Finding]
    settings: Mapping[str, Any]

    def cpu_ms(self, name: str, connections: int) -> dict[str, float]:
        """Processor time of a request by part, medians."""
        taken = self.measured.rounds[name, connections]
        return {part: median(one.cpu_ms.get(part, 0.0) for one in taken) for part in taken[0].cpu_ms}


def prepare(scenario: Scenario, lab: Lab) -> dict[str, Packaged]:
    """Our archives of the scenario's model, by the names of its variants."""
    return {name: lab.packaged(scenario.model, scenario.train, *options) for name, options in scenario.variants.items()}


def run(
    scenario: Scenario,
    archives: Mapping[str, Packaged],
    pythons: Mapping[str, Path],
    directory: Path,
    *,
    turns: int,
    seconds: float,
    report: Callable[[str], None],
) -> Outcome:
    """Start all contestants below `directory`, check their answers, measure them. Raises WrongAnswer."""
    plain = next(iter(archives.values())).path
    batching = packages.batching_of(plain, scenario.threads)
    reference = _reference(packages.members(scenario.network, plain, batching), scenario.bodies, directory / "ref")
    contestants: list[Contestant] = []
    findings: list[Finding] = []
    with ExitStack() as stack:
        for number, name in enumerate(scenario.names):
            report(f"starting {name}")
            place = directory / str(number)  # short, for unix sockets
            if name == BARE:
                alone = replace(batching, batch_size=scenario.bare_batch or 1, workers=1, threads=scenario.threads)
                members = packages.members(scenario.network, plain, alone)
                contestants.append(
                    stack.enter_context(rounds.bare_loop(name, members, scenario.bodies[:BARE_ROWS], place))
                )
                continue
            asked = stack.enter_context(_started(scenario, name, archives, pythons, place, batching))
            report(f"checking the answers of {name}")
            findings += _checked(scenario, asked, reference)
            asked.server.sleep()
            contestants.append(asked)
        measured = rounds.measure(contestants, scenario.connections, turns, seconds, report)
    return Outcome(
        scenario,
        measured,
        [*scenario.bars(measured), *findings],
        {name: asdict(_batching(scenario, name, batching)) for name in scenario.names if name != BARE},
    )


def _batching(scenario: Scenario, name: str, ours: Batching) -> Batching:
    return replace(ours, **scenario.peers.get(name, {}))


@contextmanager
def _started(
    scenario: Scenario,
    name: str,
    archives: Mapping[str, Packaged],
    pythons: Mapping[str, Path],
    place: Path,
    batching: Batching,
) -> Iterator[Asked]:
    if name in archives:
        requests = [scenario.as_asked(body) for body in scenario.bodies]
        starting = servers.node(name, archives[name], place, requests[0])
    else:
        requests = [client.post(rivals.PATHS[name], body) for body in scenario.bodies]
        plain = next(iter(archives.values())).path
        members = packages.members(scenario.network, plain, _batching(scenario, name, batching))
        config = read_member(plain, "model-config.yaml")
        starting = rivals.start(name, pythons[name], members, config, place, requests[0])
    with starting as server:
        yield Asked(server, requests)


def _reference(members: Mapping[str, bytes], bodies: Sequence[bytes], directory: Path) -> Answers:
    """What the network itself says, one row after the other."""
    from tests.bench.peers.task import Task

    directory.mkdir()
    for name, content in members.items():
        (directory / name).write_bytes(content)
    task = Task(directory)
    return np.stack([np.frombuffer(task.predict([body])[0], np.float32) for body in bodies])


def _checked(scenario: Scenario, asked: Asked, reference: Answers) -> list[Finding]:
    """Raises WrongAnswer where it means nothing to time a contestant."""
    agreement = scenario.agreement if asked.name == OPTIMISED else None
    requests = asked.requests if agreement else asked.requests[:CHECKED]
    found = np.stack([_answer(asked.server, request) for request in requests])
    reference = reference[: len(found)]
    if agreement:
        return [agreement(reference, found)]
    if not np.allclose(found, reference, rtol=1e-3, atol=1e-4):
        furthest = float(np.abs(found - reference).max())
        raise WrongAnswer(f"{asked.name}: its answers are up to {furthest:g} away from the network's own")
    return []


def _answer(server: Server, request: bytes) -> Answers:
    answer = client.ask(server.address, request)
    if answer.status != 200:
        raise WrongAnswer(f"{server.name}: status {answer.status}, {answer.body[:500]!r}")
    body = answer.body
    if body.startswith(b'[{"'):  # plain rows, told by name
        (row,) = json.loads(body)
        return np.array(next(iter(row.values())), np.float32)
    if answer.json_bytes is not None:
        first = json.loads(body[: answer.json_bytes])["outputs"][0]
        body = body[answer.json_bytes :][: first["parameters"]["binary_data_size"]]
    return np.frombuffer(body, np.float32)


def oip(model: str, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> bytes:
    """A request of the Open Inference Protocol with one raw tensor, which asks for raw outputs."""
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return client.post(f"/v2/models/{model}/infer", head + raw, inference_header_content_length=len(head))
