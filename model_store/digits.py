"""The model `digits`: which digit is on a grey picture of 8 x 8 pixels? A small convolutional network."""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from handlers.kinds import ImageSchema, TensorSpec
from model_store import progress
from model_store.fitting import one_thread
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType

CLASSES = tuple("0123456789")
SIZE = 8
HELD_OUT = 5
"""Every fifth picture is kept for the validation."""
GOLDEN_ROWS = 32
_SCALE = 255 / 16  # scikit-learn's grey levels are 0 to 16

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How to fit. The defaults take three seconds on two cores."""

    epochs: int = 15
    batch_rows: int = 64
    learning_rate: float = 4e-3
    seed: int = 0


class DigitNetwork(nn.Module):
    """Probabilities of the ten digits, float32 [n, 10], from pictures uint8 [n, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.last = nn.Linear(32 * (SIZE // 2) ** 2, len(CLASSES))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Unnormalised log-probabilities, float32 [n, 10]: what training needs."""
        grey = images.float() / 255
        shapes = functional.max_pool2d(torch.relu(self.second(torch.relu(self.first(grey)))), 2)
        logits: torch.Tensor = self.last(shapes.flatten(1))
        return logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 [n, 10]."""
        return torch.softmax(self.logits(images), dim=1)


def load() -> tuple[Images, Labels]:
    """Pictures of scikit-learn, uint8 [1797, 1, 8, 8], of grey levels 0 to 255, and which digit each is, [1797]."""
    bundled = load_digits()
    images = np.rint(bundled.images * _SCALE).astype(np.uint8)
    return images[:, None], bundled.target.astype(np.int64)


def digest(images: Images, labels: Labels) -> str:
    """`sha256:` and 64 digits, of pictures and labels."""
    return f"sha256:{hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()}"


def train(console: Console, plan: Plan | None = None) -> Trained:
    """Train on four fifths of the pictures, validate on the rest."""
    plan = plan or Plan()
    images, labels = load()
    held = np.arange(len(labels)) % HELD_OUT == 0
    network, losses = _fit(images[~held], labels[~held], plan, console)
    with torch.inference_mode():
        found = network(torch.from_numpy(images[held])).argmax(1).numpy()
    accuracy = float((found == labels[held]).mean())
    console.print(f"Accuracy on {held.sum()} pictures held out: {accuracy:.1%}")
    golden = images[held][:GOLDEN_ROWS]
    probabilities = TensorSpec(name="probabilities", datatype="FP32", shape=(len(CLASSES),))
    schema = ImageSchema(channels=1, height=SIZE, width=SIZE, classes=CLASSES, outputs=(probabilities,))
    return Trained(
        network=network,
        example=(images[:2],),
        inputs=(array_type("images", images),),
        outputs=(TensorType("probabilities", "float32", (-1, len(CLASSES))),),
        schema=schema.to_json(),
        golden=[{"name": "image", "datatype": "UINT8", "shape": list(golden.shape), "data": golden.ravel()}],
        data_digest=digest(images, labels),
        reference=Reference((images[held],), accuracy),
        metrics={"accuracy": accuracy},
        params={**asdict(plan), "training_rows": int((~held).sum()), "validation_rows": int(held.sum())},
        epochs=[{"loss": loss} for loss in losses],
    )


def _fit(images: Images, labels: Labels, plan: Plan, console: Console) -> tuple[DigitNetwork, list[float]]:
    """A network in evaluation mode, and the mean loss of every epoch. The same seed gives the same network."""
    pictures, answers = torch.from_numpy(images), torch.from_numpy(labels)
    losses: list[float] = []
    with one_thread(), torch.random.fork_rng(), progress.epochs(console, plan.epochs) as advance:
        torch.manual_seed(plan.seed)
        network = DigitNetwork()
        optimizer = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
        for _ in range(plan.epochs):
            total = 0.0
            for rows in torch.randperm(len(answers)).split(plan.batch_rows):  # type: ignore[no-untyped-call]
                loss = functional.cross_entropy(network.logits(pictures[rows]), answers[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(rows)
            losses.append(total / len(answers))
            advance(f"loss {losses[-1]:.4f}")
    return network.eval(), losses
