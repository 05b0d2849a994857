"""Where a node keeps its sockets and working files: one private directory, made anew at every start."""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import NodeRuns, SocketPathTooLong

SOCKET_PATH_LIMIT_BYTES = 107
LONGEST_SOCKET = "node/ts/.ts.sock.65535"
"""TorchServe names its workers' sockets itself, by a port number it never opens."""


@dataclass(frozen=True)
class Layout:
    """Paths below the run directory."""

    root: Path

    @property
    def admin_socket(self) -> Path:
        return self.root / "admin.sock"

    @property
    def control_socket(self) -> Path:
        return self.root / "control.sock"

    @property
    def inference_socket(self) -> Path:
        """TorchServe's own way to ask for predictions, which it insists on; nobody uses it."""
        return self.root / "infer.sock"

    @property
    def management_socket(self) -> Path:
        return self.root / "manage.sock"

    @property
    def places_socket(self) -> Path:
        """Where workers ask for their listening sockets."""
        return self.root / "places.sock"

    @property
    def predictions_socket(self) -> Path:
        """Where workers say what they predicted."""
        return self.root / "predictions.sock"

    @property
    def workers(self) -> Path:
        """Where workers listen."""
        return self.root / "w"

    @property
    def store(self) -> Path:
        """The launcher's own copies of archives: what was verified is what is unpacked."""
        return self.root / "store"

    @property
    def torchserve(self) -> Path:
        """TorchServe's working and temporary directory: unpacked archives, workers' sockets, its key file."""
        return self.root / "ts"

    @property
    def counters(self) -> Path:
        """Where workers count."""
        return self.root / "counters"

    @property
    def envoy(self) -> Path:
        return self.root / "envoy"

    @property
    def clusters_file(self) -> Path:
        return self.envoy / "clusters.json"

    @property
    def routes_file(self) -> Path:
        return self.envoy / "routes.json"


def make_layout(run_dir: Path) -> Layout:
    """An empty layout of mode 0700 below `run_dir`, held until this process ends.

    Raises SocketPathTooLong, NodeRuns.
    """
    longest = run_dir / LONGEST_SOCKET
    if len(str(longest).encode()) > SOCKET_PATH_LIMIT_BYTES:
        raise SocketPathTooLong(longest, SOCKET_PATH_LIMIT_BYTES)
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _lock(run_dir / "node.lock")
    layout = Layout(run_dir / "node")
    shutil.rmtree(layout.root, ignore_errors=True)
    for directory in (layout.root, layout.workers, layout.store, layout.torchserve, layout.counters, layout.envoy):
        directory.mkdir(mode=0o700)
    return layout


def _lock(path: Path) -> None:
    """Hold `path` until the process ends, whatever ends it."""
    # Never closed, and not inherited by children: the lock is the process's life.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise NodeRuns(path) from None
