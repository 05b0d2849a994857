"""What each kind of model is compared with when it is explained, and how its attributions are put into words."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import orjson
from tokenizers import Encoding

from handlers.base import Array, BaseHandler, Item
from handlers.errors import ArchiveUnusable, listed
from handlers.generic import GenericHandler
from handlers.image import ImageHandler
from handlers.named import NamedOutputs
from handlers.sequence import SequenceHandler
from handlers.tabular import TabularHandler
from handlers.text import TOKENIZER, TextHandler
from monitoring.profile import OTHER, Feature, Profile


@dataclass(frozen=True, eq=False)
class Subject:
    """One row to explain."""

    inputs: list[Array]
    """The program's inputs, [1, ...] each."""
    baseline: list[Array]
    """Inputs of the same shapes that say nothing in particular."""
    words: Any
    """The baseline as the client is told of it."""
    described: Callable[[list[Array]], Any]
    """The attributions of the program's inputs as the client is told of them."""


class Kind(Protocol):
    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:
        """The rows of one request, whose checked inputs these are."""

    def classes(self, output: int) -> Sequence[str]:
        """The names of the values of the output at this position; none where they are no classes."""

    def of_itself(self, output: int) -> bool:
        """Whether the output is a direction, so that it is explained as a whole: by its product with itself."""


def kind_of(handler: BaseHandler) -> Kind:
    """Raises ArchiveUnusable for a handler whose inputs nobody here knows."""
    for known, kind in _KINDS:
        if isinstance(handler, known):
            return kind(handler)
    raise ArchiveUnusable(
        f"{type(handler).__name__} cannot be explained; allowed are tables, images, texts, sequences and tensors"
    )


class _Plain:
    """A kind whose outputs are numbers and nothing more."""

    def classes(self, output: int) -> Sequence[str]:  # noqa: ARG002 - the kind's interface
        return ()

    def of_itself(self, output: int) -> bool:  # noqa: ARG002
        return False


class _Named:
    """A kind with a schema of outputs, the first of which may be the probability of classes."""

    def __init__(self, handler: NamedOutputs) -> None:
        self._classes = handler.classes

    def classes(self, output: int) -> Sequence[str]:
        return self._classes if output == 0 else ()

    def of_itself(self, output: int) -> bool:  # noqa: ARG002
        return False


class Pictures(_Named):
    """An image is compared with a black one. Each pixel gets what its channels earn together."""

    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:  # noqa: ARG002
        (images,) = inputs
        for image in images[:, np.newaxis]:
            yield Subject([image], [np.zeros_like(image)], "a black image", _by_pixel)


def _by_pixel(attributions: list[Array]) -> Array:
    """[height, width]."""
    pixels: Array = attributions[0][0].sum(axis=0).astype(np.float32)
    return pixels


class Texts(_Named):
    """A text is compared with one of as many tokens that say nothing, between the same special ones."""

    def __init__(self, handler: TextHandler) -> None:
        super().__init__(handler)
        self._tokenizer = handler.tokenizer
        ids = {name: self._tokenizer.token_to_id(name) for name in _NEUTRAL_TOKENS}
        known = [(name, token) for name, token in ids.items() if token is not None]
        if not known:
            raise ArchiveUnusable(
                f"{TOKENIZER} has no token to compare with; it needs one of {listed(_NEUTRAL_TOKENS)}"
            )
        self._name, self._neutral = known[0]

    def of_itself(self, output: int) -> bool:
        """An embedding means something as a direction only, and none of its values does."""
        return output == 0 and not self._classes

    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:  # noqa: ARG002
        for text in item.data:
            encoding = self._tokenizer.encode(text)
            ids = np.array([encoding.ids])
            plain = np.where(encoding.special_tokens_mask, ids, self._neutral)
            mask = np.ones_like(ids)
            words = f"{self._name} in place of every token"
            yield Subject([ids, mask], [plain, mask], words, partial(_by_token, encoding))


_NEUTRAL_TOKENS = ("[PAD]", "<pad>", "[MASK]", "<mask>", "[UNK]", "<unk>")


def _by_token(encoding: Encoding, attributions: list[Array]) -> list[dict[str, Any]]:
    """Tokens in their order, with the characters of the text that they stand for."""
    return [
        {"token": token, "start": start, "end": end, "attribution": attribution}
        for token, (start, end), attribution in zip(
            encoding.tokens, encoding.offsets, attributions[0][0].astype(np.float32), strict=True
        )
    ]


