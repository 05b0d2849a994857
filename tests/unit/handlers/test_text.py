"""Texts: cut, grouped by length and given back in their order; what is no text is refused in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from handlers.base import BaseHandler
from handlers.errors import ArchiveUnusable
from handlers.kinds import TensorSpec, TextSchema
from handlers.text import MAX_CHARACTERS_PER_TOKEN, TOKENIZER, TextHandler
from tests.unit.handlers import archives
from tests.unit.handlers.archives import (
    Array,
    AskedAgain,
    Start,
    counted,
    oip_binary,
    oip_grpc,
    oip_json,
    outputs,
    plain,
    tensor,
)
from tests.unit.handlers.tiny import Answer, Request, ask

WORDS = ("[UNK]", "one", "two", "three", "four", "five", "wörter", "7", "8", "boom")
MAX_TOKENS = 12
MEAN = TensorSpec(name="mean", datatype="FP32", shape=(1,))
SCHEMA = TextSchema(max_tokens=MAX_TOKENS, buckets=(2, 4, 8, MAX_TOKENS), outputs=(MEAN,))
CLASSES = SCHEMA.model_copy(
    update={"classes": ("low", "high"), "outputs": (TensorSpec(name="probabilities", datatype="FP32", shape=(2,)),)}
)


class Averaging(nn.Module):
    """The mean of the tokens' ids, over 10. It raises on the last word of the vocabulary."""

    def __init__(self, *, classes: bool = False) -> None:
        super().__init__()
        self.values = nn.Embedding(len(WORDS) - 1, 1)
        self.values.weight.data = torch.arange(len(WORDS) - 1, dtype=torch.float32)[:, None] / 10
        self.classes = classes

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        values = self.values(input_ids).squeeze(2) * attention_mask
        mean = (values.sum(dim=1) / attention_mask.sum(dim=1))[:, None]
        return torch.cat([1 - mean, mean], dim=1) if self.classes else mean


def write(directory: Path, schema: TextSchema) -> Path:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    # As such files often come: padding and a limit of their own, which the schema's replaces.
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(3)
    example = torch.ones(2, 3, dtype=torch.int64)
    network = Averaging(classes=schema.classes is not None)
    files = {TOKENIZER: tokenizer.to_str().encode()}
    # The same tensor twice would be exported as one input.
    return archives.write(directory, network, (example, example.clone()), schema.to_json(), free=(0, 1), files=files)


@pytest.fixture(scope="session")
def averaging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("averaging"), SCHEMA)


@pytest.fixture
def handler(averaging: Path, start: Start) -> BaseHandler:
    return start(TextHandler, averaging)


def expected(text: str) -> float:
    known = [WORDS.index(word) if word in WORDS else 0 for word in text.split()[:MAX_TOKENS]]
    return sum(known) / len(known) / 10


def texts(rows: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS[1:-1], random.integers(1, 16))) for _ in range(rows)]


def as_tensor(*some: str) -> Any:
    return tensor("text", [text.encode() for text in some])


def means(answer: Answer) -> list[float]:
    if answer.request.protocol == "predictions":
        document = json.loads(answer.body)
        rows = document if isinstance(document, list) else [document]
        return [row["mean"][0] for row in rows]
    return [float(value) for value in outputs(answer)["mean"][:, 0]]


GOOD: list[Any] = [
    lambda some: oip_json(as_tensor(*some)),
    lambda some: oip_binary(as_tensor(*some)),
    lambda some: oip_grpc(as_tensor(*some)),
    lambda some: plain([{"text": text} for text in some]),
]


def test_every_protocol_gives_the_same_in_the_order_of_the_rows(handler: BaseHandler) -> None:
    some = texts(40)
    answers = ask(handler, *(good(some) for good in GOOD))
    for answer in answers:
        assert means(answer) == pytest.approx([expected(text) for text in some], abs=1e-6)


def test_one_object_is_answered_with_one(handler: BaseHandler) -> None:
    (answer,) = ask(handler, plain({"text": "two wörter"}))
    assert json.loads(answer.body) == {"mean": [pytest.approx(0.4)]}


def test_classes_are_answered_by_name(tmp_path: Path, start: Start) -> None:
    handler = start(TextHandler, write(tmp_path, CLASSES))
    plain_answer, oip = ask(handler, plain({"text": "8"}), oip_json(as_tensor("8")))
    probabilities = {"low": pytest.approx(0.2), "high": pytest.approx(0.8)}
    assert json.loads(plain_answer.body) == {"class": "high", "probabilities": probabilities}
    np.testing.assert_allclose(outputs(oip)["probabilities"], [[0.2, 0.8]], rtol=1e-6)


