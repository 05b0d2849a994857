"""The network: missing numbers, unknown categories and any batch size, in the program itself and cheaply."""

import numpy as np
import pytest
import torch

from model_store.network import Cycle, TabularNetwork

CENTRE = np.array([10.0, 720.0, 50.0], dtype=np.float32)
SCALE = np.array([40.0, 400.0, 20.0], dtype=np.float32)


@pytest.fixture
def network() -> TabularNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TabularNetwork(CENTRE, SCALE, [Cycle(1, 1440)], [3, 5], dropout=0.5).eval()


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    numbers = torch.rand((count, 3), generator=generator) * 100
    numbers[0, 1] = torch.nan
    return numbers, torch.randint(0, 4, (count, 2), generator=generator)


def test_it_gives_a_probability_for_every_row(network: TabularNetwork) -> None:
    probability = network(*rows(7))
    assert probability.shape == (7,)
    assert probability.dtype == torch.float32
    assert ((probability > 0) & (probability < 1)).all()


def test_a_missing_number_is_its_centre_with_an_indicator(network: TabularNetwork) -> None:
    codes = torch.zeros((2, 2), dtype=torch.int64)
    numbers = torch.tensor([[torch.nan, 60.0, 50.0], [10.0, 60.0, 50.0]])
    missing, centre = network(numbers, codes).tolist()
    assert missing != centre
    with torch.no_grad():
        network.first.weight[:, -3:] = 0  # the indicators stand last
    missing, centre = network(numbers, codes).tolist()
    assert missing == centre


def test_nothing_but_missing_numbers_still_gives_a_probability(network: TabularNetwork) -> None:
    probability = network(torch.full((1, 3), torch.nan), torch.zeros((1, 2), dtype=torch.int64))
    assert torch.isfinite(probability).all()


def test_a_cycle_comes_round(network: TabularNetwork) -> None:
    with torch.no_grad():
        network.scale.zero_()  # leaves the cyclic reading alone
    codes = torch.zeros((3, 2), dtype=torch.int64)
    numbers = torch.tensor([[0.0, 30.0, 0.0], [0.0, 1470.0, 0.0], [0.0, 750.0, 0.0]])
    start, round_once, half = network(numbers, codes).tolist()
    assert start == pytest.approx(round_once, abs=1e-5)
    assert start != pytest.approx(half, abs=1e-3)


def test_every_code_has_an_embedding_of_its_own(network: TabularNetwork) -> None:
    codes = torch.tensor([[first, second] for first in range(4) for second in range(6)])  # each with its `other`
    used = codes + network.first_code
    assert sorted(set(used[:, 0].tolist())) == [0, 1, 2, 3]
    assert sorted(set(used[:, 1].tolist())) == [4, 5, 6, 7, 8, 9]
    assert network.embeddings.num_embeddings == 10
    assert len(set(network(torch.zeros((24, 3)), codes).tolist())) == 24


def test_the_exported_program_takes_any_batch_in_few_operations(network: TabularNetwork) -> None:
    batch = torch.export.Dim.AUTO
    program = torch.export.export(network, rows(2), dynamic_shapes=({0: batch}, {0: batch}))
    operations = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(operations) <= 19
    assert "dropout" not in program.graph_module.code
    for count in (1, 2, 32):
        torch.testing.assert_close(program.module()(*rows(count)), network(*rows(count)), rtol=1e-6, atol=1e-6)
