"""An archive and its signature, from wherever they are kept into the archives directory: verified, or not there.

What lies there already, and is right, is used without a question to anybody, so that a version comes back while the
registry is down. A pod's init container does this, so of MLflow only its client is needed, and nothing of PyTorch.
"""

import contextlib
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from model_store.archive import archive_name, signature_path, verify_archive
from model_store.errors import ArchiveMissing, ArchiveRefused, FetchFailed, ModelStoreError, NotDownloaded
from model_store.files import move_synced
from model_store.signing import TrustedKeys

Download = Callable[[Path], None]
"""Brings an archive of the name of that path there, and its signature beside it. Raises ModelStoreError, OSError."""

_WITHIN_SECONDS = 60.0
"""Without a single byte."""
_UNDER_WAY = ".fetching-"
_LEFT_SECONDS = 3600.0
"""What was begun so long ago, by a process that was killed, is not finished by anybody."""


def fetch(
    archives_dir: Path, model: str, version: int, digest: str, trusted: TrustedKeys, download: Download | None
) -> Path:
    """The archive in `archives_dir`, which is exactly this version and signed by a trusted key.

    One that lies there and is refused is fetched again. `download` is None where nothing may be fetched.

    Raises:
        ArchiveMissing, ArchiveRefused: what lies there, or what was fetched, is not it.
        FetchFailed: it could not be brought, or not be kept.
    """
    target = archives_dir / archive_name(model, version, digest)
    try:
        verify_archive(target, model, version, digest, trusted)
    except (ArchiveMissing, ArchiveRefused) as error:
        if download is None:
            raise
        refused = f"{error}, and it was to be fetched again, but " if isinstance(error, ArchiveRefused) else ""
    except OSError as error:
        raise FetchFailed(model, version, f"{target} cannot be read: {error.strerror}") from error
    else:
        return target
    try:
        archives_dir.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(archives_dir)
        with tempfile.TemporaryDirectory(dir=archives_dir, prefix=_UNDER_WAY) as directory:
            fetched = Path(directory) / target.name
            download(fetched)
            verify_archive(fetched, model, version, digest, trusted)
            # The signature first: whoever sees the archive sees it signed.
            move_synced(signature_path(fetched), signature_path(target))
            move_synced(fetched, target)
    except ArchiveRefused:
        raise
    except ModelStoreError as error:
        raise FetchFailed(model, version, f"{refused}{error}") from error
    except OSError as error:
        raise FetchFailed(model, version, f"{refused}{archives_dir} does not take it: {error.strerror}") from error
    return target


def over_http(url: str) -> Download:
    """From files that lie below `url`, http or https, by their names."""

    def download(archive: Path) -> None:
        for path in (archive, signature_path(archive)):
            _download(f"{url.rstrip('/')}/{path.name}", path)

    return download


def _download(address: str, path: Path) -> None:
    if not address.startswith(("http://", "https://")):
        raise NotDownloaded(address, "it must begin with http:// or https://")
    try:
        answer = urllib.request.urlopen(address, timeout=_WITHIN_SECONDS)  # noqa: S310 - as checked
    except (OSError, ValueError, HTTPException) as error:
        raise NotDownloaded(address, str(error)) from error
    with answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)


def _remove_leftovers(archives_dir: Path) -> None:
    for left in archives_dir.glob(f"{_UNDER_WAY}*"):
        with contextlib.suppress(FileNotFoundError):  # finished, or removed, by another process meanwhile
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
