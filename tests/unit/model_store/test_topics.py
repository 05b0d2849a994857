"""The model `topics`: real sentences of this Python's documentation, held-out ones told far better than by chance."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from handlers.kinds import TextSchema, read_schema
from model_store import topics, topics_data
from model_store.registering import Trained

PLAN = topics.Plan.small()


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def trained(said: io.StringIO) -> Trained:
    return topics.train(Console(file=said, width=120), PLAN)


def test_every_area_gives_sentences_of_prose_and_none_gives_those_of_another() -> None:
    data = topics_data.load(max_per_area=30)
    for part, count in ((data.training, 24), (data.held_out, 6)):
        assert np.bincount(part.labels).tolist() == [count] * len(topics_data.AREAS)
    sentences = (*data.training.sentences, *data.held_out.sentences)
    assert len(set(sentences)) == len(sentences)
    assert all(5 <= len(sentence.split()) <= 40 and sentence[-1] in ".!?" for sentence in sentences)


def test_the_same_python_gives_the_same_sentences_and_fewer_of_them_another_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topics_data, "AREAS", {"files": ("shutil", "glob"), "none": ("no_such_module", "queue")})
    first, again, fewer = (topics_data.load(count) for count in (20, 20, 10))
    assert first == again
    assert first.digest != fewer.digest
    assert set(fewer.held_out.sentences) < set(first.held_out.sentences)


def test_held_out_sentences_are_told_far_better_than_by_chance(trained: Trained, said: io.StringIO) -> None:
    assert trained.metrics["held_out_accuracy"] > 3 / len(topics.CLASSES)
    assert f"{trained.metrics['held_out_accuracy']:.1%}" in said.getvalue()
    losses = [epoch["loss"] for epoch in trained.epochs]
    assert len(losses) == PLAN.epochs
    assert losses[-1] < losses[0] / 2


def test_what_is_registered_fits_together(trained: Trained) -> None:
    schema = read_schema(trained.schema)
    assert isinstance(schema, TextSchema)
    assert schema.classes == topics.CLASSES == tuple(topics_data.AREAS)
    with torch.inference_mode():
        probabilities = trained.network(*map(torch.from_numpy, trained.example))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert probabilities.shape[1:] == schema.outputs[0].shape == trained.outputs[0].shape[1:]
