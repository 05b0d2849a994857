"""Both stores against their real databases: SQLite's file and a PostgreSQL server."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import pytest

from deploy.errors import NodeError, StoreUnavailable
from deploy.node.blocks import key, pack, pack_id
from deploy.node.feedback_store import PostgreSQL, SQLite, Store
from deploy.node.labels import Label, Result
from handlers.predictions import Version
from tests.unit.deploy.node.postgresql import PASSWORD, Server, server
from tests.unit.deploy.node.test_blocks import message
from tests.unit.handlers.tiny import prediction_id

FIRST = Version("flights", "1", ("on time", "late"))
SECOND = Version("flights", "2", ("on time", "late"))
T = 1_795_000_000
Open = Callable[..., Store]
_numbers = count()


@pytest.fixture(scope="module")
def postgresql(short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]) -> Iterator[Server]:
    with server(short_directory(), free_ports(1)[0]) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, state_dir: Path) -> str:
    """A database of the test's own: a path, or the URL of a server."""
    if request.param == "sqlite":
        return str(state_dir / "feedback.sqlite3")
    running: Server = request.getfixturevalue("postgresql")
    return running.database(f"test_{next(_numbers)}")


@pytest.fixture
def open_store(url: str) -> Iterator[Open]:
    """A function that opens one more store on the same database, for the node of that name."""
    opened: list[Store] = []

    def another(node: str = "here:8082") -> Store:
        opened.append(open_at(url, node))
        return opened[-1]

    yield another
    for store in opened:
        store.close()


def open_at(url: str, node: str = "here:8082") -> Store:
    return PostgreSQL(url, node) if url.startswith("postgresql:") else SQLite(Path(url), node)


def keep(store: Store, version: Version, predictions: Sequence[tuple[str, Sequence[int]]]) -> None:
    store.announce([version], 10 * T)
    store.keep(pack(key(version), [message(predictions)]))


def label(made: str, text: str, row: int | None = None) -> Label:
    return Label(*pack_id(made), row, text)


def outcomes(results: Sequence[Result]) -> list[str]:
    return [result.outcome for result in results]


def made(number: int, seconds: float = 0.25) -> str:
    return prediction_id(T + seconds, number)


def test_label_is_joined_to_the_version_that_predicted(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [0]), (made(2), [1])])
    keep(store, SECOND, [(made(3), [1])])
    labels = [label(made(3), "late"), label(made(1), "late"), label(made(2), "late", 0), label(made(9), "late")]
    results, counts = store.join(labels)
    assert outcomes(results) == ["joined", "joined", "joined", "unknown"]
    expected = {
        ("flights", "2", "late", "late"): 1,
        ("flights", "1", "on time", "late"): 1,
        ("flights", "1", "late", "late"): 1,
    }
    assert counts == store.counts() == expected


def test_rows_of_one_prediction_are_labelled_by_themselves(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [1]), (made(2), [0, 1, 1]), (made(3), [0])])
    labels = [label(made(2), "late", row) for row in (2, 0, 3, 2)] + [label(made(2), "late"), label(made(3), "late")]
    results, counts = store.join(labels)
    assert outcomes(results) == ["joined", "joined", "refused", "repeated", "refused", "joined"]
    assert results[2].words == "row: the prediction has no such row; found 3; allowed: 0 to 2"
    assert counts == {("flights", "1", "late", "late"): 1, ("flights", "1", "on time", "late"): 2}


@pytest.mark.parametrize("later", ["late", "on time"])
def test_first_label_of_a_row_stays(open_store: Open, later: str) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [1])])
    assert outcomes(store.join([label(made(1), "late")])[0]) == ["joined"]
    before = store.counts()
    results, counts = store.join([label(made(1), later), label(made(1), later, 0)])
    assert (outcomes(results), counts) == (["repeated", "repeated"], {})
    assert store.counts() == before


def test_first_label_within_one_request_stays(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [1])])
    results, counts = store.join([label(made(1), "on time"), label(made(1), "late")])
    assert outcomes(results) == ["joined", "repeated"]
    assert counts == {("flights", "1", "late", "on time"): 1}


