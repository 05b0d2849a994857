"""The model `delays`: least squares that finds what is there, and on real flights beats the delay at departure."""

import numpy as np
import torch
from rich.console import Console

from model_store import delays
from model_store.training import TRAININGS


def test_least_squares_find_the_weights_that_made_the_numbers() -> None:
    random = np.random.default_rng(3)
    numbers = random.normal(0, [1, 100, 1000], (500, 3)).astype(np.float32)
    weights, constant = np.array([2, -0.5, 0.01]), 7.0
    network = delays.fitted(numbers, numbers.astype(np.float64) @ weights + constant)
    assert np.allclose(network.weights.detach(), weights, atol=1e-5)
    with torch.inference_mode():
        answers = network(torch.from_numpy(numbers[:2]), torch.empty(2, 0, dtype=torch.int64))
    assert np.allclose(answers, numbers[:2] @ weights + constant, atol=1e-3)


def test_on_real_flights_it_beats_the_delay_at_departure() -> None:
    trained = delays.train(Console(quiet=True))
    assert trained.metrics["mean_absolute_error"] < 0.9 * trained.metrics["baseline_mean_absolute_error"]
    assert trained.metrics["r2"] > 0.8
    assert [one.shape for one in trained.inputs] == [(-1, 5), (-1, 0)]


def test_every_training_says_what_it_learns() -> None:
    assert all(what.endswith(")") and " (" in what for _, what in TRAININGS.values())
