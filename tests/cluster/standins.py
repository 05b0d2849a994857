"""An image whose program stands in for the node: a release of it is ready in a second, whatever its digest."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.image import BUILD_SECONDS, ROOT, Image, base, on_node

MODEL = "flights"
FOLDER = Path(__file__).parent / "standin"
NEVER_READY, NOT_FETCHED = 4, 5
"""Versions of a fault, as its program has it."""


def digest(version: int) -> str:
    return f"sha256:{version:064x}"


def values(version: int, **changes: Any) -> dict[str, Any]:
    """The chart's, for a release whose archives nobody fetches."""
    return {
        "model": {"name": MODEL, "version": version, "sha256": digest(version)},
        "source": {"mlflow": {"trackingUri": "http://127.0.0.1:9"}},
        "trust": {"publicKeys": ["-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----"]},
        "insecure": True,
        "startup": {"budgetSeconds": 10},
        "progressDeadlineSeconds": 14,
        **changes,
    }


def standin(cluster: Cluster, state: Path) -> Image:
    """The image, on the node of `cluster`."""
    content = b"".join(path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.is_file())
    found = Image("localhost/shipway-standin", hashlib.sha256(content).hexdigest()[:16])
    if str(found) in on_node(cluster):
        return found
    builder = subprocess.run([ROOT / ".ci" / "builder"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    isolation = ["--isolation", "chroot", "--format", "docker"] if builder == "buildah" else []
    build = [builder, "build", *isolation, "--build-arg", f"BASE={base()}", "--tag", str(found), str(FOLDER)]
    subprocess.run(build, stdout=sys.stderr, timeout=BUILD_SECONDS, check=True)
    state.mkdir(parents=True, exist_ok=True)
    archive = state / f"standin-{found.tag}.archive"
    archive.unlink(missing_ok=True)
    save = [builder, "push", "--quiet", str(found), f"docker-archive:{archive}:{found}"]
    if builder != "buildah":
        save = [builder, "save", "--output", str(archive), str(found)]
    subprocess.run(save, stdout=sys.stderr, timeout=BUILD_SECONDS, check=True)
    cluster.load_image(archive)
    archive.unlink()
    return found