def shapes(handler: BaseHandler, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Fills up with the shapes that the program is called with."""
    seen: list[tuple[int, ...]] = []
    program = handler.program

    def watched(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(tuple(ids.shape))
        return program(ids, mask)

    monkeypatch.setattr(handler, "program", watched)
    return seen


def test_texts_of_a_bucket_share_a_call_and_are_padded_to_the_longest_of_it(
    handler: BaseHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.bucketing.CALL_LENGTHS", 0)  # as for texts of real length
    seen = shapes(handler, monkeypatch)
    some = ["one " * words for words in (7, 1, 3, 100, 2, 6, 1)]
    ask(handler, *(GOOD[at % 4]([text]) for at, text in enumerate(some)))
    assert seen == [(3, 2), (1, 3), (2, 7), (1, MAX_TOKENS)]


def test_many_texts_go_through_the_program_in_bounded_calls(
    handler: BaseHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = shapes(handler, monkeypatch)
    some = ["one " * (1 + at % 2) for at in range(130)]
    (answer,) = ask(handler, oip_grpc(as_tensor(*some)))
    assert [rows for rows, _ in seen] == [64, 64, 2]
    assert means(answer) == pytest.approx([0.1] * 130)


def test_long_text_is_cut_before_it_is_tokenized(handler: BaseHandler) -> None:
    within = "one " + " " * MAX_CHARACTERS_PER_TOKEN * MAX_TOKENS + "two"
    (answer,) = ask(handler, plain({"text": within}))
    assert means(answer) == pytest.approx([0.1])


BAD: list[tuple[Request, int, str]] = [
    (plain(b"{"), 400, "body: not JSON"),
    (plain(b'{"text": "\xff"}'), 400, "body: not JSON"),
    (plain([]), 400, "body: empty batch"),
    (plain({"text": "one", "more": 1}), 400, "row 0: unknown 'more'; allowed: text"),
    (plain({"text": None}), 400, "row 0, input 'text': wrong type; found null; allowed: a string"),
    (
        plain([{"text": "one"}, {"text": ["one"]}]),
        400,
        "row 1, input 'text': wrong type; found ['one']; allowed: a str",
    ),
    (plain({"text": ""}), 400, "row 0, input 'text': empty text; found ''; allowed: at least one word"),
    (plain(b"one", "text/plain"), 415, "content-type: 'text/plain' is not read here; allowed: application/json"),
    (oip_json(as_tensor(" \n\t")), 400, r"row 0, input 'text': empty text; found ' \n\t'; allowed: at least one word"),
    (oip_grpc(as_tensor("one", "")), 400, "row 1, input 'text': empty text; found ''"),
    (
        oip_binary(tensor("text", [b"a\xffb"])),
        400,
        "row 0, input 'text': not UTF-8; found byte 0xff at 1; allowed: UTF",
    ),
    (oip_grpc(tensor("text", [b"\xc3"])), 400, "row 0, input 'text': not UTF-8; found byte 0xc3 at 0; allowed: UTF-8"),
    (
        oip_grpc(tensor("text", np.ones(1, np.float32))),
        400,
        "input 'text': wrong datatype; found 'FP32'; allowed: BYTES",
    ),
    (
        oip_grpc(tensor("text", [b"one", b"two"], (1, 2))),
        400,
        "input 'text': wrong shape; found [1, 2]; allowed: [rows]",
    ),
    (oip_json(tensor("texts", [b"one"])), 400, "inputs: missing text; allowed: text"),
    (oip_grpc(tensor("text", [])), 400, "inputs: empty batch"),
    (oip_grpc(as_tensor("one", "boom")), 500, "the model failed on this input: IndexError"),
    (plain({"text": "boom"}), 500, "the model failed on this input: IndexError"),
]


def test_every_refusal_is_the_one_that_is_meant(handler: BaseHandler) -> None:
    for request, status, words in BAD:
        (answer,) = ask(handler, request)
        assert (answer.status, answer.error[: len(words)]) == (status, words)


BATCH = 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(chosen=st.dictionaries(st.integers(0, BATCH - 1), st.sampled_from(BAD), max_size=BATCH))
def test_each_item_gets_its_own_answer_whatever_its_neighbours_are(
    handler: BaseHandler, metrics_directory: Path, chosen: dict[int, tuple[Request, int, str]]
) -> None:
    before = counted(metrics_directory)
    good = [texts(1 + at % 2, seed=at) for at in range(BATCH)]
    answers = ask(handler, *(chosen[at][0] if at in chosen else GOOD[at % 4](good[at]) for at in range(BATCH)))
    for at, answer in enumerate(answers):
        if at in chosen:
            assert answer.status == chosen[at][1]
            assert answer.error.startswith(chosen[at][2])
        else:
            assert means(answer) == pytest.approx([expected(text) for text in good[at]], abs=1e-6)
    assert counted(metrics_directory) - before == sum(1 + at % 2 for at in range(BATCH) if at not in chosen)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(some=st.lists(st.text(), min_size=1, max_size=8))
def test_any_text_is_answered_or_refused(handler: BaseHandler, some: list[str]) -> None:
    body = [{"text": text} for text in some]
    try:
        request = plain(body)
    except TypeError:  # JSON has no lone surrogates
        return
    (answer,) = ask(handler, request)
    blank = any(not text.strip() for text in some)
    assert answer.status in ((400,) if blank else (200, 400, 500))
    assert answer.status != 500 or any("boom" in text for text in some)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": 3}'])
def test_damaged_tokenizer_is_refused(averaging: Path, tmp_path: Path, start: Start, content: bytes) -> None:
    for file in averaging.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / TOKENIZER).write_bytes(content)
    with pytest.raises(ArchiveUnusable, match=r"tokenizer\.json cannot be read: "):
        start(TextHandler, tmp_path)


def test_array_of_inputs_is_what_the_program_takes(handler: BaseHandler) -> None:
    """The explainer asks `check` for the program's own inputs."""
    assert isinstance(handler, TextHandler)
    (answer,) = ask(handler, oip_json(as_tensor("one two", "three")))
    request = means(answer)
    ids: Array = np.array([[1, 2], [3, 0]])
    (direct,) = handler.execute([ids, np.array([[1, 1], [1, 0]])])
    assert direct[:, 0].tolist() == pytest.approx(request)


def test_plain_request_is_captured_as_text(asked_again: AskedAgain, averaging: Path) -> None:
    some = texts(3)
    found = asked_again(TextHandler, averaging, plain([{"text": text} for text in some]))
    np.testing.assert_allclose(found["mean"].ravel(), [expected(text) for text in some], rtol=1e-6)
