"""The node's image for the cluster tests: built by what `make image` runs, once for each state of what is in it."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "image" / "Dockerfile"
REPOSITORY = "localhost/shipway-test"
BUILD_SECONDS = 900.0
PULL_SECONDS = 300.0
_MAKING = (".dockerignore", ".ci/image")
_ONE_AT_A_TIME = threading.Lock()
_BASE = "localhost/shipway-test-base:bookworm"
_DEBIAN = ("--variant=minbase", "--include=ca-certificates,python3,python3-venv", "bookworm")


@dataclass(frozen=True)
class Image:
    """An image that is on the node."""

    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def image(cluster: Cluster, state: Path) -> Image:
    """The image of this checkout, on the node of `cluster`; its archive stays below `state` for the next run."""
    found = Image(REPOSITORY, _content())
    if str(found) in on_node(cluster):
        return found
    archive = state / f"{found.tag}.tar"
    if not archive.exists():
        state.mkdir(parents=True, exist_ok=True)
        for older in state.glob("*.tar"):
            older.unlink()
        draft = archive.with_suffix(".draft")
        _build(found, draft)
        draft.rename(archive)
    cluster.load_image(archive)
    return found


def _content() -> str:
    """A digest of every file that the image is made of, and of what it is made with."""
    digest = hashlib.sha256("\0".join(os.environ.get(name, "") for name in ("BASE", "TORCH")).encode())
    for path in sorted(_files()):
        digest.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _files() -> Iterator[Path]:
    yield from (ROOT / name for name in _MAKING)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for kept in (line[1:] for line in lines if line.startswith("!")):
        for path in ROOT.glob(f"{kept}/*" if kept.endswith("**") else kept):
            if path.is_file() and path.suffix != ".md" and "__pycache__" not in path.parts:
                yield path


def on_node(cluster: Cluster) -> set[str]:
    """Names of the images that the node has."""
    images = cluster.json("get", "nodes")["items"][0]["status"].get("images", [])
    return {name for one in images for name in one.get("names") or ()}


def _build(wanted: Image, archive: Path) -> None:
    environment = {**os.environ, "BASE": os.environ.get("BASE") or base()}
    command = [str(ROOT / ".ci" / "image"), sys.executable, str(wanted), str(archive)]
    subprocess.run(command, env=environment, stdout=sys.stderr, timeout=BUILD_SECONDS, check=True)


def base() -> str:
    """The base that the Dockerfile names, or Debian with its own Python where no image registry is reached."""
    with _ONE_AT_A_TIME:  # two images begin with it
        return _base()


def _base() -> str:
    (named,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    builder = subprocess.run([ROOT / ".ci" / "builder"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    with contextlib.suppress(subprocess.SubprocessError):  # nobody answers, or says no
        subprocess.run([builder, "pull", named], capture_output=True, timeout=PULL_SECONDS, check=True)
        return str(named)
    sys.stderr.write(f"{named} cannot be pulled here, so the image is built on Debian as mmdebstrap makes it\n")
    inspect = [builder, "inspect", "--type", "image", _BASE]
    if subprocess.run(inspect, capture_output=True, timeout=PULL_SECONDS, check=False).returncode:
        _make_base(builder)
    return _BASE


def _make_base(builder: str) -> None:
    """Debian in one layer, by the packages that this machine's apt finds."""
    assert shutil.which("mmdebstrap"), "install mmdebstrap, or set BASE to an image that is here and has Python 3.11"
    folder = ROOT / ".shipway" / "image" / "base"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mmdebstrap", "--quiet", *_DEBIAN, folder / "base.tar"], timeout=BUILD_SECONDS, check=True)
    (folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    isolation = ["--isolation", "chroot"] if builder == "buildah" else []
    subprocess.run([builder, "build", *isolation, "--tag", _BASE, folder], stdout=sys.stderr, check=True)
    (folder / "base.tar").unlink()
