"""Kept predictions, packed: those of one version that reached the edge within one tenth of a second.

A prediction's id begins with the time of its arrival, so a label's id says which blocks may hold its prediction. That
needs no index of ids, which would cost a hundred times as much to write (tests/bench/NOTES.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from handlers.answer import ID_CHARACTERS
from handlers.predictions import Predictions, Version

ID_BYTES = 16
_PUNCTUATION = b".-"
_TENTH_DIGITS = (*range(10), 11)
"""Of an id: the seconds, and the first digit behind the point."""
_POWERS = 10 ** np.arange(len(_TENTH_DIGITS) - 1, -1, -1)


@dataclass(frozen=True)
class Block:
    """n predictions."""

    tenth: int
    """When they reached the edge, in tenths of a second since 1970."""
    version: bytes
    """The key of who predicted."""
    ids: bytes
    """ID_BYTES each."""
    ends: bytes
    """Of each prediction where its rows end among all, uint32; empty where each has one row."""
    classes: bytes
    """Of all rows in order the index into the version's classes, uint16."""

    @property
    def rows(self) -> int:
        return len(self.classes) // 2

    def find(self, packed_id: bytes) -> npt.NDArray[np.uint16] | None:
        """The classes of the rows of one prediction, if it is here."""
        at = self.ids.find(packed_id)
        while at > 0 and at % ID_BYTES:  # across two ids
            at = self.ids.find(packed_id, at + 1)
        if at < 0:
            return None
        classes, number = np.frombuffer(self.classes, "<u2"), at // ID_BYTES
        if not self.ends:
            return classes[number : number + 1]
        ends = np.frombuffer(self.ends, "<u4")
        return classes[ends[number - 1] if number else 0 : ends[number]]


def key(version: Version) -> bytes:
    """Short, and the same on every node."""
    return sha256(version.to_json()).digest()[:8]


def pack_id(text: str) -> tuple[int, bytes]:
    """The tenth of a second of an id, and its bytes."""
    return int(text[:10] + text[11]), _packed(text.encode())


def _packed(ids: bytes) -> bytes:
    # Decimal digits, those of the time, are hexadecimal ones too; and so packed ids are sorted by time.
    return bytes.fromhex(ids.translate(None, _PUNCTUATION).decode())


def first_id(tenth: int) -> bytes:
    """Not later than any packed id of that tenth of a second."""
    return bytes.fromhex(str(tenth).ljust(2 * ID_BYTES, "0"))


def pack(version: bytes, messages: Sequence[Predictions]) -> Iterable[Block]:
    """The blocks of one version's messages."""
    text = b"".join(message.ids for message in messages)
    ids = np.frombuffer(_packed(text), np.uint8).reshape(-1, ID_BYTES)
    digits = np.frombuffer(text, np.uint8).reshape(-1, ID_CHARACTERS)[:, _TENTH_DIGITS]
    tenths = (digits.astype(np.int64) - ord("0")) @ _POWERS
    rows = np.frombuffer(b"".join(message.rows for message in messages), "<u4")
    classes = np.frombuffer(b"".join(message.classes for message in messages), "<u2")
    tenth_of_row = np.repeat(tenths, rows)
    for tenth in np.unique(tenths):
        here = tenths == tenth
        ends = b"" if (rows[here] == 1).all() else np.cumsum(rows[here]).astype("<u4").tobytes()
        yield Block(int(tenth), version, ids[here].tobytes(), ends, classes[tenth_of_row == tenth].tobytes())
