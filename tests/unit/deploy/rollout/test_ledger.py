"""The ledger's file: what is raised within is never written, and what SQLite cannot do is said in words."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import LedgerUnusable
from deploy.rollout.ledger import Ledger, unfinished
from tests.unit.deploy.rollout.stories import entry, ledger, rolled_back


def test_newest_is_what_says_where_a_rollout_stands(tmp_path: Path) -> None:
    found = ledger(tmp_path, *rolled_back()[:4], entry(None, 1004.0, kind="alert", candidate=None))
    newest = found.newest()
    assert newest is not None
    assert (newest.number, newest.state) == (4, "JUDGING")
    assert unfinished(newest) == newest
    assert unfinished(ledger(tmp_path, entry("ROLLED_BACK", 1011.0)).newest()) is None
    assert unfinished(None) is None


def test_nothing_is_written_where_something_is_raised(tmp_path: Path) -> None:
    found = ledger(tmp_path, entry("PENDING", 1.0))

    def interrupted() -> None:
        with found.writing() as writer:
            assert writer.next_number() == 2
            assert writer.append(entry("READY", 2.0)).number == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [one.state for one in found.entries()] == ["PENDING"]


def test_entries_are_neither_changed_nor_taken_away(tmp_path: Path) -> None:
    ledger(tmp_path, entry("PENDING", 1.0))
    with sqlite3.connect(tmp_path / "flights.db") as database:
        for statement in ("UPDATE entries SET entry = ''", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)
    database.close()


KILLED = """
import os, sys
from pathlib import Path
from deploy.rollout.ledger import Ledger
with Ledger(Path(sys.argv[1]), "flights").writing():
    os._exit(9)
"""


def test_whoever_is_killed_before_the_first_entry_leaves_no_half_of_a_ledger(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == 9
    found = Ledger(tmp_path, "flights")
    assert os.path.lexists(tmp_path / "flights.db")
    assert (found.entries(), found.newest(), found.undelivered("mlflow")) == ([], None, [])
    ledger(tmp_path, entry("PENDING", 1.0))
    assert len(found.entries()) == 1


def _write(found: Ledger) -> None:
    with found.writing():
        pass


@pytest.mark.parametrize(
    "use",
    [
        Ledger.entries,
        Ledger.newest,
        _write,
        lambda found: found.undelivered("x"),
        lambda found: found.delivered("x", 1),
    ],
)
@pytest.mark.parametrize("broken", [b"no database, but long enough to be taken for one" * 100, b""])
def test_whatever_sqlite_cannot_do_is_said_in_words(
    tmp_path: Path, use: Callable[[Ledger], object], broken: bytes
) -> None:
    path = tmp_path / "flights.db"
    if broken:
        path.write_bytes(broken)
    else:
        path.mkdir()
    with pytest.raises(LedgerUnusable, match=r"the ledger .*flights\.db cannot be used"):
        use(Ledger(tmp_path, "flights"))


def test_what_fails_while_the_lock_is_held_is_said_in_words(tmp_path: Path) -> None:
    found = ledger(tmp_path, entry("PENDING", 1.0))
    with sqlite3.connect(tmp_path / "flights.db") as database:
        database.execute("INSERT INTO entries VALUES (2, 'no JSON')")
    database.close()
    with pytest.raises(LedgerUnusable, match="malformed JSON"), found.writing() as writer:
        writer.newest()
