"""What a worker predicted, told to the launcher, which keeps it for the labels that may come.

A worker connects once, says who predicts, and then sends one message a batch over a socket that keeps messages apart.
For copies of requests, whose answers nobody sees, it connects once more.
It never waits and never raises: what the launcher does not take now is lost, and the next message says how much.
"""

import errno
import json
import logging
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from handlers.answer import ID_CHARACTERS

logger = logging.getLogger(__name__)

PREDICTIONS = "SHIPWAY_PREDICTIONS"
"""Where the launcher listens; the node sets it in TorchServe's environment."""

MAX_MESSAGE_BYTES = 1 << 20
"""Asked for as the socket's buffer. The system may give less, and takes no longer message than it gives."""
MAX_CLASSES = 1 << 16
"""As a class is told in two bytes."""
SURE_UNIT = 255
OF_COPIES = b"of copies "
"""What a worker says first where it then tells predictions for copies of requests."""
_HEAD = struct.Struct("<IQ")
"""Predictions in the message, and rows that were lost since the last one that was taken."""


@dataclass(frozen=True)
class Version:
    """Who predicts, and what it decides between."""

    model: str
    version: str
    classes: tuple[str, ...]

    def to_json(self) -> bytes:
        return json.dumps([self.model, self.version, self.classes]).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Version":
        model, version, classes = json.loads(text)
        return cls(model, version, tuple(classes))


@dataclass(frozen=True)
class Predictions:
    """One message: n predictions, each of one row or more. Left as it came, until many are packed together."""

    ids: bytes
    """ID_CHARACTERS each, one after the other."""
    rows: bytes
    """Of each prediction, uint32."""
    classes: bytes
    """Of all rows in order the index into the version's classes, uint16."""
    lost: int = 0
    sure: bytes = b""
    """Of all rows of copies how likely the class is, uint8 in SURE_UNIT; nothing for requests of users."""

    @property
    def size(self) -> int:
        """Rows of all predictions."""
        return len(self.classes) // 2

    @classmethod
    def from_bytes(cls, message: bytes, *, of_copies: bool = False) -> "Predictions":
        """Raises ValueError for what no worker sends."""
        if len(message) < _HEAD.size:
            raise ValueError(f"a message of {len(message)} bytes")
        count, lost = _HEAD.unpack_from(message)
        rows_at = _HEAD.size + count * ID_CHARACTERS
        classes_at = rows_at + count * 4
        if len(message) < classes_at + 2 * count:
            raise ValueError(f"a message of {len(message)} bytes for {count} predictions")
        told = len(message) - classes_at
        sure_at = classes_at + (told // 3 * 2 if of_copies else told)
        ids, rows, classes = message[_HEAD.size : rows_at], message[rows_at:classes_at], message[classes_at:sure_at]
        return cls(ids, rows, classes, lost, message[sure_at:])


class Teller:
    """The worker's end."""

    def __init__(self, launcher: str, version: Version, *, of_copies: bool = False) -> None:
        """Raises OSError if nobody listens at the path `launcher`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
        try:
            self._socket.connect(launcher)
            self._socket.send((OF_COPIES if of_copies else b"") + version.to_json())
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's own parameter
        self._lost = 0

    def tell(
        self,
        ids: Sequence[str],
        rows: Sequence[int],
        classes: npt.NDArray[Any],
        sure: bytes = b"",
    ) -> None:
        """Of each prediction its id and its rows; of all rows in order the class, as an index.

        For copies also how likely that class is, a byte in SURE_UNIT.
        """
        counts, indexes = array("I", rows).tobytes(), classes.astype("<u2").tobytes()
        head = _HEAD.pack(len(ids), self._lost)
        message = b"".join((head, "".join(ids).encode(), counts, indexes, sure))
        try:
            self._socket.send(message)
            self._lost = 0
        except OSError as error:
            if error.errno == errno.EMSGSIZE and len(ids) > 1:
                half = len(ids) // 2
                middle = sum(rows[:half])
                self.tell(ids[:half], rows[:half], classes[:middle], sure[:middle])
                self.tell(ids[half:], rows[half:], classes[middle:], sure[middle:])
            else:
                self._lost += sum(rows)

    def close(self) -> None:
        self._socket.close()


def teller(version: Version, *, of_copies: bool = False) -> Teller | None:
    """The way to the launcher; None outside a node, and for a model that decides between no classes, or too many."""
    launcher = os.environ.get(PREDICTIONS)
    if launcher is None or not 0 < len(version.classes) <= MAX_CLASSES:
        return None
    try:
        return Teller(launcher, version, of_copies=of_copies)
    except OSError:
        logger.exception("predictions of this worker are not kept for labels")
        return None
