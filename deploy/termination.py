"""Why a container ended: Kubernetes shows what stands in a file that it mounts there, as the state of the pod."""

import contextlib
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
MOST_BYTES = 4096
"""Kubernetes keeps no more."""


def tell(cause: str) -> None:
    """Leave the cause for whoever looks at the pod; nothing happens outside of one."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_bytes(cause.encode()[:MOST_BYTES])
