"""Predictions that may still get a label, and what was counted of those that did: in SQLite, or in PostgreSQL.

Both are asked with the same SQL. A store is used by one thread. Whatever its database cannot do is StoreUnavailable;
the next call connects anew, and a call that failed has changed nothing.
"""

import os
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from deploy.errors import NodeError, StoreUnavailable
from deploy.node.blocks import Block, first_id, key
from deploy.node.labels import JOINED, OTHER, REPEATED, UNKNOWN, Label, Result, wrong_row
from handlers.predictions import Version

Pair = tuple[str, str, str, str]
"""Model, version, predicted class, actual class."""
Classes = npt.NDArray[np.uint16]
T = TypeVar("T")

_AT_ONCE = 400
"""Rows of one statement."""
_CONNECT_WITHIN_SECONDS = 3
_LOCKED_SECONDS = 3
# The index has the size in it, so that counting rows reads no predictions.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shipway_versions (key {blob} PRIMARY KEY, document {blob} NOT NULL, seen BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS shipway_predictions (tenth BIGINT NOT NULL, version {blob} NOT NULL, ids {blob} NOT NULL,
    ends {blob} NOT NULL, classes {blob} NOT NULL, size BIGINT NOT NULL);
CREATE INDEX IF NOT EXISTS shipway_predictions_by_time ON shipway_predictions (tenth, size);
CREATE TABLE IF NOT EXISTS shipway_labels (id {blob}, place BIGINT, PRIMARY KEY (id, place)){options};
CREATE TABLE IF NOT EXISTS shipway_counts (node TEXT, model TEXT, version TEXT, predicted TEXT, actual TEXT,
    count BIGINT NOT NULL, PRIMARY KEY (node, model, version, predicted, actual))
"""


@dataclass(frozen=True)
class _Row:
    """What a label is for."""

    id: bytes
    row: int
    version: bytes
    predicted: int


class Store(ABC):
    """One database. `node` is whose counts these are, where several nodes share it."""

    place: str
    """For people: where it is."""
    errors: tuple[type[Exception], ...]
    """What its library raises."""
    blob: str
    options = ""
    """Of a table whose rows are found by their key alone."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._connection: Any = None
        self._versions: dict[bytes, Version] = {}

    @abstractmethod
    def connect(self) -> Any:
        """A new connection, outside a transaction."""

    def sql(self, statement: str) -> str:
        """`statement`, which has `?` for each value, as this database wants it."""
        return statement

    def close(self) -> None:
        if self._connection is not None:
            with suppress(*self.errors):
                self._connection.close()
            self._connection = None

    def announce(self, versions: Iterable[Version], now_tenth: int) -> None:
        """These predict now, so their counts are served as long as one of their predictions is kept."""
        statement = "INSERT INTO shipway_versions VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET seen = excluded.seen"
        with self._transaction() as connection:
            for version in versions:
                connection.execute(self.sql(statement), (key(version), version.to_json(), now_tenth))

    def versions(self, since_tenth: int) -> list[Version]:
        """Those that have predicted since then."""
        with self._transaction() as connection:
            found = connection.execute(
                self.sql("SELECT document FROM shipway_versions WHERE seen >= ?"), (since_tenth,)
            )
            return [Version.from_json(document) for (document,) in found]

    def counts(self) -> dict[Pair, int]:
        """All that this node has joined."""
        statement = "SELECT model, version, predicted, actual, count FROM shipway_counts WHERE node = ?"
        with self._transaction() as connection:
            return {tuple(row[:4]): row[4] for row in connection.execute(self.sql(statement), (self._node,))}

    def keep(self, blocks: Iterable[Block]) -> None:
        rows = [(b.tenth, b.version, b.ids, b.ends, b.classes, b.rows) for b in blocks]
        with self._transaction() as connection:
            statement = self.sql("INSERT INTO shipway_predictions VALUES (?, ?, ?, ?, ?, ?)")
            connection.cursor().executemany(statement, rows)

    def trim(self, before_tenth: int, rows: int) -> None:
        """Let go of what is older, and then of the oldest until at most `rows` rows are left."""
        with self._transaction() as connection:
            (kept,) = connection.execute("SELECT coalesce(sum(size), 0) FROM shipway_predictions").fetchone()
            if kept > rows:
                newest_first = "SELECT tenth, sum(size) OVER (ORDER BY tenth DESC) AS kept FROM shipway_predictions"
                statement = f"SELECT max(tenth) FROM ({newest_first}) AS newest WHERE kept > ?"  # noqa: S608 - no values
                (last,) = connection.execute(self.sql(statement), (rows,)).fetchone()
                before_tenth = max(before_tenth, last + 1)
            connection.execute(self.sql("DELETE FROM shipway_predictions WHERE tenth < ?"), (before_tenth,))
            connection.execute(self.sql("DELETE FROM shipway_labels WHERE id < ?"), (first_id(before_tenth),))

    def join(self, labels: Sequence[Label]) -> tuple[list[Result], dict[Pair, int]]:
        """What became of each label, and what the counts that changed are now. The first label of a row counts."""
        results, rows = [UNKNOWN] * len(labels), dict[int, _Row]()
        with self._transaction() as connection:
            for index, version, classes in self._predictions(connection, labels):
                label = labels[index]
                if wrong := wrong_row(label, len(classes)):
                    results[index] = wrong
                else:
                    number = label.row or 0
                    rows[index] = _Row(label.id, number, version, int(classes[number]))
            new = self._first_labels(connection, sorted({(row.id, row.row) for row in rows.values()}))
            counted = Counter[Pair]()
            for index, row in rows.items():  # labels of one prediction are in their order
                results[index] = REPEATED
                if (row.id, row.row) in new:
                    new.remove((row.id, row.row))
                    results[index] = JOINED
                    counted[self._pair(connection, row, labels[index].label)] += 1
            return results, {pair: self._add(connection, pair, number) for pair, number in counted.items()}

    def _predictions(self, connection: Any, labels: Sequence[Label]) -> Iterator[tuple[int, bytes, Classes]]:
        """For each label whose prediction is kept: its index, who predicted, and the classes of all rows."""
        by_tenth: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            by_tenth.setdefault(label.tenth, []).append(index)
        columns = "tenth, version, ids, ends, classes"
        for tenths in _parts(sorted(by_tenth)):
            statement = f"SELECT {columns} FROM shipway_predictions WHERE tenth IN ({_marks(tenths)})"  # noqa: S608
            for row in connection.execute(self.sql(statement), tenths):
                block = Block(*row)
                for index in by_tenth[block.tenth]:
                    if (classes := block.find(labels[index].id)) is not None:
                        yield index, block.version, classes

    def _first_labels(self, connection: Any, rows: Sequence[tuple[bytes, int]]) -> set[tuple[bytes, int]]:
        """Which rows have no label yet; from now on they have. Sorted, or two nodes might wait for each other."""
        new: set[tuple[bytes, int]] = set()
        for part in _parts(rows):
            values = ", ".join(["(?, ?)"] * len(part))
            statement = f"INSERT INTO shipway_labels VALUES {values} ON CONFLICT DO NOTHING RETURNING id, place"  # noqa: S608
            new.update(connection.execute(self.sql(statement), [value for row in part for value in row]).fetchall())
        return new

    def _pair(self, connection: Any, row: _Row, label: str) -> Pair:
        version = self._versions.get(row.version)
        if version is None:
            statement = self.sql("SELECT document FROM shipway_versions WHERE key = ?")
            (document,) = connection.execute(statement, (row.version,)).fetchone()
            version = self._versions[row.version] = Version.from_json(document)
        actual = label if label in version.classes else OTHER
        return version.model, version.version, version.classes[row.predicted], actual

    def _add(self, connection: Any, pair: Pair, labels: int) -> int:
        statement = (
            "INSERT INTO shipway_counts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (node, model, version, predicted, actual)"
            " DO UPDATE SET count = shipway_counts.count + excluded.count RETURNING count"
        )
        (count,) = connection.execute(self.sql(statement), (self._node, *pair, labels)).fetchone()
        return int(count)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """All or nothing. Raises StoreUnavailable."""
        try:
            if self._connection is None:
                self._connection = self.connect()
            yield self._connection
            self._connection.commit()
        except BaseException as error:
            self.close()
            if not isinstance(error, (*self.errors, OSError)):
                raise
            raise StoreUnavailable(self.place, " ".join(str(error).split()) or type(error).__name__) from error

    def _create(self, connection: Any) -> None:
        for statement in _SCHEMA.format(blob=self.blob, options=self.options).split(";"):
            connection.execute(statement)
        connection.commit()


