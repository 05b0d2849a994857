"""Fitting the tabular network: a fixed number of epochs, the same result for the same seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from handlers.schema import TableSchema
from model_store.metrics import Scores
from model_store.network import Cycle, TabularNetwork


@dataclass(frozen=True)
class Plan:
    """How to fit. The defaults are for the flights: about ten seconds on two cores."""

    epochs: int = 10
    batch_rows: int = 1024
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2
    other_share: float = 0.03
    """Share of the codes shown as `other`, so that this code is trained."""
    missing_share: float = 0.5
    """Share of the nullable numbers hidden: four months of weather are soon learnt by heart."""
    seed: int = 0
    max_rows: int | None = None
    """Train and validate on no more than this many rows, evenly spaced; None for all."""

    @classmethod
    def small(cls) -> "Plan":
        """Enough to have a model at all, in a second or two: for tests."""
        return cls(epochs=2, batch_rows=256, max_rows=6000)

    def as_dict(self) -> dict[str, int | float | None]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as the program takes them, with their labels."""

    numbers: npt.NDArray[np.float32]
    """[n, F]; missing is NaN."""
    codes: npt.NDArray[np.int64]
    """[n, C]"""
    label: npt.NDArray[np.bool_]
    """[n]"""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training rows came to."""

    number: int
    """Counted from 1."""
    loss: float
    """Mean training loss, with dropout."""
    validation_loss: float
    scores: Scores
    """On the validation rows."""


def fit(
    training: Table,
    validation: Table,
    schema: TableSchema,
    cycles: Sequence[Cycle],
    plan: Plan,
    on_epoch: Callable[[Epoch], None],
) -> TabularNetwork:
    """Fit a network and return it in evaluation mode; `on_epoch` is told of every epoch."""
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        network = TabularNetwork(
            centre=np.nanmedian(training.numbers, axis=0),
            scale=np.maximum(np.nanstd(training.numbers, axis=0), np.float32(1e-3)),
            cycles=cycles,
            vocabularies=[len(column.vocabulary) for column in schema.categories],
            dropout=plan.dropout,
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        steps = plan.epochs * -(-len(training.label) // plan.batch_rows)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=steps)
        batches = _Batches(training, schema, plan)
        for number in range(1, plan.epochs + 1):
            network.train()
            total = 0.0
            for numbers, codes, label in batches:
                loss = binary_cross_entropy_with_logits(network.logits(numbers, codes), label)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.item() * len(label)
            network.eval()
            on_epoch(_judged(number, total / len(training.label), network, validation))
    return network


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations this small gain nothing from a second thread; on a busy machine waiting for it costs sevenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Batches:
    """The training rows in random order, some of their values hidden anew in every epoch."""

    def __init__(self, table: Table, schema: TableSchema, plan: Plan) -> None:
        self._numbers = torch.from_numpy(table.numbers)
        self._codes = torch.from_numpy(table.codes)
        self._label = torch.from_numpy(table.label).float()
        self._nullable = torch.tensor([column.nullable for column in schema.numbers])
        self._has_other = torch.tensor([column.other for column in schema.categories])
        self._other = torch.tensor([len(column.vocabulary) for column in schema.categories])
        self._plan = plan

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(self._label)).split(self._plan.batch_rows):  # type: ignore[no-untyped-call]
            numbers, codes = self._numbers[rows], self._codes[rows]
            hidden = (torch.rand(numbers.shape) < self._plan.missing_share) & self._nullable
            replaced = (torch.rand(codes.shape) < self._plan.other_share) & self._has_other
            yield (
                numbers.masked_fill(hidden, torch.nan),
                torch.where(replaced, self._other, codes),
                self._label[rows],
            )


@torch.inference_mode()
def _judged(number: int, loss: float, network: TabularNetwork, validation: Table) -> Epoch:
    logits = network.logits(torch.from_numpy(validation.numbers), torch.from_numpy(validation.codes))
    validation_loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(validation.label).float())
    scores = Scores.of(torch.sigmoid(logits).numpy(), validation.label)
    return Epoch(number, loss, float(validation_loss), scores)
