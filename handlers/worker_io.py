"""Buffered reading for TorchServe 0.12.0's worker.

The stock worker asks the kernel for every length and every field by itself: about eighty system calls for one small
request. One buffered reader in front of the same parsing multiplies throughput on small inputs. Nothing else of
TorchServe is changed, and nothing at all for another version than the one this was written against.
"""

import logging
import struct
import sys
from collections.abc import Callable
from importlib.metadata import version
from io import BufferedReader
from typing import Any

logger = logging.getLogger(__name__)

SUPPORTED = "0.12.0"
BUFFER_BYTES = 1 << 18

_INT = struct.Struct("!i")
_INFERENCE, _END = b"I", -1


def install() -> bool:
    """Make this worker read buffered, and keep its routine lines out of the log. False where it stays as it was.

    A worker that is not TorchServe's script (a test that calls a handler) is left alone in silence.
    """
    # The worker's routine lines (one a batch, and one a metric) are parsed by the JVM at a cost per request.
    logging.getLogger().setLevel(logging.WARNING)
    worker: Any = sys.modules["__main__"]
    stock: Callable[[Any], Any] | None = getattr(worker, "retrieve_msg", None)
    if stock is None:
        return False
    found = version("torchserve")
    if found != SUPPORTED:
        logger.warning("buffered reading is off: it fits TorchServe %s exactly, this is %s", SUPPORTED, found)
        return False
    worker.retrieve_msg = _Reader().retrieve
    return True


class _Reader:
    """Reads TorchServe's messages from one connection: the only one that a worker has."""

    def __init__(self) -> None:
        self._file: BufferedReader | None = None

    def retrieve(self, connection: Any) -> tuple[bytes, list[dict[str, Any]]]:
        """The next command and its requests, as `ts.protocol.otf_message_handler.retrieve_msg` gives them."""
        if self._file is None:
            self._file = connection.makefile("rb", BUFFER_BYTES)
            self._read = self._file.read
        try:
            return self._message()
        except struct.error:
            sys.exit(0)  # TorchServe has closed the connection: the worker's work is done, as in the stock reader

    def _message(self) -> tuple[bytes, list[dict[str, Any]]]:
        """Once the connection is closed nothing more is read, too little for the next length: struct.error."""
        command = self._read(1)
        if command not in (_INFERENCE, b""):
            raise ValueError(f"unexpected command {command!r}: a loaded worker is only asked for predictions")
        requests = []
        while (length := _INT.unpack(self._read(4))[0]) != _END:
            requests.append(self._request(length))
        return command, requests

    def _request(self, id_length: int) -> dict[str, Any]:
        read, integer = self._read, _INT.unpack  # no calls of our own: this runs for every field of every request
        request_id = read(id_length)
        headers = []
        while (length := integer(read(4))[0]) != _END:
            headers.append({"name": read(length), "value": read(integer(read(4))[0])})
        parameters = []
        while (length := integer(read(4))[0]) != _END:
            name = read(length).decode()
            content_type = read(integer(read(4))[0]).decode()
            parameters.append({"name": name, "contentType": content_type, "value": read(integer(read(4))[0])})
        return {"requestId": request_id, "headers": headers, "parameters": parameters}
