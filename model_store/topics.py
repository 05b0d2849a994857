"""The model `topics`: what part of programming is a sentence about? A linear classifier on MiniLM's embedding."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from model_store import minilm_files, progress, topics_data
from model_store.minilm import EMBEDDING, MiniLM
from model_store.profiling import Reference
from model_store.registering import Trained
from model_store.registry import TensorType
from model_store.sentences import embed, text_model, tokens
from model_store.topics_data import Labelled

CLASSES = tuple(topics_data.AREAS)
_GOLDEN_PER_CLASS = 4


@dataclass(frozen=True)
class Plan:
    """How to fit. Nearly all of the time goes into embedding the sentences: half a minute on two cores."""

    epochs: int = 30
    batch_rows: int = 128
    learning_rate: float = 5e-2
    weight_decay: float = 1e-3
    max_per_area: int = 500
    seed: int = 0

    @classmethod
    def small(cls) -> "Plan":
        """Enough to have a model at all, in a few seconds: for tests."""
        return cls(epochs=20, batch_rows=16, max_per_area=25)


class TopicNetwork(nn.Module):
    """Probabilities of CLASSES, float32 [n, K], from input_ids and attention_mask, both int64 [n, L]."""

    def __init__(self, encoder: MiniLM, head: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.encoder(input_ids, attention_mask)), dim=1)


@dataclass(frozen=True, eq=False)
class _Embedded:
    values: torch.Tensor
    """float32 [n, EMBEDDING]"""
    labels: torch.Tensor
    """int64 [n]"""


def train(console: Console, plan: Plan | None = None) -> Trained:
    """Fit the classifier on four fifths of the sentences and judge it on the others. Raises WeightsMissing."""
    plan = plan or Plan()
    data = topics_data.load(plan.max_per_area)
    encoder = minilm_files.load_network()
    count = len(data.training.labels) + len(data.held_out.labels)
    with console.status(f"Embedding {count:,} sentences of Python's documentation"):
        training, held_out = _embedded(encoder, data.training), _embedded(encoder, data.held_out)
    head, epochs = _fit(training, held_out, plan, console)
    guessed = _guess(head, held_out)
    console.print(_report(guessed, held_out.labels))
    outputs = [TensorType("probabilities", "float32", (-1, len(CLASSES)))]
    accuracy = _share(guessed == held_out.labels)
    version = text_model(
        TopicNetwork(encoder, head).eval(),
        outputs=outputs,
        classes=CLASSES,
        golden=_golden(data.held_out),
        data_digest=data.digest,
        reference=Reference(tokens(data.held_out.sentences), accuracy),
        metrics={"held_out_accuracy": accuracy},
        params={
            **asdict(plan),
            "training_rows": len(data.training.labels),
            "held_out_rows": len(data.held_out.labels),
            "weights": minilm_files.digest(),
        },
    )
    return replace(version, epochs=epochs)


def _embedded(encoder: MiniLM, data: Labelled) -> _Embedded:
    return _Embedded(torch.from_numpy(embed(encoder, data.sentences)), torch.tensor(data.labels))


def _fit(
    training: _Embedded, held_out: _Embedded, plan: Plan, console: Console
) -> tuple[nn.Linear, list[dict[str, float]]]:
    with torch.random.fork_rng(), progress.epochs(console, plan.epochs) as advance:
        torch.manual_seed(plan.seed)
        head = nn.Linear(EMBEDDING, len(CLASSES))
        optimizer = torch.optim.AdamW(head.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        epochs = []
        for _ in range(plan.epochs):
            total = 0.0
            for rows in _batches(len(training.labels), plan.batch_rows):
                loss = cross_entropy(head(training.values[rows]), training.labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(rows)
            accuracy = _share(_guess(head, held_out) == held_out.labels)
            epochs.append({"loss": total / len(training.labels), "held_out_accuracy": accuracy})
            advance(f"loss {epochs[-1]['loss']:.4f}, held-out accuracy {accuracy:.1%}")
    return head, epochs


def _batches(rows: int, size: int) -> Iterator[torch.Tensor]:
    yield from torch.randperm(rows).split(size)  # type: ignore[no-untyped-call]


@torch.inference_mode()
def _guess(head: nn.Linear, data: _Embedded) -> torch.Tensor:
    guessed: torch.Tensor = head(data.values).argmax(dim=1)
    return guessed


def _share(right: torch.Tensor) -> float:
    return float(right.float().mean())


def _golden(held_out: Labelled) -> list[str]:
    """Some sentences of every class, the shortest, the longest and two between."""
    chosen: list[str] = []
    for label in range(len(CLASSES)):
        own = sorted(
            (s for s, known in zip(held_out.sentences, held_out.labels, strict=True) if known == label), key=len
        )
        chosen += [own[index] for index in np.linspace(0, len(own) - 1, _GOLDEN_PER_CLASS).astype(int)]
    return chosen


def _report(guessed: torch.Tensor, labels: torch.Tensor) -> Table:
    table = Table(title="Held-out sentences", show_footer=True)
    table.add_column("topic", "all")
    table.add_column("sentences", f"{len(labels):,}", justify="right")
    table.add_column("accuracy", f"{_share(guessed == labels):.1%}", justify="right")
    for index, name in enumerate(CLASSES):
        own = labels == index
        table.add_row(name, str(int(own.sum())), f"{_share(guessed[own] == index):.1%}")
    return table