def test_label_outside_the_classes_counts_as_other(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [1]), (made(2), [1])])
    store.join([label(made(1), "Late"), label(made(2), "'; DROP TABLE shipway_counts; --")])
    assert store.counts() == {("flights", "1", "late", "other"): 2}


def test_many_labels_over_a_long_time_are_joined_at_once(open_store: Open) -> None:
    store = open_store()
    ids = [made(number, seconds=number * 0.37) for number in range(1500)]
    keep(store, FIRST, [(each, [number % 2]) for number, each in enumerate(ids)])
    results, _ = store.join([label(each, "late") for each in reversed(ids)])
    assert Counter(outcomes(results)) == {"joined": 1500}
    assert sum(store.counts().values()) == 1500


def test_all_is_there_after_a_restart(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(1), [1]), (made(2), [0])])
    store.join([label(made(1), "late")])
    store.close()
    again = open_store()
    assert again.counts() == {("flights", "1", "late", "late"): 1}
    assert again.versions(10 * T) == [FIRST]
    assert again.versions(10 * T + 1) == []
    assert outcomes(again.join([label(made(1), "late"), label(made(2), "late")])[0]) == ["repeated", "joined"]


def test_old_predictions_and_their_labels_go(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(number, seconds=number), [1]) for number in range(10)])
    store.join([label(made(number, seconds=number), "late") for number in (3, 4)])
    store.trim(10 * (T + 4), rows=1000)
    labels = [label(made(number, seconds=number), "late") for number in range(10)]
    assert outcomes(store.join(labels)[0]) == ["unknown"] * 4 + ["repeated"] + ["joined"] * 5
    assert store.counts() == {("flights", "1", "late", "late"): 7}


def test_no_more_rows_are_kept_than_allowed_and_the_oldest_go_first(open_store: Open) -> None:
    store = open_store()
    keep(store, FIRST, [(made(number, seconds=number), [1, 1, 1]) for number in range(10)])
    store.trim(0, rows=30)
    assert outcomes(store.join([label(made(0, seconds=0), "late", 0)])[0]) == ["joined"]
    store.trim(0, rows=8)
    labels = [label(made(number, seconds=number), "late", 1) for number in range(10)]
    assert outcomes(store.join(labels)[0]) == ["unknown"] * 8 + ["joined"] * 2


def test_empty_store_is_trimmed(open_store: Open) -> None:
    store = open_store()
    store.trim(10 * T, rows=1)
    assert store.counts() == {}


_WRITER = """
import sys
from tests.unit.deploy.node.test_feedback_store import FIRST, keep, label, made, open_at
store = open_at(sys.argv[1])
number = 0
while True:
    keep(store, FIRST, [(made(number + n, seconds=number / 100), [1] * (1 + n % 3)) for n in range(50)])
    store.join([label(made(number, seconds=number / 100), "late")])
    print(number, flush=True)
    number += 50
"""


def test_what_was_written_outlives_a_kill_in_the_middle_of_writing(url: str, open_store: Open) -> None:
    root = Path(__file__).parents[4]
    with subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, cwd=root) as writer:
        assert writer.stdout is not None
        lines = list(islice(writer.stdout, 20))
        writer.kill()
        lines += writer.stdout
    assert len(lines) >= 20
    said = [int(line) for line in lines]
    store = open_store()
    counted = sum(store.counts().values())
    assert len(said) <= counted <= len(said) + 1
    labels = [
        label(made(number + n, seconds=number / 100), "late", row)
        for number in said
        for n in range(50)
        for row in range(1 + n % 3)
    ]
    results = Counter(outcomes(store.join(labels)[0]))
    assert results == {"repeated": len(said), "joined": len(labels) - len(said)}


