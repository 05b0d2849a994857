"""Print what a pod needs, one requirement a line. Usage: requirements.py TORCH (cpu, cuda, or a label like cu130)."""

import sys
import tomllib
from pathlib import Path

EXTRAS = ("node", "pod", "postgres")


def requirements(torch: str) -> list[str]:
    """The requirements of the extras, with this build of torch in place of any."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    return [_build_of(torch, one) if one.startswith("torch==") else one for one in named]


def _build_of(torch: str, requirement: str) -> str:
    # PyPI's own build, the one with CUDA, is the one without a label, and `==` would take any label for it.
    return requirement.replace("==", "===") if torch == "cuda" else f"{requirement}+{torch}"


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")
