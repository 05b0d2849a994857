"""A drill's users against a real server that answers, fails, and hangs up."""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy.caller import Caller
from deploy.drill.load import Load, Row

ROWS = [Row(b'{"inputs": []}', "late")]
RATE = 100.0


class Node(ThreadingHTTPServer):
    """Of three predictions one is answered by version 1, one fails at version 2, one is hung up on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.turn = itertools.count()
        self.labels: list[dict[str, object]] = []
        self.labels_lost = 0
        """The first labels are hung up on."""
        self.answered: list[str] = []

    @property
    def caller(self) -> Caller:
        return Caller(f"http://127.0.0.1:{self.server_port}", "", None, None)


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Node

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/feedback" and not self.server.labels_lost:
            self.server.labels_lost = len(json.loads(body))
            self.close_connection = True
            return
        if self.path == "/feedback":
            self.server.labels += json.loads(body)
            self._send(200)
            return
        assert self.path == "/v2/models/m-drill/infer"
        turn = next(self.server.turn)
        if turn % 3 == 2:
            self.close_connection = True
            return
        made = f"made-{turn}"
        if turn % 3 == 0:
            self.server.answered.append(made)
        self._send((200, 500)[turn % 3], {"x-shipway-version": str(turn % 3 + 1), "x-shipway-prediction-id": made})

    def _send(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_became_of_every_request_is_noted(node: Node) -> None:
    begun = time.time()
    with Load(node.caller, "m-drill", ROWS, RATE) as load:
        wait(lambda: len(load.seen(0)) >= 90)
    seconds = time.time() - begun
    seen = load.seen(begun)
    assert len(seen) <= RATE * seconds + 2
    kinds = Counter((one.version, one.status) for one in seen)
    assert kinds.keys() == {(1, 200), (2, 500), (None, 0)}
    assert min(kinds.values()) > 20
    assert all(0 < one.seconds < 30 for one in seen)
    assert load.seen(time.time()) == []


def test_labels_are_told_of_what_was_answered_and_only_while_they_are_wanted(node: Node) -> None:
    with Load(node.caller, "m-drill", ROWS, RATE) as load:
        wait(lambda: len(load.seen(0)) >= 10)
        before = set(node.answered)
        with load.labelling(labels=True):
            wait(lambda: len(node.labels) > 5)
    assert node.labels_lost  # and the load went on
    assert {label["label"] for label in node.labels} == {"late"}
    told = [str(label["prediction_id"]) for label in node.labels]
    assert len(set(told)) == len(told)
    assert set(told) <= set(node.answered) - before
