"""The README's session and the commands that the demo prints, run as a person would paste them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.processes import marked
from deploy.settings import Settings, variable
from tests.stacks import PORTS, free_stack_ports

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Clone:
    """A working directory in which a demo has run, on free ports."""

    directory: Path
    environment: dict[str, str]
    demo_output: str

    def paste(self, commands: str) -> str:
        """Run commands in a shell that stops at the first failure; what they printed."""
        for name in PORTS:
            commands = commands.replace(str(Settings.model_fields[name].default), self.environment[variable(name)])
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert result.returncode == 0, f"{commands}\n{result.stdout}\n{result.stderr}"
        return result.stdout

    def printed(self, title: str) -> str:
        """The commands that the demo printed under a title."""
        found = re.search(rf"^{title}\n(.*?)(\n\n|\Z)", self.demo_output, re.DOTALL | re.MULTILINE)
        assert found is not None, f"{title!r} is not in\n{self.demo_output}"
        return found[1]


@pytest.fixture(scope="module")
def clone(short_directory: Callable[[], Path]) -> Iterator[Clone]:
    """What `make demo` leaves behind."""
    directory = short_directory()
    (directory / ".venv").symlink_to(sys.prefix)
    ports = {variable(name): str(port) for name, port in free_stack_ports().items()}
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **ports}
    try:
        demo = subprocess.run(
            [".venv/bin/shipway", "demo"],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert demo.returncode == 0, demo.stdout + demo.stderr
        yield Clone(directory, environment, demo.stdout)
    finally:
        subprocess.run([".venv/bin/shipway", "down"], cwd=directory, env=environment, check=True)
    assert marked(directory / ".shipway") == []


def test_demo_answers_three_flights_over_three_protocols(clone: Clone) -> None:
    for protocol in ("HTTP, OIP", "HTTP, rows", "gRPC, OIP"):
        assert len(re.findall(rf"│ *[\d.]+% *│ (?:late|on time) *│ {protocol} *│ 1 *│", clone.demo_output)) == 1


def test_printed_curl_commands_work(clone: Clone) -> None:
    answers = clone.paste(clone.printed("Ask again over HTTP"))
    assert answers.count("HTTP/1.1 200 OK") == 2
    assert answers.count("x-shipway-version: 1") == 2


def test_printed_python_asks_over_grpc(clone: Clone) -> None:
    assert 'name: "probability"' in clone.paste(clone.printed("Ask again over gRPC, from Python"))


def test_label_is_sent_as_the_readme_shows(clone: Clone) -> None:
    (block,) = re.findall(r"<!-- feedback -->\n```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert '"joined": 1' in clone.paste(block)


def test_session_of_the_readme(clone: Clone) -> None:
    blocks = re.findall(r"<!-- session -->\n```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    asked, retrained, looked = (clone.paste(block) for block in blocks)
    assert '"model_version":"1"' in asked
    assert "Registered models:/flights/2" in retrained
    assert '"model_version":"1"' in retrained
    assert '"status":"success"' in looked
    assert re.search(r"Stopped \d+ processes", looked)
