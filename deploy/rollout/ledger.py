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
from pathlib import Path

from deploy.errors import LedgerUnusable
from deploy.rollout.record import ENDED, Entry

BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, entry TEXT NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_remain BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TABLE IF NOT EXISTS delivered (number INTEGER, place TEXT, at REAL NOT NULL, PRIMARY KEY (number, place)) STRICT;
"""


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


class Ledger:
    """One model's ledger. Every method raises LedgerUnusable where the file cannot be read or written."""

    def __init__(self, directory: Path, model: str) -> None:
        self.model = model
        self._path = directory / f"{model}.db"

    def entries(self) -> list[Entry]:
        """All entries, the oldest first; none where nothing was ever written."""
        if not self._path.exists():
            return []
        with self._open() as database:
            return _entries(database)

    def newest(self) -> Entry | None:
        """The newest entry that says where a rollout stands; None where there was none."""
        if not self._path.exists():
            return None
        with self._open() as database:
            return _newest(database)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writer"]:
        """Hold the exclusive lock: what is appended within is kept only if nothing is raised."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._open() as database:
            database.executescript(_SCHEMA)
            with _in_words(self._path):
                database.execute("BEGIN IMMEDIATE")
            try:
                yield Writer(database, self.model)
            except BaseException:
                database.execute("ROLLBACK")
                raise
            with _in_words(self._path):
                database.execute("COMMIT")

    def undelivered(self, place: str) -> list[Entry]:
        """Entries that were not copied to `place` yet, the oldest first."""
        if not self._path.exists():
            return []
        with self._open() as database:
            done = {number for (number,) in database.execute("SELECT number FROM delivered WHERE place = ?", (place,))}
            return [entry for entry in _entries(database) if entry.number not in done]

    def delivered(self, place: str, number: int) -> None:
        """Note that the entry was copied to `place`."""
        with self._open() as database, _in_words(self._path):
            database.execute("INSERT OR IGNORE INTO delivered VALUES (?, ?, ?)", (number, place, time.time()))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with _in_words(self._path):
            database = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            database.execute("PRAGMA synchronous = FULL")  # an entry outlives a power cut
        try:
            yield database
        finally:
            database.close()


class Writer:
    """Appends while the lock is held."""

    def __init__(self, database: sqlite3.Connection, model: str) -> None:
        self._database = database
        self._model = model

    def entries(self) -> list[Entry]:
        return _entries(self._database)

    def newest(self) -> Entry | None:
        return _newest(self._database)

    def append(self, entry: Entry) -> Entry:
        """Write the entry under the next number, which replaces its own."""
        (last,) = self._database.execute("SELECT coalesce(max(number), 0) FROM entries").fetchone()
        entry = entry.model_copy(update={"number": last + 1, "model": self._model})
        self._database.execute("INSERT INTO entries VALUES (?, ?)", (entry.number, entry.model_dump_json()))
        return entry


def unfinished(entries: list[Entry]) -> Entry | None:
    """The newest entry of the rollout that has not ended; None where all have."""
    last = next((entry for entry in reversed(entries) if entry.state is not None), None)
    return None if last is None or last.state in ENDED else last


def _entries(database: sqlite3.Connection) -> list[Entry]:
    return [
        Entry.model_validate_json(text) for (text,) in database.execute("SELECT entry FROM entries ORDER BY number")
    ]


def _newest(database: sqlite3.Connection) -> Entry | None:
    rows = database.execute("SELECT entry FROM entries ORDER BY number DESC")
    found = (Entry.model_validate_json(text) for (text,) in rows)
    return next((entry for entry in found if entry.state is not None), None)


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnusable(path, str(error)) from error
