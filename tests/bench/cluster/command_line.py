"""The command line of Shipway as a person types it, about a release."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.rollout.commands import ROLLED_BACK
from model_store.mlflow_environment import ENVIRONMENT
from tests import helm_binaries
from tests.cluster.conftest import CHART
from tests.cluster.registry import MODEL, Version
from tests.cluster.release import NAME, Release

PROGRAM = Path(sys.executable).with_name("shipway")
COMMAND_SECONDS = 600.0
POLICY: dict[str, Any] = {
    "steps": [{"weight": weight, "seconds": 15, "requests": 40, "give_up_seconds": 180} for weight in (5, 25, 100)],
    "memory": {"seconds": 10},  # as long as a rollout of these steps takes
    # The same few rows over and over: they always drift, and versions are told apart by what they predict of them.
    "on_input_drift": "nothing",
    "predictions": {"effect": 100, "share": 0.99},
}


@dataclass(frozen=True)
class CommandLine:
    release: Release
    directory: Path
    """Of its own state and policy."""
    prometheus_url: str

    def roll_out(self, version: Version, *, promoted: bool) -> str:
        """What it says. Raises AssertionError where the rollout ends otherwise than expected."""
        done = self._run("rollout", MODEL, str(version.number), "--yes")
        expected = 0 if promoted else ROLLED_BACK
        assert done.returncode == expected, f"{expected} expected, ended with {done.returncode}: {said(done)}"
        return said(done)

    def begin(self, version: Version) -> "subprocess.Popen[bytes]":
        """A rollout that goes on in the background."""
        command = [str(PROGRAM), "rollout", MODEL, str(version.number), "--yes"]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.directory
        )

    def adopt(self) -> None:
        """Let the ledger follow what was done by helm alone."""
        done = self._run("status", "--adopt")
        assert done.returncode == 0, said(done)

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [PROGRAM, *arguments],
            env=self._environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    @property
    def _environment(self) -> dict[str, str]:
        lab, policy = self.release.lab, self.directory / "rollouts.yaml"
        policy.write_text(yaml.safe_dump({"defaults": POLICY}))
        settings = {
            "STATE_DIR": self.directory / "state",
            "HELM_RELEASE": NAME,
            "HELM_NAMESPACE": self.release.namespace,
            "HELM": helm_binaries.helm(self.release.major),
            "HELM_CHART": CHART,
            "MLFLOW_URI": lab.mlflow.uri,
            "PROMETHEUS_URL": self.prometheus_url,
            "TRUSTED_KEYS": lab.store.public_key,
            "ROLLOUT_CONFIG": policy,
        }
        ours = {f"SHIPWAY_{name}": str(value) for name, value in settings.items()}
        return {**lab.cluster.environment, **ENVIRONMENT, **ours}


def said(done: "subprocess.CompletedProcess[str]") -> str:
    return f"{done.stdout}{done.stderr}".strip()
