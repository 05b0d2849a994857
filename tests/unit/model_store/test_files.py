"""Files are whole or not there."""

from pathlib import Path

import pytest

from model_store.files import atomic_file, write_atomically


def test_a_file_is_made_with_its_directory_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"content", mode=0o640)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o640


def write_half(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError("disk on fire")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError, match="disk on fire"):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
