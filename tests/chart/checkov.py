"""checkov, in an environment of its own: it wants other versions of half of our libraries."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.helm_binaries import ROOT

REQUIREMENT = "checkov==3.3.30"
HOME = ROOT / ".shipway" / "checkov"
WITHIN_SECONDS = 180


def findings(manifests: Mapping[str, str]) -> set[tuple[str, str]]:
    """Check and kind of object of everything that checkov finds in these files of YAML."""
    with tempfile.TemporaryDirectory() as directory:
        for name, text in manifests.items():
            Path(directory, f"{name}.yaml").write_text(text)
        # Nothing is downloaded, and nothing is sent to its makers.
        options = ["--framework", "kubernetes", "--skip-download", "--output", "json", "--compact", "--quiet"]
        done = subprocess.run(
            [str(_installed()), "--directory", directory, *options],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": directory},
            timeout=WITHIN_SECONDS,
            check=False,
        )
    found = json.loads(done.stdout)
    if found["summary"]["parsing_errors"] or not found["summary"]["passed"]:
        raise RuntimeError(f"checkov did not read everything: {found['summary']} {done.stderr[-500:]}")
    return {(one["check_id"], one["resource"].partition(".")[0]) for one in found["results"]["failed_checks"]}


def _installed() -> Path:
    """The program. Raises subprocess.CalledProcessError when pip fails; it has said why."""
    mark, program = HOME / "requirement", HOME / "bin" / "checkov"
    if mark.is_file() and mark.read_text() == REQUIREMENT:
        return program
    venv.create(HOME, clear=True, with_pip=True, symlinks=True)
    pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", REQUIREMENT]
    subprocess.run(pip, check=True, stdout=sys.stderr)
    mark.write_text(REQUIREMENT)
    return program
