"""Fitting: it learns, it repeats, and what a node may meet (unknown, missing) it has seen."""

import numpy as np
import pytest
import torch

from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.fitting import Epoch, Plan, Table, _Batches, fit

SCHEMA = TableSchema(
    numbers=(NumberColumn("delay"), NumberColumn("gust", nullable=True)),
    categories=(CategoryColumn("carrier", ("AA", "UA")), CategoryColumn("closed", ("x", "y"), other=False)),
    outputs=(OutputColumn("probability"),),
)
PLAN = Plan(epochs=3, batch_rows=64)


def table(rows: int, seed: int = 0) -> Table:
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(rows, 2)).astype(np.float32)
    codes = random.integers(0, 2, (rows, 2))
    label = numbers[:, 0] + 2 * codes[:, 0] + random.normal(0, 0.3, rows) > 1
    return Table(numbers, codes, label)


def fitted(plan: Plan) -> tuple[dict[str, torch.Tensor], list[Epoch]]:
    epochs: list[Epoch] = []
    network = fit(table(2000), table(500, seed=1), SCHEMA, [], plan, epochs.append)
    assert not network.training
    return network.state_dict(), epochs


def test_it_learns_and_tells_of_every_epoch() -> None:
    _, epochs = fitted(PLAN)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].validation_loss < epochs[0].validation_loss
    assert epochs[-1].scores.roc_auc > 0.9


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = fitted(PLAN)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    second, _ = fitted(PLAN)
    other, _ = fitted(Plan(epochs=3, batch_rows=64, seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["first.weight"], other["first.weight"])


def test_other_and_missing_are_shown_where_they_can_occur_and_nowhere_else() -> None:
    plan = Plan(batch_rows=500, other_share=0.1, missing_share=0.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        numbers, codes, _ = (torch.cat(parts) for parts in zip(*_Batches(table(4000), SCHEMA, plan), strict=True))
    assert not torch.isnan(numbers[:, 0]).any()
    assert torch.isnan(numbers[:, 1]).float().mean().item() == pytest.approx(0.4, abs=0.05)
    assert (codes[:, 0] == 2).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert (codes[:, 1] < 2).all()
