"""The program helm, 3 or 4: found, told what to do without a shell, and read.

What takes time (upgrade, rollback) is started and watched. Neither `--atomic` nor `--rollback-on-failure` is used: pods
that do not get ready say why, and the driver reads that before it takes them back. `--force` is never used.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict

from deploy.errors import HelmFailed, HelmMissing, ReleaseMissing
from deploy.kubernetes.cluster import PATIENCE_SECONDS
from deploy.processes import dies_with_us

HISTORY_MAX = 20
"""Revisions that are kept: a rollout is two, and helm's own 10 would soon forget what to go back to."""
OLDEST = (3, 14)
"""The first with --reset-then-reuse-values, which the commands that are printed have."""
_READ_WITHIN_SECONDS = 60.0
_ENDS_WITHIN_SECONDS = 15.0
"""Told to end, helm writes that the revision has failed."""
_PAUSE_SECONDS = 1.0
UNREACHABLE = "unreachable"
"""In helm's words where no API server answers."""
NO_RELEASE = "release: not found"
_OF_OTHER_CLUSTERS = ("HELM_KUBE", "HELM_NAMESPACE", "HELM_DEBUG")
"""Beginnings of variables by which helm would look elsewhere than we do, or talk where its answer is read."""


class Revision(BaseModel):
    """One line of `helm history`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: int
    updated: datetime
    status: str
    chart: str
    description: str

    @property
    def good(self) -> bool:
        """Helm has waited for it with success once."""
        return self.status in ("deployed", "superseded")

    @property
    def pending(self) -> bool:
        """A helm is at work on it, or was killed."""
        return self.status.startswith("pending-")


class Work:
    """A helm at work, told values. It dies with this process: nobody else would know that it changes the release."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], told: str = "") -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - read when the program has ended
        with tempfile.TemporaryFile() as given:  # a pipe would break, or wait for ever, where helm does not read it
            given.write(told.encode())
            given.seek(0)
            self._process = self._started(command, environment, given.fileno())

    def _started(self, command: Sequence[str], environment: Mapping[str, str], given: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                stdin=given,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which then goes back
                preexec_fn=dies_with_us(signal.SIGTERM),  # noqa: PLW1509 - it allocates nothing and takes no lock
            )
        except OSError as error:
            self._output.close()
            raise HelmFailed(f"helm {command[1]}", str(error)) from error

    def done(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> str:
        """Tell it to end if it has not, and wait until it has: what it said last, or nothing where it has done it."""
        if not self.done():
            self._process.terminate()
            try:
                self._process.wait(_ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        with self._output:
            self._output.seek(0)
            lines = [line for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        code = self._process.returncode
        if code == 0:
            return ""
        said = f"helm: {lines[-1].removeprefix('Error: ')}" if lines else "helm said nothing"
        return f"{said} (ended by signal {-code})" if code < 0 else said


class Helm:
    """One release of one namespace. Every method raises HelmFailed."""

    def __init__(self, program: Path, major: int, release: str, namespace: str, context: str | None) -> None:
        self._program, self.major = program, major
        self.release, self.namespace = release, namespace
        self._where = ["--namespace", namespace, *(["--kube-context", context] if context else [])]

    @classmethod
    def found(cls, program: str, release: str, namespace: str, context: str | None) -> Self:
        """The program by that name or path. Raises HelmMissing for none, or for one too old or too new."""
        path = shutil.which(program)
        if path is None:
            raise HelmMissing(program, "there is no such program on the PATH")
        try:
            said = _read([path, "version", "--template", "{{.Version}}"])
        except HelmFailed as error:
            raise HelmMissing(program, error.words) from error
        version = re.match(r"v?(\d+)\.(\d+)", said)
        if version is None or not OLDEST <= (int(version[1]), int(version[2])) < (5, 0):
            raise HelmMissing(program, f"it says version {said[:50] or 'nothing'}")
        return cls(Path(path), int(version[1]), release, namespace, context)

    def history(self) -> list[Revision]:
        """Its revisions, the oldest first. Raises ReleaseMissing where there is no such release."""
        try:
            said = self._said("history", self.release, "--output", "json", "--max", str(HISTORY_MAX + 5))
        except HelmFailed as error:
            if NO_RELEASE in error.words:
                raise ReleaseMissing(self.release, self.namespace, "helm knows none") from error
            raise
        return sorted(map(Revision.model_validate, json.loads(said)), key=lambda one: one.revision)

    def chart(self, path: Path) -> str:
        """Name and version of a chart, as the history of a release says them."""
        found = yaml.safe_load(self._said("show", "chart", str(path)))
        return f"{found['name']}-{found['version']}"

    def values(self, revision: int) -> dict[str, Any]:
        """All values of a revision, the chart's defaults among them."""
        return self._values(revision, "--all")

    def own_values(self, revision: int) -> dict[str, Any]:
        """Those values of a revision that are not the chart's defaults."""
        return self._values(revision)

    def _values(self, revision: int, *options: str) -> dict[str, Any]:
        number = str(revision)
        said = self._said("get", "values", self.release, "--revision", number, *options, "--output", "json")
        return dict(json.loads(said) or {})

    def upgrade(self, chart: Path, values: Mapping[str, Any], description: str, timeout_seconds: float) -> Work:
        """To these values over the chart's defaults; then wait until pods are ready."""
        command = ["upgrade", self.release, str(chart), "--reset-values", "--values", "-"]
        command += ["--description", description, *self._waiting(timeout_seconds)]
        return self._work(command, json.dumps(values))

    def rollback(self, revision: int, timeout_seconds: float) -> Work:
        """Make what a revision was the newest one, then wait until pods are ready."""
        command = ["rollback", self.release, str(revision), *self._waiting(timeout_seconds)]
        if self.major >= 4 and self._applies_on_the_server():
            # Or one `kubectl scale` would stand between a bad version and its end.
            command.append("--force-conflicts")
        return self._work(command)

    def _waiting(self, timeout_seconds: float) -> list[str]:
        return ["--wait", "--timeout", f"{timeout_seconds:.0f}s", "--history-max", str(HISTORY_MAX)]

    def _applies_on_the_server(self) -> bool:
        said = self._said("get", "metadata", self.release, "--output", "json")
        return bool(json.loads(said).get("applyMethod") == "ssa")

    def _work(self, command: Sequence[str], told: str = "") -> Work:
        return Work([str(self._program), *command, *self._where], _environment(), told)

    def _said(self, *command: str) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return _read([str(self._program), *command, *self._where])
            except HelmFailed as error:
                if UNREACHABLE not in error.words or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)


def _read(command: Sequence[str]) -> str:
    """What a helm says that only reads."""
    words = " ".join(("helm", *command[1:3]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=_environment(), timeout=_READ_WITHIN_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HelmFailed(words, str(error)) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise HelmFailed(words, lines[-1].removeprefix("Error: "))
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_OTHER_CLUSTERS)}