class Sequences(_Named):
    """Every step is compared with the golden set's median of each feature. A missing value is missing there too."""

    def __init__(self, handler: SequenceHandler) -> None:
        super().__init__(handler)
        (golden,) = _golden_inputs(handler)
        self._features = handler.schema.features
        steps = np.array(golden["data"], dtype=np.float32).reshape(-1, len(self._features))
        self._medians = np.nan_to_num(np.nanmedian(steps, axis=0))

    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:  # noqa: ARG002
        words = dict(zip(self._features, self._medians, strict=True))
        for row, length in zip(*inputs, strict=True):
            values, lengths = row[np.newaxis, :length], np.array([length])
            plain = np.where(np.isnan(values), values, self._medians)
            yield Subject([values, lengths], [plain, lengths], words, self._described)

    def _described(self, attributions: list[Array]) -> dict[str, Array]:
        """Of each feature, what its steps earn."""
        return dict(zip(self._features, attributions[0][0].T.astype(np.float32, order="C"), strict=True))


class Tensors(_Named):
    """Numbers are compared with 0; whole numbers may mean anything, and stay as they are."""

    def __init__(self, handler: GenericHandler) -> None:
        super().__init__(handler)
        self._names = [spec.name for spec in handler.schema.inputs]

    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:  # noqa: ARG002
        for row in range(len(inputs[0])):
            values = [np.asarray(array[row])[np.newaxis] for array in inputs]
            yield Subject(values, [_zeros(array) for array in values], "0 in place of every number", self._described)

    def _described(self, attributions: list[Array]) -> dict[str, Array]:
        return {name: each[0].astype(np.float32) for name, each in zip(self._names, attributions, strict=True)}


def _zeros(array: Array) -> Array:
    """Missing numbers stay missing."""
    if array.dtype == np.uint8:
        return np.zeros_like(array)
    return np.where(np.isnan(array), array, 0).astype(array.dtype) if array.dtype.kind == "f" else array


class Table(_Plain):
    """Numbers are compared with their median in training, categories with `other`, or else the most frequent one.

    A missing number is missing in the baseline too, and gets 0.
    """

    def __init__(self, handler: TabularHandler) -> None:
        self._schema = schema = handler.schema
        profile = Profile.from_json((handler.directory / "profile.json").read_bytes())
        features = {(feature.kind, feature.name): feature for feature in profile.features}
        golden = _golden_inputs(handler)
        seen = {tensor["name"]: [value for value in tensor["data"] if value is not None] for tensor in golden}
        # A column that nothing is known of stays as it is in each row.
        self._medians = np.array(
            [_median(features.get(("number", c.name)), seen.get(c.name, [])) for c in schema.numbers], dtype=np.float32
        )
        self._codes = np.array(
            [
                len(c.vocabulary) if c.other else _most_frequent(features.get(("category", c.name)))
                for c in schema.categories
            ],
            dtype=np.int64,
        )

    def subjects(self, item: Item, inputs: list[Array]) -> Iterator[Subject]:  # noqa: ARG002
        for row in range(len(inputs[0])):
            numbers, codes = (array[row : row + 1] for array in inputs)
            plain = np.where(np.isnan(numbers) | np.isnan(self._medians), numbers, self._medians)
            yield Subject([numbers, codes], [plain, self._codes[None]], self._words(plain[0]), self._described)

    def _words(self, numbers: Array) -> dict[str, Any]:
        categories = {
            column.name: (*column.vocabulary, OTHER)[code]
            for column, code in zip(self._schema.categories, self._codes, strict=True)
        }
        return {
            **{column.name: value for column, value in zip(self._schema.numbers, numbers, strict=True)},
            **categories,
        }

    def _described(self, attributions: list[Array]) -> dict[str, Any]:
        values = np.concatenate([each[0] for each in attributions]).astype(np.float32)
        return dict(zip(self._schema.names, values, strict=True))


def _golden_inputs(handler: BaseHandler) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = orjson.loads((handler.directory / "golden.json").read_bytes())["request"]["inputs"]
    return inputs


def _median(feature: Feature | None, seen: Sequence[float]) -> float:
    """The lower edge of the bin that holds the middle of the rows with a value, which is the median itself.

    The lowest bin has none; it is as good as one value (no rain, say), which is the least of those seen. NaN for a
    column of one value, of which the profile says nothing.
    """
    if feature is None or not feature.edges:
        return np.nan
    cumulated = np.cumsum(feature.counts)
    middle = int(np.searchsorted(cumulated, cumulated[-1] / 2, side="right"))
    return feature.edges[middle - 1] if middle else min(seen, default=feature.edges[0])


def _most_frequent(feature: Feature | None) -> int:
    return int(np.argmax(feature.counts)) if feature is not None else 0


_KINDS: tuple[tuple[type[BaseHandler], Callable[[Any], Kind]], ...] = (
    (TabularHandler, Table),
    (ImageHandler, Pictures),
    (TextHandler, Texts),
    (SequenceHandler, Sequences),
    (GenericHandler, Tensors),
)