class SQLite(Store):
    """A file of one node's own, for its owner alone."""

    errors = (sqlite3.Error,)
    blob = "BLOB"
    options = " WITHOUT ROWID"

    def __init__(self, file: Path, node: str = "") -> None:
        super().__init__(node)
        self.place = str(file)
        self._file = file

    def connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives the files beside it the same mode.
        os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._file, timeout=_LOCKED_SECONDS)
        connection.execute("PRAGMA journal_mode = WAL")
        # The disk is waited for at checkpoints alone: a killed node loses nothing, a power cut some seconds.
        connection.execute("PRAGMA synchronous = NORMAL")
        self._create(connection)
        return connection


class PostgreSQL(Store):
    """A database that many nodes share. Its password comes from libpq's own places, and stands in no URL."""

    blob = "BYTEA"

    def __init__(self, url: str, node: str) -> None:
        """Raises NodeError where psycopg is not installed."""
        super().__init__(node)
        try:
            import psycopg
        except ImportError:
            raise NodeError(f"{url} needs psycopg, which is not installed; install shipway[postgres]") from None
        parts = urlsplit(url)
        self.place = f"postgresql://{parts.netloc}{parts.path}"
        self.errors = (psycopg.Error,)
        self._open = psycopg.connect
        self._url = url

    def connect(self) -> Any:
        connection = self._open(
            self._url,
            application_name=f"shipway node {self._node}",
            connect_timeout=_CONNECT_WITHIN_SECONDS,
            tcp_user_timeout=1000 * _CONNECT_WITHIN_SECONDS,
            options=f"-c lock_timeout={_LOCKED_SECONDS}s",
            prepare_threshold=None,  # poolers hand a statement to a connection that has not prepared it
        )
        # One node at a time: two that make the same table at once get in each other's way.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('shipway'))")
        self._create(connection)
        return connection

    def sql(self, statement: str) -> str:
        return statement.replace("?", "%s")


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[at : at + _AT_ONCE] for at in range(0, len(values), _AT_ONCE))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
