import os
from pathlib import Path

import pytest

from deploy.errors import NotPackaged
from deploy.packaged import packaged_digest
from model_store.archive import file_digest, sign_archive
from model_store.signing import create_key


def archive(directory: Path, name: str, version: int, made_at_seconds: int) -> str:
    key = directory / "signing.pem"
    if not key.exists():
        create_key(key, directory / "trust")
    path = directory / name
    path.write_bytes(f"{name} {version}".encode())
    os.utime(path, (made_at_seconds, made_at_seconds))
    sign_archive(path, "flights", version, key)
    return file_digest(path)


def test_last_packaged_archive_of_the_version_is_taken(tmp_path: Path) -> None:
    newer = archive(tmp_path, "flights-1-aaa.mar", 1, made_at_seconds=2_000)
    archive(tmp_path, "flights-1-bbb.mar", 1, made_at_seconds=1_000)
    archive(tmp_path, "flights-2-ccc.mar", 2, made_at_seconds=3_000)
    assert packaged_digest(tmp_path, "flights", 1) == newer


def test_missing_version_names_what_is_there(tmp_path: Path) -> None:
    archive(tmp_path, "flights-2-ccc.mar", 2, made_at_seconds=1_000)
    with pytest.raises(
        NotPackaged, match=r"no archive of flights version 1; found flights 2\. Make it: shipway package"
    ):
        packaged_digest(tmp_path, "flights", 1)


def test_empty_directory_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(NotPackaged, match="found nothing"):
        packaged_digest(tmp_path / "none", "flights", 1)
