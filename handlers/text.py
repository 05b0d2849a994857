"""Texts: tokenized all at once, and computed with texts of like length, so that little of the work is padding."""

import os
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from handlers.answer import Call
from handlers.base import Array, Item
from handlers.bucketing import by_length, in_groups
from handlers.errors import ArchiveUnusable, InvalidRequest, Words, shown
from handlers.inputs import by_name
from handlers.kinds import TextSchema
from handlers.measured import few
from handlers.named import NamedOutputs
from handlers.protocol import rows
from handlers.protocol.oip_json import parse
from handlers.tensors import InferRequest, Tensor

TOKENIZER = "tokenizer.json"
MAX_CHARACTERS_PER_TOKEN = 32
"""Of a text that is cut: a tokenizer reads all of it, a megabyte in a second, before it cuts. Words are shorter."""


class TextHandler(NamedOutputs):
    """Serves a program of token ids by its `schema.json` and `tokenizer.json`."""

    schema: TextSchema
    max_rows = 64
    numbers = ("tokens",)

    def load(self) -> None:
        self.schema = TextSchema.from_json((self.directory / "schema.json").read_bytes())
        self.output_names = self.schema.output_names
        self.classes = self.schema.classes or ()
        self.embeds = not self.classes and not few(self.schema.outputs[0])
        self._pick = rows.picker((self.schema.input,))
        self._field = f"input {shown(self.schema.input)}"
        self._max_characters = MAX_CHARACTERS_PER_TOKEN * self.schema.max_tokens
        self.tokenizer = read_tokenizer((self.directory / TOKENIZER).read_bytes(), self.schema.max_tokens)
        # It would take a thread for every core of the host, whatever this worker may use.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def read(self, request: InferRequest) -> tuple[list[str], int]:
        (tensor,), count = by_name(request, (self.schema.input,))
        if tensor.datatype != "BYTES":
            raise InvalidRequest(self._field, "wrong datatype", found=tensor.datatype, allowed="BYTES of UTF-8 text")
        if tensor.shape[1:] not in ((), (1,)):
            raise InvalidRequest(self._field, "wrong shape", found=list(tensor.shape), allowed="[rows]")
        return rows.each([(value,) for value in tensor.values], self._text), count

    def read_plain(self, call: Call) -> tuple[list[str], int, bool]:
        call.check_content_type(rows.CONTENT_TYPES)
        found, single = self._pick(parse(call.body))
        return rows.each(found, self._text), len(found), single

    def plain_tensors(self, data: list[str]) -> list[Tensor]:
        return [Tensor(self.schema.input, "BYTES", (len(data),), data)]

    def _text(self, row: tuple[object]) -> str:
        (text,) = row
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                found = Words(f"byte {text[error.start]:#04x} at {error.start}")
                raise InvalidRequest(self._field, "not UTF-8", found=found, allowed="UTF-8 text") from None
        if not isinstance(text, str):
            raise InvalidRequest(self._field, "wrong type", found=text, allowed="a string")
        if not text or text.isspace():
            raise InvalidRequest(self._field, "empty text", found=text, allowed="at least one word")
        return text[: self._max_characters]

    def check(self, items: list[Item]) -> list[Array]:
        """`input_ids` and `attention_mask`, int64 [n, L], padded to the longest text of the batch."""
        encoded = self.tokenizer.encode_batch_fast(list(chain.from_iterable(item.data for item in items)))
        tokens = [one.ids for one in encoded]
        lengths = np.array([len(ids) for ids in tokens])
        if not lengths.all():
            raise InvalidRequest(self._field, "empty text", found=Words("no token"), allowed="at least one word")
        mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = list(chain.from_iterable(tokens))
        return [ids, mask.astype(np.int64)]

    def run(self, inputs: list[Array]) -> list[Array]:
        ids, mask = inputs
        lengths = mask.sum(axis=1)

        def outputs_of(group: Array) -> list[Array]:
            longest = lengths[group].max()
            return self.execute([ids[group, :longest], mask[group, :longest]])

        return in_groups(by_length(lengths, self.schema.buckets, self.max_rows), outputs_of)

    def described(self, inputs: list[Array]) -> tuple[Array, None]:
        """The number of tokens."""
        return inputs[1].sum(axis=1, keepdims=True).astype(np.float32), None


def read_tokenizer(content: bytes, max_tokens: int) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, cutting at `max_tokens` and not padding. Raises ArchiveUnusable."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower one
        raise ArchiveUnusable(f"{TOKENIZER} cannot be read: {error}") from error
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer
