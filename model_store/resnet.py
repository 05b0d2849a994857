"""The model `resnet`: ResNet-18 on the digits, blown up to 224 x 224 pixels of three colours.

Nobody needs so much for the digits. It is here for its size: a real picture network for measurements, which learns in
minutes on two cores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy, interpolate
from torch.optim.swa_utils import update_bn

from handlers.kinds import ImageSchema, TensorSpec
from model_store import digits, progress
from model_store.digits import CLASSES, Images, Labels
from model_store.fitting import one_thread
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType
from model_store.resnet_network import ResNet18

PIXELS = 224
COLOURS = 3
INPUT = "image"
OUTPUT = "probabilities"
_GOLDEN_ROWS = 8
_WARM_UP = 10
"""Batches until the learning rate is what it should be."""
_JUDGED_ROWS = 32
"""Pictures of one call of the network while it is judged: 224 x 224 of them need memory."""


@dataclass(frozen=True)
class Stage:
    """Some of the training, on pictures of one size."""

    pixels: int
    batches: int
    batch_rows: int


@dataclass(frozen=True)
class Plan:
    """How to fit. A network for pictures of any size learns on small ones first, and gets used to large ones at last.

    The defaults take two minutes, on one core.
    """

    stages: tuple[Stage, ...] = (Stage(48, 40, 48), Stage(96, 20, 32), Stage(160, 40, 12), Stage(PIXELS, 80, 12))
    settled_rows: int = 128
    """Pictures, evenly spaced, that the statistics of the batch norms are of in the end."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0
    judged_rows: int | None = None
    """Held-out pictures that are judged, None for all."""

    @classmethod
    def small(cls) -> "Plan":
        """Enough to have a model at all, in seconds: for tests."""
        return cls(stages=(Stage(32, 20, 32),), settled_rows=32, judged_rows=8)


def train(console: Console, plan: Plan | None = None) -> Trained:
    """Train on four fifths of the digits and judge the others at full size. The same seed gives the same network.

    It computes in BF16 where the processor does so itself; the network's weights are float32 all the same.
    """
    plan = plan or Plan()
    images, labels = digits.load()
    held = np.arange(len(labels)) % digits.HELD_OUT == 0
    network, losses = _fit(images[~held], labels[~held], plan, console)
    judged = np.flatnonzero(held)[: plan.judged_rows]
    with console.status(f"Judging {len(judged)} pictures of {PIXELS} x {PIXELS} pixels"):
        accuracy = judge(network, images[judged], labels[judged])
    console.print(f"Accuracy on {len(judged)} pictures held out: {accuracy:.1%}")
    golden = blown_up(images[held][:_GOLDEN_ROWS])
    return Trained(
        network=network,
        example=(golden[:2],),
        inputs=(array_type("images", golden),),
        outputs=(TensorType(OUTPUT, "float32", (-1, len(CLASSES))),),
        schema=ImageSchema(
            input=INPUT,
            channels=COLOURS,
            height=PIXELS,
            width=PIXELS,
            classes=CLASSES,
            outputs=(TensorSpec(name=OUTPUT, datatype="FP32", shape=(len(CLASSES),)),),
        ).to_json(),
        golden=[{"name": INPUT, "datatype": "UINT8", "shape": list(golden.shape), "data": golden.ravel()}],
        data_digest=digits.digest(images, labels),
        reference=Reference((blown_up(images[judged]),), accuracy),
        metrics={"accuracy": accuracy},
        params={**asdict(plan), "training_rows": int((~held).sum()), "judged_rows": len(judged)},
        epochs=[{"loss": loss} for loss in losses],
    )


def blown_up(images: Images, pixels: int = PIXELS) -> Images:
    """Grey digits uint8 [n, 1, 8, 8] as pictures uint8 [n, 3, pixels, pixels]."""
    large = interpolate(torch.from_numpy(images).float(), size=(pixels, pixels), mode="bilinear")
    blown: Images = large.round().to(torch.uint8).expand(-1, COLOURS, -1, -1).contiguous().numpy()
    return blown


@torch.inference_mode()
def judge(network: ResNet18, images: Images, labels: Labels) -> float:
    """Share of these digits, [n, 1, 8, 8], that the network tells at full size, in float32."""
    right = 0
    for start in range(0, len(labels), _JUDGED_ROWS):
        large = torch.from_numpy(blown_up(images[start : start + _JUDGED_ROWS]))
        right += int((network(large).argmax(1).numpy() == labels[start : start + _JUDGED_ROWS]).sum())
    return right / len(labels)


def _fit(images: Images, labels: Labels, plan: Plan, console: Console) -> tuple[ResNet18, list[float]]:
    """A network in evaluation mode, and the loss of every batch."""
    capable = torch.cpu.get_capabilities()
    autocast = torch.autocast(
        "cpu", torch.bfloat16, enabled=bool(capable.get("avx512_bf16") or capable.get("amx_bf16"))
    )
    losses: list[float] = []
    batches = sum(stage.batches for stage in plan.stages)
    with one_thread(), torch.random.fork_rng(), progress.epochs(console, batches, "batches") as advance:
        torch.manual_seed(plan.seed)
        # The layout that processors convolve fastest in; the weights' values are the same.
        network = ResNet18(len(CLASSES))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(plan.stages))
        for stage in plan.stages:
            for rows in _batches(len(labels), stage):
                large = torch.from_numpy(blown_up(images[rows], stage.pixels))
                with autocast:
                    loss = cross_entropy(network.logits(large), torch.from_numpy(labels[rows]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                advance(f"{stage.pixels} x {stage.pixels} pixels, loss {losses[-1]:.3f}")
        # Batch norms of small pictures do not fit large ones.
        spaced = np.linspace(0, len(images) - 1, plan.settled_rows).astype(int)
        settled = torch.from_numpy(blown_up(images[spaced], plan.stages[-1].pixels))
        with autocast:
            update_bn(settled.split(_JUDGED_ROWS), network)  # type: ignore[no-untyped-call]
    # Back again: torch.export does not store the other layout.
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval(), losses


def _rate(stages: Sequence[Stage]) -> Callable[[int], float]:
    """Share of the learning rate at a batch: rising at first, falling in the last stage, where it gets used to size."""
    falling = stages[-1].batches
    before = sum(stage.batches for stage in stages) - falling
    return lambda batch: min(1, (batch + 1) / _WARM_UP, 1 - (batch - before) / falling)


def _batches(rows: int, stage: Stage) -> Iterator[Sequence[int]]:
    """Row numbers of the stage's batches: all rows in random order, and again for as long as it takes."""
    order: list[int] = []
    for _ in range(stage.batches):
        if len(order) < stage.batch_rows:
            order += torch.randperm(rows).tolist()
        yield order[: stage.batch_rows]
        del order[: stage.batch_rows]
