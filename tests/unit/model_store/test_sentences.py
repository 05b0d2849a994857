"""The model `sentences`: what is registered is answered by its handler as by the network itself."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from handlers.kinds import TextSchema, read_schema
from model_store import sentences
from model_store.minilm import BUCKETS, MAX_TOKENS, MiniLM, Size
from model_store.profiling import Reference
from model_store.registering import Trained
from model_store.registry import TensorType
from tests.unit.model_store.exporting import exported, golden_outputs, loaded


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def trained(said: io.StringIO) -> Trained:
    return sentences.train(Console(file=said, width=100))


def small() -> Trained:
    """The same with a network of one narrow layer, which the real tokens fit."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = MiniLM(Size(layers=1, hidden=24, heads=2, intermediate=48)).eval()
    outputs = [TensorType("embedding", "float32", (-1, 24))]
    golden = sentences.GOLDEN
    return sentences.text_model(
        network,
        outputs=outputs,
        classes=None,
        golden=golden,
        data_digest="",
        reference=Reference(sentences.tokens(golden)),
        metrics={},
        params={},
    )


def test_embeddings_of_one_meaning_lie_closer_than_any_others(trained: Trained, said: io.StringIO) -> None:
    assert trained.metrics["same_meaning_cosine_min"] > 2 * trained.metrics["other_meaning_cosine_max"]
    assert f"{trained.metrics['same_meaning_cosine_min']:.3f}" in said.getvalue()


def test_what_is_registered_fits_together(trained: Trained) -> None:
    schema = read_schema(trained.schema)
    assert isinstance(schema, TextSchema)
    assert (schema.classes, schema.max_tokens, schema.buckets[-1]) == (None, MAX_TOKENS, MAX_TOKENS)
    with torch.inference_mode():
        embedding = trained.network(*map(torch.from_numpy, trained.example))
    assert embedding.shape[1:] == schema.outputs[0].shape == trained.outputs[0].shape[1:]


def test_golden_texts_are_of_all_lengths() -> None:
    (golden,) = small().golden
    _, mask = sentences.tokens(golden["data"])
    lengths = mask.sum(axis=1)
    assert golden["shape"] == [len(lengths)]
    assert lengths.min() < 6
    assert lengths.max() == MAX_TOKENS
    assert np.unique(np.searchsorted(BUCKETS, lengths)).size >= 5


def test_the_exported_program_takes_any_rows_and_lengths_and_its_handler_answers_the_same() -> None:
    trained = small()
    stored = exported(trained)
    program = loaded(stored)
    for rows, length in ((1, 3), (3, 100), (2, MAX_TOKENS)):
        ids = torch.arange(1, 1 + rows * length).reshape(rows, length)
        mask = torch.ones_like(ids)
        mask[0, 2:] = 0
        torch.testing.assert_close(program(ids, mask)[0], trained.network(ids, mask).detach())
    answer = golden_outputs(trained, stored)["embedding"]
    expected = sentences.embed(trained.network, trained.golden[0]["data"])
    assert answer["shape"] == list(expected.shape)
    np.testing.assert_allclose(answer["data"], expected.ravel(), atol=1e-5)


def test_texts_are_embedded_in_their_order_though_those_of_like_length_go_together() -> None:
    network = small().network
    texts = [f"{'very ' * (index % 7)}good {index}" for index in range(sentences._CHUNK + 5)]
    alone = np.concatenate([sentences.embed(network, [texts[index]]) for index in (0, 40, -1)])
    np.testing.assert_allclose(sentences.embed(network, texts)[[0, 40, -1]], alone, atol=1e-6)
