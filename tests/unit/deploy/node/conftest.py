"""A layout, an edge and endpoints for the tests of the node's parts."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.envoy import Edge
from deploy.node.layout import Layout, make_layout
from tests.unit.deploy.node.real_edge import RealEdge, real_edge

DIGESTS = {version: f"sha256:{version:064x}" for version in range(1, 4)}


def let_go(run_dir: Path) -> None:
    """Close this process's locks of `run_dir`, which the system otherwise does when a node's process ends."""
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        if descriptor.is_symlink() and descriptor.readlink() == run_dir / "node.lock":
            os.close(int(descriptor.name))


@pytest.fixture
def layout(state_dir: Path) -> Iterator[Layout]:
    yield make_layout(state_dir / "run")
    let_go(state_dir / "run")


@pytest.fixture
def edge(state_dir: Path, free_ports: Callable[[int], list[int]]) -> Edge:
    return Edge(
        host="127.0.0.1",
        port=free_ports(1)[0],
        max_body_bytes=1 << 20,
        timeout_seconds=2.5,
        access_log=state_dir / "access.log",
        threads=1,
    )


@pytest.fixture
def endpoint() -> DesiredEndpoint:
    """Three versions: 90, 10, and one that only those get who pin it."""
    versions = zip((1, 2, 3), (90, 10, 0), strict=True)
    return DesiredEndpoint(
        model="flights",
        versions=tuple(DesiredVersion(version=v, digest=DIGESTS[v], weight=weight) for v, weight in versions),
    )


@pytest.fixture(scope="module")
def real(free_ports: Callable[[int], list[int]]) -> Iterator[RealEdge]:
    """One Envoy for the tests of one module: version 1 has 50, version 2 has 50, version 3 none."""
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    edge = Edge("127.0.0.1", free_ports(1)[0], 1 << 20, 5.0, directory / "access.log", threads=1)
    versions = zip((1, 2, 3), (50, 50, 0), strict=True)
    endpoint = DesiredEndpoint(
        model="flights",
        versions=tuple(DesiredVersion(version=v, digest=DIGESTS[v], weight=weight) for v, weight in versions),
    )
    with real_edge(make_layout(directory / "run"), edge, [endpoint]) as running:
        yield running
    let_go(directory / "run")
    shutil.rmtree(directory)
