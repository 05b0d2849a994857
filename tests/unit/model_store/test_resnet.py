"""ResNet-18: the shape of the original, any size of picture, and that a little training teaches it something."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from handlers.kinds import ImageSchema, read_schema
from model_store import digits, resnet
from model_store.registering import Trained
from model_store.resnet import PIXELS, Stage
from model_store.resnet_network import ResNet18

PLAN = resnet.Plan.small()


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def trained(said: io.StringIO) -> Trained:
    return resnet.train(Console(file=said, width=120), PLAN)


def test_it_has_the_weights_of_the_original() -> None:
    # He et al., table 1: 18 layers with weights; with 1000 classes there are 11,689,512 weights.
    network = ResNet18(1000)
    assert sum(weight.numel() for weight in network.parameters()) == 11_689_512
    layers = [
        module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 18


@torch.inference_mode()
def test_a_picture_shrinks_thirty_two_times() -> None:
    network = ResNet18(10).eval()
    shapes: list[torch.Size] = []
    network.blocks.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    for pixels in (PIXELS, 96):
        network(torch.zeros((1, 3, pixels, pixels), dtype=torch.uint8))
    assert shapes == [(1, 512, 7, 7), (1, 512, 3, 3)]


def test_digits_are_blown_up_smoothly_and_lose_nothing() -> None:
    images, _ = digits.load()
    large = resnet.blown_up(images[:3])
    assert (large.shape, large.dtype.name) == ((3, 3, PIXELS, PIXELS), "uint8")
    assert (large == large[:, :1]).all()
    # The middle of every blown-up pixel is between four of the large ones.
    middle = PIXELS // 16
    near = large[:, :1, middle :: PIXELS // 8, middle :: PIXELS // 8].astype(int)
    assert np.abs(near - images[:3]).max() <= 10


def test_batches_show_every_row_once_before_any_again() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = list(resnet._batches(10, Stage(pixels=8, batches=5, batch_rows=4)))
    assert [len(rows) for rows in seen] == [4] * 5
    shown = [row for rows in seen for row in rows]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))


def test_a_little_training_teaches_it_something(trained: Trained, said: io.StringIO) -> None:
    losses = [epoch["loss"] for epoch in trained.epochs]
    assert len(losses) == sum(stage.batches for stage in PLAN.stages)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2
    assert f"Accuracy on {PLAN.judged_rows} pictures held out: {trained.metrics['accuracy']:.1%}" in said.getvalue()


def test_what_is_registered_fits_together(trained: Trained) -> None:
    schema = read_schema(trained.schema)
    assert isinstance(schema, ImageSchema)
    assert schema.shape == trained.example[0].shape[1:] == trained.inputs[0].shape[1:] == (3, PIXELS, PIXELS)
    assert not trained.network.training
    with torch.inference_mode():
        probabilities = trained.network(torch.from_numpy(trained.example[0]))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert probabilities.shape[1:] == schema.outputs[0].shape == trained.outputs[0].shape[1:]
    assert {weight.dtype for weight in trained.network.parameters()} == {torch.float32}
    assert all(weight.is_contiguous() for weight in trained.network.parameters())
    assert np.unique(trained.golden[0]["data"]).size > 100


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    stages = (Stage(pixels=32, batches=2, batch_rows=4),)
    plans = [resnet.Plan(stages=stages, settled_rows=2, judged_rows=1, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (resnet.train(Console(quiet=True), plan).network.state_dict() for plan in plans)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.bias"], other["last.bias"])
