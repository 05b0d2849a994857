"""The scenarios of `make bench`, and their bars."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import model_store
from handlers.hardware import cpu_target
from tests.bench import client, mlp
from tests.bench.findings import Finding
from tests.bench.lab import Lab, log_as_users_do
from tests.bench.packages import Network
from tests.bench.rounds import Measured
from tests.bench.scenario import BARE, OPTIMISED, OURS, PEERS, Answers, Scenario, oip
from tests.bench.texts import sentences

STOCK = "TorchServe"
OTHERS = tuple(peer for peer in PEERS if peer != STOCK)
_SOURCES = Path(model_store.__path__[0])

_FASTAPI = {"workers": 2, "threads": 1, "batch_size": 1, "batch_delay_ms": 0}
"""It does not batch, so that a second process is what uses the second core."""


DIGITS = 400
"""Pictures that are asked for, and whose classes are compared."""


def mlp_scenario() -> Scenario:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 1000), dtype=np.float32)

    def train(lab: Lab) -> None:
        import torch

        torch.manual_seed(0)
        network = mlp.MLP().eval()
        with torch.inference_mode():
            output = network(torch.from_numpy(rows[:32])).numpy()
        log_as_users_do(lab, "mlp", network, rows[:32], output)

    def bars(measured: Measured) -> list[Finding]:
        best = measured.best(OTHERS, 64)
        return [
            _ratio(measured, OURS, STOCK, 64, 1.3),
            _ratio(measured, OURS, best, 64, 2.0),
            _ratio(measured, OURS, STOCK, 1, 0.65, quantity="p50_ms", at_most=True),
        ]

    return Scenario(
        name="mlp",
        title="MLP 1000-500-250-10, one row of raw float32",
        model="mlp",
        train=train,
        network=Network(Path(mlp.__file__), "MLP", {}, {"dtype": "float32", "shape": [1000]}),
        bodies=[row.tobytes() for row in rows],
        as_asked=lambda body: client.post("/predictions/mlp", body),
        connections=(1, 16, 64),
        threads=1,
        peers={"FastAPI": _FASTAPI},
        bars=bars,
    )


def minilm_scenario() -> Scenario:
    def bars(measured: Measured) -> list[Finding]:
        best = measured.best(PEERS, 16)
        quickest = min(PEERS, key=lambda peer: measured.middle(peer, 16, "p99_ms"))
        return [
            _ratio(measured, OURS, best, 16, 1.2),
            _ratio(measured, OPTIMISED, best, 16, 2.5),
            _ratio(measured, OPTIMISED, quickest, 16, 1.0, quantity="p99_ms", at_most=True),
            _ratio(measured, OURS, BARE, 16),
            _ratio(measured, OPTIMISED, BARE, 16),
        ]

    def agreement(reference: Answers, found: Answers) -> Finding:
        cosine = (reference * found).sum(1) / (np.linalg.norm(reference, axis=1) * np.linalg.norm(found, axis=1))
        return Finding("lowest cosine similarity of optimised embeddings", float(cosine.min()), "cosine", 0.999)

    return Scenario(
        name="minilm",
        title="MiniLM-L6, one sentence of 5 to 40 words",
        model="sentences",
        train=lambda lab: lab.shipway("train", "sentences"),
        network=Network(_SOURCES / "minilm.py", "MiniLM", {}, {"max_tokens": 256}),
        bodies=[sentence.encode() for sentence in sentences(256, shortest=5, longest=40)],
        as_asked=lambda body: oip("sentences", "text", "BYTES", [1], struct.pack("<I", len(body)) + body),
        connections=(16,),
        threads=2,
        peers={"FastAPI": _FASTAPI},
        variants={OURS: (), OPTIMISED: ("--optimize",)},
        bare_batch=16,
        agreement=agreement,
        bars=bars,
    )


def resnet_scenario() -> Scenario:
    from model_store import digits, resnet

    images, labels = digits.load()
    chosen = images[:: len(labels) // DIGITS][:DIGITS]
    shape = [resnet.COLOURS, resnet.PIXELS, resnet.PIXELS]

    def bars(measured: Measured) -> list[Finding]:
        best = measured.best(PEERS, 16)
        capable = cpu_target()["isa"] in ("avx512_vnni", "avx512_bf16")
        return [
            _ratio(measured, OURS, BARE, 16, 0.9),
            _ratio(measured, OPTIMISED, best, 16, 2.5 if capable else None),
            _ratio(measured, OPTIMISED, BARE, 16),
            *(_ratio(measured, peer, BARE, 16) for peer in PEERS),
        ]

    def agreement(reference: Answers, found: Answers) -> Finding:
        share = float((reference.argmax(1) == found.argmax(1)).mean())
        return Finding(f"same top-1 of the optimised archive on {DIGITS} digits", share, "share", 0.99)

    return Scenario(
        name="resnet",
        title="ResNet-18, one picture of 3 x 224 x 224 uint8",
        model="resnet",
        train=lambda lab: lab.shipway("train", "resnet"),
        network=Network(
            _SOURCES / "resnet_network.py", "ResNet18", {"classes": 10}, {"dtype": "uint8", "shape": shape}
        ),
        bodies=[picture.tobytes() for picture in resnet.blown_up(chosen)],
        as_asked=lambda body: oip("resnet", resnet.INPUT, "UINT8", [1, *shape], body),
        connections=(16,),
        threads=2,
        peers={"FastAPI": _FASTAPI},
        variants={OURS: (), OPTIMISED: ("--optimize",)},
        bare_batch=16,
        agreement=agreement,
        bars=bars,
    )


def _ratio(
    measured: Measured,
    name: str,
    other: str,
    connections: int,
    bar: float | None = None,
    *,
    quantity: str = "rate",
    at_most: bool = False,
) -> Finding:
    words = {"rate": "throughput", "p50_ms": "latency p50", "p99_ms": "latency p99"}[quantity]
    return Finding(
        f"{words} at {connections}: {name} / {other}",
        measured.ratio(name, other, connections, quantity),
        "ratio",
        bar,
        at_most,
        measured.spread(name, other, connections, quantity),
    )


SCENARIOS: Mapping[str, Callable[[], Scenario]] = {
    "mlp": mlp_scenario,
    "minilm": minilm_scenario,
    "resnet": resnet_scenario,
}
