"""Buffered reading: handlers get what TorchServe's own reader would have given them, over a real socket."""

import logging
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.protocol import otf_message_handler as stock
from ts.service import Service

from handlers import worker_io
from handlers.worker_io import BUFFER_BYTES

Header = tuple[str, str]
Parameter = tuple[str, str, bytes]
Frame = tuple[str, list[Header], list[Parameter]]
Handed = list[tuple[str, dict[str, Any], dict[str, bytes]]]
"""For each request its id, headers and data."""

FRAMES: st.SearchStrategy[list[Frame]] = st.lists(
    st.tuples(
        st.text(max_size=40),
        st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), max_size=4),
        st.lists(
            st.tuples(st.text(max_size=8), st.text(max_size=20), st.binary(max_size=400)),
            max_size=3,
            unique_by=lambda parameter: parameter[0],
        ),
    ),
    max_size=4,
)


def written(frames: list[Frame]) -> bytes:
    """One batch as TorchServe's frontend writes it."""

    def block(data: bytes) -> bytes:
        return struct.pack("!i", len(data)) + data

    end = struct.pack("!i", -1)
    found = b"I"
    for request_id, headers, parameters in frames:
        found += block(request_id.encode())
        found += b"".join(block(name.encode()) + block(value.encode()) for name, value in headers) + end
        found += b"".join(block(n.encode()) + block(c.encode()) + block(v) for n, c, v in parameters) + end
    return found + end


@contextmanager
def sent(*messages: bytes) -> Iterator[socket.socket]:
    """A connection at whose other end `messages` are written, in pieces, before it is closed."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with closing(theirs):
            for message in messages:
                for at in range(0, len(message), 70_000):
                    theirs.sendall(message[at : at + 70_000])

    sending = threading.Thread(target=send)
    sending.start()
    with ours:
        yield ours
    sending.join()


@contextmanager
def installed() -> Iterator[Callable[[Any], tuple[bytes, Any]]]:
    """This process as a worker in which the reader is installed; gives what now stands for `retrieve_msg`."""
    worker: Any = sys.modules["__main__"]
    level = logging.getLogger().level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "retrieve_msg", stock.retrieve_msg, raising=False)
        patch.setattr(Service, "retrieve_data_for_inference", Service.__dict__["retrieve_data_for_inference"])
        assert worker_io.install()
        yield worker.retrieve_msg
        # A worker's is closed when its process ends.
        if (file := worker.retrieve_msg.__self__._file) is not None:
            file.close()
    logging.getLogger().setLevel(level)


def handed_over(retrieve: Callable[[Any], tuple[bytes, Any]], connection: socket.socket) -> Handed:
    """One batch, as `Service.predict` makes it of a message."""
    command, message = retrieve(connection)
    assert command == b"I"
    processors, data, ids = Service.retrieve_data_for_inference(message)
    assert list(ids) == list(range(len(processors)))
    return [(ids[index], processor.get_request_properties(), data[index]) for index, processor in enumerate(processors)]


@given(st.lists(FRAMES, min_size=1, max_size=3))
def test_handlers_get_what_the_stock_worker_gives_them(batches: list[list[Frame]]) -> None:
    messages = [written(frames) for frames in batches]
    with pytest.MonkeyPatch.context() as patch, sent(*messages) as connection:
        patch.setenv("TS_DECODE_INPUT_REQUEST", "false")  # as the node configures TorchServe
        expected = [handed_over(stock.retrieve_msg, connection) for _ in messages]
    with sent(*messages) as connection, installed() as retrieve:
        assert [handed_over(retrieve, connection) for _ in messages] == expected


def test_body_larger_than_the_buffer_is_whole() -> None:
    body = bytes(range(256)) * (3 * BUFFER_BYTES // 256)
    frame: Frame = ("id", [("name", "value")], [("body", "application/octet-stream", body)])
    with sent(written([frame, frame])) as connection, installed() as retrieve:
        requests = handed_over(retrieve, connection)
    assert [(request_id, data["body"] == body) for request_id, _, data in requests] == [("id", True)] * 2


MESSAGE = written([("id", [("name", "value")], [("body", "x", b"data")])])


@pytest.mark.parametrize("length", range(len(MESSAGE)))
def test_worker_ends_when_torchserve_hangs_up(length: int) -> None:
    with sent(MESSAGE[:length]) as connection, installed() as retrieve:
        with pytest.raises(SystemExit) as ended:
            retrieve(connection)
        assert ended.value.code == 0


def test_unknown_command_is_an_error() -> None:
    with sent(b"L") as connection, installed() as retrieve:  # noqa: SIM117 - what is raised inside must be seen outside
        with pytest.raises(ValueError, match="unexpected command b'L'"):
            retrieve(connection)


def test_routine_lines_stay_out_of_the_log() -> None:
    with installed():
        assert logging.getLogger().level == logging.WARNING


@pytest.fixture
def _log_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.usefixtures("_log_level")
def test_worker_of_another_version_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker: Any = sys.modules["__main__"]
    monkeypatch.setattr(worker, "retrieve_msg", stock.retrieve_msg, raising=False)
    monkeypatch.setattr(worker_io, "SUPPORTED", "0.11.0")
    assert not worker_io.install()
    assert worker.retrieve_msg is stock.retrieve_msg
    assert "it fits TorchServe 0.11.0 exactly, this is 0.12.0" in caplog.text


@pytest.mark.usefixtures("_log_level")
def test_process_that_is_no_worker_is_left_alone() -> None:
    assert not worker_io.install()
