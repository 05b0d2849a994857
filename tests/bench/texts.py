"""Sentences of a given length, the same everywhere: words of Python's own documentation, as it comes with Python."""

import random
import re
from collections.abc import Iterator
from pydoc_data.topics import topics


def sentences(count: int, *, shortest: int, longest: int) -> list[str]:
    """`count` runs of consecutive words, every length from `shortest` to `longest` words as likely as any other."""
    return list(_sentences(count, shortest, longest))


def _sentences(count: int, shortest: int, longest: int) -> Iterator[str]:
    words = re.findall(r"[A-Za-z]+[.,;]?", " ".join(topics[name] for name in sorted(topics)))
    chance = random.Random(0)
    for _ in range(count):
        length = chance.randint(shortest, longest)
        start = chance.randrange(len(words) - length)
        yield " ".join(words[start : start + length]).capitalize()
