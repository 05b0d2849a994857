"""What a peer is given: a folder with the network's own file, its weights, and how to batch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from model_store.archive import read_member

TASK = Path(__file__).with_name("peers") / "task.py"


@dataclass(frozen=True)
class Batching:
    """How a server batches, and what it computes with."""

    batch_size: int
    batch_delay_ms: int
    workers: int
    threads: int
    """Of each worker."""
    api_servers: int = 1
    """LitServe's processes that speak HTTP."""


@dataclass(frozen=True)
class Network:
    """The class that a peer makes its model of."""

    source: Path
    name: str
    arguments: Mapping[str, Any]
    input: Mapping[str, Any]
    """`dtype` and `shape` of one row, or `max_tokens` of a text."""


def batching_of(archive: Path, threads: int) -> Batching:
    """How our node batches, which the peers do too; `threads` are those of all workers together."""
    config = yaml.safe_load(read_member(archive, "model-config.yaml"))
    workers = config["maxWorkers"]
    return Batching(config["batchSize"], config["maxBatchDelay"], workers, max(1, threads // workers))


def members(network: Network, archive: Path, batching: Batching) -> dict[str, bytes]:
    """The files of a package: the weights are those of our archive."""
    settings = {
        "network": [network.source.stem, network.name, dict(network.arguments)],
        "input": dict(network.input),
        **asdict(batching),
    }
    found = {
        "settings.json": json.dumps(settings, indent=1).encode(),
        "task.py": TASK.read_bytes(),
        network.source.name: network.source.read_bytes(),
        "weights.safetensors": read_member(archive, "weights.safetensors"),
    }
    if "max_tokens" in network.input:
        found["tokenizer.json"] = read_member(archive, "tokenizer.json")
    return found
