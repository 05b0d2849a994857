"""The ledger: an append-only record beside the endpoint. It, and never a process, is the truth about a rollout.

One SQLite file for each model. `writing` is the exclusive lock under which an entry is appended together with what it
says (a change of the desired state), so that two commands never act on the same belief. Which entries were copied to
MLflow and to Grafana stands beside them, in a table of its own.
"""

import contextlib
import getpass
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from deploy.errors import LedgerUnusable
from deploy.rollout.record import ENDED, Entry

BUSY_SECONDS = 10.0
_SCHEMA = """\
CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, entry TEXT NOT NULL) STRICT
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END
CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END
CREATE TABLE IF NOT EXISTS delivered (number INTEGER, place TEXT, at REAL NOT NULL, PRIMARY KEY (number, place)) STRICT
"""
_NEWEST = "WHERE json_extract(entry, '$.state') IS NOT NULL ORDER BY number DESC LIMIT 1"


def whoami() -> str:
    """user@host, for the ledger."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def models(directory: Path) -> list[str]:
    """Models that have a ledger."""
    return sorted(path.stem for path in directory.glob("*.db"))


def ledgers_in(directory: Path) -> "list[Ledger]":
    """Those of this machine."""
    return [Ledger(directory, model) for model in models(directory)]


class AnyWriter(Protocol):
    """Appends while the lock is held."""

    def entries(self) -> list[Entry]: ...

    def newest(self) -> Entry | None: ...

    def next_number(self) -> int:
        """What the next entry is counted as."""

    def append(self, entry: Entry) -> Entry:
        """Write the entry under the next number, which replaces its own."""


class AnyLedger(Protocol):
    """An endpoint's ledger, wherever it is kept. Every method raises LedgerUnusable or ReleaseError."""

    model: str

    def entries(self) -> list[Entry]:
        """All entries, the oldest first; none where nothing was ever written."""

    def newest(self) -> Entry | None:
        """The newest entry that says where a rollout stands; None where there was none."""

    def writing(self) -> AbstractContextManager[AnyWriter]:
        """Hold the exclusive lock: what is appended within is kept only if nothing is raised."""

    def undelivered(self, place: str) -> list[Entry]:
        """Entries that were not copied to `place` yet, the oldest first."""

    def delivered(self, place: str, number: int) -> None:
        """Note that the entry was copied to `place`."""


class Ledger:
    """One model's ledger. Every method raises LedgerUnusable where the file cannot be read or written."""

    def __init__(self, directory: Path, model: str) -> None:
        self.model = model
        self._path = directory / f"{model}.db"

    def entries(self) -> list[Entry]:
        """All entries, the oldest first; none where nothing was ever written."""
        return self._read("ORDER BY number")

    def newest(self) -> Entry | None:
        """The newest entry that says where a rollout stands; None where there was none."""
        return next(iter(self._read(_NEWEST)), None)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writer"]:
        """Hold the exclusive lock: what is appended within is kept only if nothing is raised."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._open() as database:
            # What is not committed when the database is closed, or its process killed, was never written.
            database.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.splitlines():
                database.execute(statement)
            yield Writer(database, self.model)
            database.execute("COMMIT")

    def undelivered(self, place: str) -> list[Entry]:
        """Entries that were not copied to `place` yet, the oldest first."""
        return self._read("WHERE number NOT IN (SELECT number FROM delivered WHERE place = ?) ORDER BY number", place)

    def delivered(self, place: str, number: int) -> None:
        """Note that the entry was copied to `place`."""
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO delivered VALUES (?, ?, ?)", (number, place, time.time()))

    def _read(self, which: str, *values: str) -> list[Entry]:
        if not self._path.exists():
            return []
        with self._open() as database:
            # Whoever made the file was perhaps killed before anything was written.
            tables = database.execute("SELECT name FROM sqlite_schema WHERE name = 'entries'").fetchall()
            return _entries(database, which, *values) if tables else []

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            opened = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            with contextlib.closing(opened) as database:
                database.execute("PRAGMA synchronous = FULL")  # an entry outlives a power cut
                yield database
        except sqlite3.Error as error:
            raise LedgerUnusable(self._path, str(error)) from error


class Writer:
    """Appends while the lock is held."""

    def __init__(self, database: sqlite3.Connection, model: str) -> None:
        self._database = database
        self._model = model

    def entries(self) -> list[Entry]:
        return _entries(self._database, "ORDER BY number")

    def newest(self) -> Entry | None:
        return next(iter(_entries(self._database, _NEWEST)), None)

    def next_number(self) -> int:
        """What the next entry is counted as."""
        (last,) = self._database.execute("SELECT coalesce(max(number), 0) FROM entries").fetchone()
        return int(last) + 1

    def append(self, entry: Entry) -> Entry:
        """Write the entry under the next number, which replaces its own."""
        entry = entry.model_copy(update={"number": self.next_number(), "model": self._model})
        self._database.execute("INSERT INTO entries VALUES (?, ?)", (entry.number, entry.model_dump_json()))
        return entry


def unfinished(newest: Entry | None) -> Entry | None:
    """A ledger's newest entry if its rollout has not ended; None otherwise."""
    return None if newest is None or newest.state in ENDED else newest


def _entries(database: sqlite3.Connection, which: str, *values: str) -> list[Entry]:
    found = database.execute(f"SELECT entry FROM entries {which}", values)  # noqa: S608 - ours
    return [Entry.model_validate_json(text) for (text,) in found]
