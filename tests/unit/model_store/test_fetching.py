"""Archives that are fetched: verified or not there, without a question where they lie already."""

import errno
import http.server
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from model_store.archive import pack, signature_path
from model_store.errors import ArchiveMissing, ArchiveRefused, FetchFailed, RegistryUnreachable
from model_store.fetching import fetch, over_http
from model_store.signing import TrustedKeys, create_key, load_trusted
from tests.unit.model_store.test_archive import members


@dataclass
class Kept:
    """An archive, where it lies first, and the directory that it is fetched into."""

    archive: Path
    digest: str
    trusted: TrustedKeys
    into: Path
    asked: list[Path] = field(default_factory=list)
    """What was downloaded."""

    def fetch(
        self, download: Callable[[Path], None] | None, digest: str = "", trusted: TrustedKeys | None = None
    ) -> Path:
        keys = self.trusted if trusted is None else trusted
        return fetch(self.into, "flights", 3, digest or self.digest, keys, download)

    def copy(self, path: Path) -> None:
        self.asked.append(path)
        shutil.copyfile(self.archive, path)
        shutil.copyfile(signature_path(self.archive), signature_path(path))

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.into.iterdir())


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    create_key(tmp_path / "signing.pem", tmp_path / "trust")
    archive, digest = pack(members(), "flights", 3, tmp_path / "store", tmp_path / "signing.pem")
    return Kept(archive, digest, load_trusted(tmp_path / "trust"), tmp_path / "cache")


def unreachable(_: Path) -> None:
    raise RegistryUnreachable("http://mlflow:5000", "refused")


def test_what_lies_there_and_is_right_asks_nobody(kept: Kept) -> None:
    found = kept.fetch(kept.copy)
    assert found.read_bytes() == kept.archive.read_bytes()
    assert kept.left == [found.name, f"{found.name}.sig"]
    assert [path.stat().st_mode & 0o777 for path in (found, signature_path(found))] == [0o644, 0o644]
    assert kept.fetch(unreachable) == kept.fetch(None) == found


def test_cold_cache_and_nobody_to_ask_is_one_sentence(kept: Kept) -> None:
    with pytest.raises(FetchFailed) as caught:
        kept.fetch(unreachable)
    assert str(caught.value).startswith(
        "the archive of flights version 3 was not fetched: no MLflow server answers at http://mlflow:5000 (refused)"
    )
    assert kept.left == []
    with pytest.raises(ArchiveMissing):
        kept.fetch(None)


def test_what_was_altered_since_is_fetched_again(kept: Kept) -> None:
    found = kept.fetch(kept.copy)
    found.write_bytes(found.read_bytes()[:-1])
    with pytest.raises(ArchiveRefused, match="altered or is incomplete"):
        kept.fetch(None)
    with pytest.raises(FetchFailed, match=r"altered or is incomplete.*fetched again, but no MLflow server answers"):
        kept.fetch(unreachable)
    kept.fetch(kept.copy)
    assert found.read_bytes() == kept.archive.read_bytes()
    assert len(kept.asked) == 2


def test_what_is_not_it_is_refused_and_nothing_of_it_is_kept(kept: Kept) -> None:
    with pytest.raises(ArchiveRefused, match="signed for another digest: expected sha256:0000"):
        kept.fetch(kept.copy, digest="sha256:" + "0" * 64)
    with pytest.raises(ArchiveRefused, match="a key that is not trusted: expected one of none"):
        kept.fetch(kept.copy, trusted={})
    assert kept.left == []


def test_untrusted_signature_in_the_cache_is_refused_too(kept: Kept) -> None:
    kept.fetch(kept.copy)
    with pytest.raises(ArchiveRefused, match="a key that is not trusted"):
        kept.fetch(kept.copy, trusted={})
    with pytest.raises(FetchFailed, match="a key that is not trusted"):
        kept.fetch(unreachable, trusted={})


def test_full_volume_is_said_and_nothing_half_written_stays(kept: Kept) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FetchFailed, match="cache does not take it: No space left on device"):
        kept.fetch(download)
    assert kept.left == []


def test_directory_that_cannot_be_written_is_said(kept: Kept) -> None:
    kept.into.write_text("a file in its place")
    with pytest.raises(FetchFailed, match=f"{kept.into} does not take it: File exists"):
        kept.fetch(kept.copy)


def test_what_a_killed_process_left_long_ago_goes_and_what_is_under_way_stays(kept: Kept) -> None:
    for name, age in (("old", 7200), ("new", 60)):
        left = kept.into / f".fetching-{name}"
        left.mkdir(parents=True)
        (left / "half.mar").write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    found = kept.fetch(kept.copy)
    assert kept.left == [".fetching-new", found.name, f"{found.name}.sig"]


@pytest.fixture
def files(kept: Kept) -> Iterator[str]:
    """A web server in front of the directory where the archive lies."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

    directory = str(kept.archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=directory)) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        serving.join()


def test_files_over_http_are_fetched(kept: Kept, files: str) -> None:
    assert kept.fetch(over_http(files)).read_bytes() == kept.archive.read_bytes()


def test_files_that_are_not_there_are_named(kept: Kept, files: str) -> None:
    with pytest.raises(FetchFailed, match=rf"{files}flights-3-0{{12}}\.mar was not to be had: HTTP Error 404"):
        kept.fetch(over_http(files), digest="sha256:" + "0" * 64)
    with pytest.raises(FetchFailed, match="must begin with http:// or https://"):
        kept.fetch(over_http("file:///etc"))
    with pytest.raises(FetchFailed, match="Connection refused"):
        kept.fetch(over_http("http://127.0.0.1:1"))