def test_nodes_that_share_a_server_count_each_label_once(postgresql: Server) -> None:
    url = postgresql.database("shared")
    ids = [made(number, seconds=number / 50) for number in range(600)]
    stores = [PostgreSQL(url, f"node {number}") for number in range(3)]
    keep(stores[0], FIRST, [(each, [number % 2]) for number, each in enumerate(ids)])
    found: list[list[str]] = [[] for _ in stores]

    def send(node: int) -> None:
        for at in range(0, len(ids), 50):
            part = ids[at : at + 50]
            labels = [label(each, "late") for each in (part if node % 2 else reversed(part))]
            found[node] += outcomes(stores[node].join(labels)[0])

    threads = [threading.Thread(target=send, args=(node,)) for node in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    joined = [Counter(each)["joined"] for each in found]
    assert sum(joined) == len(ids)
    assert [sum(store.counts().values()) for store in stores] == joined
    total = sum((Counter(store.counts()) for store in stores), Counter())
    assert total == {("flights", "1", "on time", "late"): 300, ("flights", "1", "late", "late"): 300}
    for store in stores:
        store.close()


def test_server_that_went_away_is_told_and_found_again(
    short_directory: Callable[[], Path], free_ports: Callable[[int], list[int]]
) -> None:
    with server(short_directory(), free_ports(1)[0]) as running:
        store = PostgreSQL(running.url(), "here:8082")
        keep(store, FIRST, [(made(1), [1])])
        running.stop()
        for _ in range(2):  # on the connection that was lost, and on none
            with pytest.raises(StoreUnavailable) as raised:
                store.join([label(made(1), "late")])
        assert str(raised.value).startswith(
            f"the feedback store postgresql://shipway@127.0.0.1:{running.port}/postgres cannot be used now: connection"
        )
        running.start()
        assert outcomes(store.join([label(made(1), "late")])[0]) == ["joined"]
        store.close()


def test_password_is_in_no_message(postgresql: Server, tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:*:wrong {PASSWORD}\n")
    store = PostgreSQL(postgresql.url().replace(str(postgresql.passfile), str(passfile)), "here:8082")
    with pytest.raises(StoreUnavailable, match="password authentication failed") as raised:
        store.counts()
    assert PASSWORD not in str(raised.value)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(NodeError, match=r"needs psycopg, which is not installed; install shipway\[postgres\]"):
        PostgreSQL("postgresql://somewhere/db", "here:8082")


def test_file_is_for_its_owner_alone(state_dir: Path) -> None:
    before = os.umask(0)
    try:
        store = SQLite(state_dir / "node" / "feedback.sqlite3")
        keep(store, FIRST, [(made(1), [1])])
    finally:
        os.umask(before)
    files = list((state_dir / "node").iterdir())
    assert {file.suffix for file in files} == {".sqlite3", ".sqlite3-wal", ".sqlite3-shm"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()


class Small(SQLite):
    """On a disk that is soon full."""

    pages = 60

    def connect(self) -> sqlite3.Connection:
        connection = super().connect()
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection


def test_full_disk_is_told_and_loses_nothing_that_was_kept(state_dir: Path) -> None:
    store = Small(state_dir / "feedback.sqlite3")
    kept, problem = 0, ""
    while not problem:
        try:
            keep(store, FIRST, [(made(100 * kept + n, seconds=kept), [1]) for n in range(100)])
            kept += 1
        except StoreUnavailable as error:
            problem = str(error)
    assert problem.endswith("cannot be used now: database or disk is full")
    assert kept > 5
    labels = [label(made(100 * number, seconds=number), "late") for number in range(kept + 1)]
    store.pages = 1000
    store.close()
    assert outcomes(store.join(labels)[0]) == ["joined"] * kept + ["unknown"]
    store.close()


def test_what_is_no_database_is_told(state_dir: Path) -> None:
    (state_dir / "text").write_text("not a database, and longer than the head of one" * 10)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        SQLite(state_dir / "text").counts()
    with pytest.raises(StoreUnavailable, match=r"File exists|Not a directory"):
        SQLite(state_dir / "text" / "feedback.sqlite3").counts()
