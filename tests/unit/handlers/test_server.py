"""A worker's own server: what the edge sends arrives whole, what waits is one batch, and nothing ends the worker."""

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from handlers.answer import CALL_HEADER, HTTP, Answer, Call
from handlers.server import MAX_HEAD_BYTES, Place, Server, take_place

BATCH = 4


class Answering:
    """Echoes; remembers its batches. `hold` keeps the first batch until it is set."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.accounted = 0
        self.entered = threading.Event()
        self.hold = threading.Event()
        self.hold.set()

    def answer(self, calls: Sequence[Call]) -> list[Answer]:
        self.batches.append(len(calls))
        self.entered.set()
        self.hold.wait(10)
        if any(bytes(call.body) == b"raise" for call in calls):
            raise RuntimeError("a fault of the handler's own")
        return [Answer(bytes(call.body), call.content_type, headers={"x-protocol": call.protocol}) for call in calls]

    def account(self) -> None:
        self.accounted += 1


@pytest.fixture
def answering() -> Answering:
    return Answering()


@contextlib.contextmanager
def serving(path: Path, answering: Answering, *, inherited: bool = False) -> Iterator[None]:
    """A server at `path`, in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(0)
    torchserve, worker = socket.socketpair()
    server = Server(Place(listener, listener, inherited=inherited), answering, BATCH, 60)
    thread = threading.Thread(target=server.serve_until_readable, args=(worker,))
    thread.start()
    yield
    torchserve.close()
    thread.join(10)
    assert not thread.is_alive()
    server.close()
    worker.close()


@pytest.fixture(autouse=True)
def no_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)  # signals are for the main thread alone


@pytest.fixture
def path(tmp_path: Path, answering: Answering) -> Iterator[Path]:
    """The socket of a server that serves until the test ends."""
    path = tmp_path / "worker.sock"
    with serving(path, answering):
        yield path


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[Connection]:
    connection = Connection(path)
    try:
        yield connection
    finally:
        connection.close()


def send(connection: Connection, body: bytes) -> None:
    headers = {"Content-Type": "text/plain", CALL_HEADER: f"- {HTTP}"}
    connection.request("POST", "/any", body, headers)


def read(connection: Connection) -> tuple[int, bytes]:
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("size", [0, 1, 65_000, 70_000, 3_000_000])
def test_request_of_any_size_comes_back_whole_on_one_connection(path: Path, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    with connected(path) as connection:
        for _ in range(3):
            send(connection, body[:size])
            response = connection.getresponse()
            assert (response.status, response.read() == body[:size]) == (200, True)
            assert response.getheader("x-protocol") == HTTP
            assert response.getheader("content-type") == "text/plain"


def test_request_in_single_bytes_is_read(path: Path) -> None:
    whole = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    with connected(path) as connection:
        connection.connect()
        for at in range(len(whole)):
            connection.sock.sendall(whole[at : at + 1])
        assert connection.sock.recv(1000).endswith(b"\r\n\r\nabc")


def test_what_waits_while_a_batch_is_answered_is_the_next_batch(path: Path, answering: Answering) -> None:
    answering.hold.clear()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(path)) for _ in range(7)]
        send(connections[0], b"0")
        assert answering.entered.wait(10)
        for number, connection in enumerate(connections[1:], start=1):
            send(connection, b"%d" % number)
        answering.hold.set()
        assert [read(connection) for connection in connections] == [(200, b"%d" % number) for number in range(7)]
    assert answering.batches == [1, BATCH, 2]
    assert answering.accounted >= 2  # the last one after its answers were sent, perhaps not yet


def test_successor_takes_requests_one_by_one(tmp_path: Path, answering: Answering) -> None:
    """One of them may be what ended its predecessor."""
    answering.hold.clear()
    path = tmp_path / "worker.sock"
    with serving(path, answering, inherited=True), contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(path)) for _ in range(5)]
        for number, connection in enumerate(connections):
            send(connection, b"%d" % number)
        answering.hold.set()
        assert [read(connection) for connection in connections] == [(200, b"%d" % number) for number in range(5)]
    assert answering.batches == [1] * 5


def test_client_that_leaves_while_it_waits_harms_nobody(path: Path, answering: Answering) -> None:
    answering.hold.clear()
    with connected(path) as first, connected(path) as second:
        send(first, b"1")
        assert answering.entered.wait(10)
        with connected(path) as leaving:
            send(leaving, b"x" * 50_000)
        send(second, b"2")
        answering.hold.set()
        assert (read(first), read(second)) == ((200, b"1"), (200, b"2"))


def test_slow_reader_does_not_block_others(path: Path) -> None:
    with connected(path) as slow, connected(path) as other:
        send(slow, b"x" * 5_000_000)  # its answer does not fit into the socket, and it does not read yet
        send(other, b"quick")
        assert read(other) == (200, b"quick")
        assert read(slow) == (200, b"x" * 5_000_000)


def test_fault_in_the_handler_is_an_answer_and_the_worker_goes_on(path: Path) -> None:
    with connected(path) as connection:
        send(connection, b"raise")
        status, body = read(connection)
        assert (status, b"RuntimeError" in body) == (500, True)
        send(connection, b"again")
        assert read(connection) == (200, b"again")


def test_endless_head_is_cut_off(path: Path) -> None:
    with connected(path) as endless, connected(path) as other:
        endless.connect()
        with pytest.raises(OSError):  # noqa: PT011 - reset or closed, as it happens
            endless.sock.sendall(b"x" * 10 * MAX_HEAD_BYTES)
        send(other, b"fine")
        assert read(other) == (200, b"fine")


STUCK = """
import socket, sys, time
from handlers.server import Place, Server

class Stuck:
    def answer(self, calls):
        time.sleep(60)

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.settimeout(0)
torchserve, worker = socket.socketpair()
print("listening", flush=True)
Server(Place(listener, listener), Stuck(), 4, 0.2).serve_until_readable(worker)
"""


def test_worker_that_is_stuck_ends(tmp_path: Path) -> None:
    path = tmp_path / "stuck.sock"
    command = [sys.executable, "-c", STUCK, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "listening\n"
        with connected(path) as connection:
            send(connection, b"")
            assert worker.wait(20) == -signal.SIGALRM


def test_launcher_without_a_place_is_told_in_words(tmp_path: Path, in_thread: Callable[..., None]) -> None:
    path = tmp_path / "launcher.sock"
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.bind(str(path))
        launcher.listen()

        def refuse() -> None:
            with launcher.accept()[0] as worker:
                worker.recv(100)

        in_thread(refuse)
        with pytest.raises(OSError, match="no place for a worker of flights version 7"):
            take_place(str(path), "flights", "7")


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], None]]:
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(10)
