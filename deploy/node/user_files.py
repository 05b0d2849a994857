"""Files of the user's that a node reads again whenever they are replaced."""

import os
import stat
from pathlib import Path

from deploy.errors import EdgeFileInvalid


def identity(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced or written to; None where it is not there, or not to be seen."""
    try:
        status = path.stat()
    except OSError:  # reading it says so in words
        return None
    return status.st_ino, status.st_mtime_ns


def read_text(path: Path) -> str:
    """Raises EdgeFileInvalid."""
    try:
        return path.read_text()
    except OSError as error:
        raise EdgeFileInvalid(path, f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise EdgeFileInvalid(path, "it is not text") from None


def read_private(path: Path) -> str:
    """A file that nobody else may read or change. Raises EdgeFileInvalid.

    A group may read a file that is not ours, because that is how Kubernetes lets a user have a Secret.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise EdgeFileInvalid(path, f"it cannot be read: {error.strerror}") from None
    forbidden = 0o077 if found.st_uid == os.geteuid() else 0o037
    mode = stat.S_IMODE(found.st_mode)
    if mode & forbidden:
        raise EdgeFileInvalid(path, f"its mode is {mode:04o}, so others can read or change it; wanted is 0600")
    return read_text(path)
