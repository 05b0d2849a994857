"""Which archive of a version lies in the archives directory."""

from pathlib import Path

from deploy.errors import NotPackaged
from model_store.archive import read_signature


def packaged_digest(archives_dir: Path, model: str, version: int) -> str:
    """The digest of the archive of `model` and `version` that was packaged last. The node verifies it; this does not.

    Raises:
        NotPackaged: there is none; says which versions there are.
    """
    archives = sorted(archives_dir.glob("*.mar"), key=lambda path: path.stat().st_mtime_ns)
    signatures = [read_signature(archive) for archive in archives]
    matching = [one.digest for one in signatures if (one.model, one.version) == (model, version)]
    if not matching:
        raise NotPackaged(archives_dir, model, version, sorted({(one.model, one.version) for one in signatures}))
    return matching[-1]
