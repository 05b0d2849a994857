"""A Prometheus of this machine's, with a configuration of the tests'."""

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import wait_for

READY_WITHIN_SECONDS = 60.0


@contextmanager
def prometheus(config: Path, data: Path, port: int) -> Iterator[Callable[[str], Any]]:
    """A function that asks its API."""
    log = config.with_suffix(".log")
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=subprocess.STDOUT
        )

    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(asked("status/buildinfo"))
        except OSError:
            return False

    try:
        wait_for(answers, READY_WITHIN_SECONDS)
        yield asked
    finally:
        process.terminate()
        process.wait(30)
