"""The model `digits`: real pictures, learnt within seconds, the same for the same seed."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from handlers.kinds import ImageSchema, read_schema
from model_store import digits
from model_store.registering import Trained

PLAN = digits.Plan(epochs=3)


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def trained(said: io.StringIO) -> Trained:
    return digits.train(Console(file=said), PLAN)


def test_the_pictures_are_bytes_of_all_grey_levels() -> None:
    images, labels = digits.load()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_three_epochs_are_enough_to_tell_most_pictures_held_out(trained: Trained, said: io.StringIO) -> None:
    assert 0.9 < trained.metrics["accuracy"] < 1
    assert f"Accuracy on 360 pictures held out: {trained.metrics['accuracy']:.1%}" in said.getvalue()
    losses = [epoch["loss"] for epoch in trained.epochs]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_what_is_registered_fits_together(trained: Trained) -> None:
    schema = read_schema(trained.schema)
    assert isinstance(schema, ImageSchema)
    assert schema.shape == trained.example[0].shape[1:] == trained.inputs[0].shape[1:]
    with torch.inference_mode():
        probabilities = trained.network(torch.from_numpy(trained.example[0]))
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    assert probabilities.shape[1:] == trained.outputs[0].shape[1:] == schema.outputs[0].shape


def test_the_same_seed_gives_the_same_weights_and_another_one_others(trained: Trained) -> None:
    again = digits.train(Console(quiet=True), PLAN)
    other = digits.train(Console(quiet=True), digits.Plan(epochs=1, seed=1))
    for name, weights in trained.network.state_dict().items():
        assert torch.equal(weights, again.network.state_dict()[name])
    assert not torch.equal(trained.network.state_dict()["last.bias"], other.network.state_dict()["last.bias"])
    assert trained.data_digest == other.data_digest
