"""The model `sentences`: a text becomes a vector, and texts that mean the same become vectors that lie together.

Nothing is learnt here: MiniLM-L6 comes trained. What every version of a text model has is made here too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from handlers.kinds import TensorSpec, TextSchema
from model_store import minilm_files, topics_data
from model_store.minilm import BUCKETS, EMBEDDING, MAX_TOKENS
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType

INPUT = "text"
_CHUNK = 64
_REFERENCE_PER_AREA = 60

PAIRS = (
    ("The flight was cancelled because of heavy snow.", "Bad winter weather grounded the aircraft."),
    ("How do I reverse a list in Python?", "What is the way to turn a Python list around?"),
    ("The central bank raised interest rates again.", "Borrowing money has become more expensive."),
    ("A cat sleeps on the warm windowsill.", "The kitten is napping by the window."),
    ("The recipe needs two eggs and a cup of flour.", "To bake this you take flour and a couple of eggs."),
    ("Our team won the final in extra time.", "We took the cup after playing longer than ninety minutes."),
)
"""Sentences that mean much the same; no two of different pairs do."""

_CHICAGO = (
    "Passengers who have to change in Chicago should ask at the desk, since the snow that fell last night has closed "
    "two of the four runways, and most of the connections of this morning leave at least an hour late."
)
_SERVER = (
    "A server that answers every request within ten milliseconds, but loses one in a thousand of them when it is "
    "started again, is of less use to most people than one that takes twice as long and never loses any."
)
GOLDEN = (
    "Hello",
    "Where is gate 12?",
    *(sentence for pair in PAIRS for sentence in pair),
    *(" ".join(pair) for pair in PAIRS),
    "Déjà vu: naïve façade, 東京 and a straße 🚀",
    _CHICAGO,
    _SERVER,
)
"""One word to forty; the golden set has longer ones too, one of which is cut."""


def train(console: Console, _plan: None = None) -> Trained:
    """MiniLM-L6 as it comes, after a look at whether its embeddings mean anything. Raises WeightsMissing.

    The texts that it has learned from do not come with it: its profile is of sentences of Python's documentation.
    """
    with console.status("Reading the weights of MiniLM"):
        network = minilm_files.load_network()
        embeddings = embed(network, [sentence for pair in PAIRS for sentence in pair])
    cosine = embeddings @ embeddings.T
    same = cosine[np.arange(0, len(cosine), 2), np.arange(1, len(cosine), 2)]
    other = cosine[~np.kron(np.eye(len(PAIRS), dtype=np.bool_), np.ones((2, 2), dtype=np.bool_))]
    console.print(_report(same, other))
    return text_model(
        network,
        outputs=[TensorType("embedding", "float32", (-1, EMBEDDING))],
        classes=None,
        golden=GOLDEN,
        data_digest=minilm_files.digest(),
        reference=Reference(tokens(topics_data.load(_REFERENCE_PER_AREA).training.sentences)),
        metrics={"same_meaning_cosine_min": float(same.min()), "other_meaning_cosine_max": float(other.max())},
        params={"weights": "all-MiniLM-L6-v2"},
    )


def text_model(
    network: nn.Module,
    *,
    outputs: Sequence[TensorType],
    classes: Sequence[str] | None,
    golden: Sequence[str],
    data_digest: str,
    reference: Reference,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
) -> Trained:
    """A version of a network on MiniLM's tokens: (input_ids, attention_mask), int64 [n, L], to `outputs`.

    `classes` names the values of the first output, None where it is no probability of classes.
    """
    schema = TextSchema(
        input=INPUT,
        max_tokens=MAX_TOKENS,
        buckets=BUCKETS,
        classes=None if classes is None else tuple(classes),
        outputs=tuple(TensorSpec(name=one.name, datatype="FP32", shape=one.shape[1:]) for one in outputs),
    )
    example = tokens(golden[:2])
    return Trained(
        network=network,
        example=example,
        inputs=[array_type(*each, free=(0, 1)) for each in zip(("input_ids", "attention_mask"), example, strict=True)],
        outputs=outputs,
        schema=schema.to_json(),
        golden=[_golden_input(golden)],
        data_digest=data_digest,
        reference=reference,
        files={"tokenizer.json": minilm_files.tokenizer_json()},
        metrics=metrics,
        params=params,
    )


def tokens(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, int64 [n, L], padded to the longest of the texts."""
    tokenizer = minilm_files.tokenizer()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    return (
        np.array([one.ids for one in encoded], dtype=np.int64),
        np.array([one.attention_mask for one in encoded], dtype=np.int64),
    )


@torch.inference_mode()
def embed(network: nn.Module, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """The network's output for every text, [n, …]."""
    ids, mask = tokens(texts)
    order = mask.sum(axis=1).argsort(kind="stable")  # texts of like length together: padding is work too
    parts = []
    for rows in np.array_split(order, -(-len(order) // _CHUNK)):
        longest = mask[rows].sum(axis=1).max()
        parts.append(network(torch.from_numpy(ids[rows, :longest]), torch.from_numpy(mask[rows, :longest])).numpy())
    embedded: npt.NDArray[np.float32] = np.concatenate(parts)[order.argsort()]
    return embedded


def _golden_input(texts: Sequence[str]) -> dict[str, Any]:
    """The texts, and some of them in one: a third of a page, most of one, and more than fits."""
    words = " ".join(texts).split()
    data = [*texts, *(" ".join(words[:count]) for count in (60, 150)), " ".join(words * 3)]
    return {"name": INPUT, "datatype": "BYTES", "shape": [len(data)], "data": data}


def _report(same: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> Table:
    table = Table(title="Cosine similarity of embeddings")
    for name in ("sentences", "pairs", "lowest", "mean", "highest"):
        table.add_column(name, justify="left" if name == "sentences" else "right")
    for name, values, pairs in (("of the same meaning", same, len(same)), ("of others", other, len(other) // 2)):
        figures = (f"{value:.3f}" for value in (values.min(), values.mean(), values.max()))
        table.add_row(name, str(pairs), *figures)
    return table
