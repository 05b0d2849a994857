"""The Kubernetes of the cluster tests: one that the program in SHIPWAY_KUBE_KIT starts, or that of KUBECONFIG.

The program's verbs are `up`, which prints the environment to use, `load IMAGE.tar`, `crds` and `operator`, which add
custom resources and the Prometheus operator, `nodes COUNT LABEL=VALUE`, which adds machines with eight GPUs that run
nothing, `kill COMPONENT` and `start COMPONENT`, and `down`. In a cluster of KUBECONFIG's, SHIPWAY_KUBE_LOAD is the
command that takes an image archive into it.
"""

import contextlib
import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests import helm_binaries

KUBECONFIG = os.environ.get("KUBECONFIG", "")
KIT = os.environ.get("SHIPWAY_KUBE_KIT", "")
LOAD = os.environ.get("SHIPWAY_KUBE_LOAD", "kind load image-archive")
"""All three read before any test runs, which sees no SHIPWAY_ variables."""

MISSING = "" if KUBECONFIG or KIT else "set KUBECONFIG, or SHIPWAY_KUBE_KIT to a program that starts one"
"""What to do where there is neither."""

COMMAND_SECONDS = 180.0
UP_SECONDS = 300.0


class CommandFailed(AssertionError):
    """A program of the cluster's did not end with 0."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.done = done
        command = shlex.join(map(str, done.args))
        super().__init__(f"{command} ended with {done.returncode}: {done.stderr.strip()}\n{done.stdout.strip()}")


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and how it is asked."""

    kubeconfig: Path
    home: Path
    """Of helm: its caches and settings, none of them the user's."""
    load: Sequence[str]
    kit: Sequence[str] | None

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """What it prints. Raises CommandFailed."""
        return self._checked(self.run(helm_binaries.kubectl(), *arguments, stdin=stdin, seconds=seconds))

    def json(self, *arguments: str) -> Any:
        """What `kubectl ARGUMENTS --output json` prints."""
        return json.loads(self.kubectl(*arguments, "--output", "json"))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        document = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--server-side", "--filename", "-", stdin=json.dumps(document))

    def helm(self, major: int, *arguments: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
        """What it prints. Raises CommandFailed."""
        return self._checked(self.run(helm_binaries.helm(major), *arguments, stdin=stdin, seconds=seconds))

    def run(
        self, program: Path, *arguments: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        """Helm or kubectl, whatever it ends with."""
        return subprocess.run(
            [program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=seconds,
            check=False,
        )

    @property
    def environment(self) -> dict[str, str]:
        """For helm, kubectl and our own command line."""
        homes = {name: str(self.home / name) for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "SHIPWAY_"))}
        return {**ours, **homes, "KUBECONFIG": str(self.kubeconfig)}

    @cached_property
    def node_ip(self) -> str:
        """Where NodePorts answer, from here and from pods."""
        addresses = self.json("get", "nodes")["items"][0]["status"]["addresses"]
        return str(next(one["address"] for one in addresses if one["type"] == "InternalIP"))

    @cached_property
    def own_ip(self) -> str:
        """This machine's address on the way to the node, where pods reach what the tests start."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.node_ip, 9))  # sends nothing
            return str(probe.getsockname()[0])

    def from_pod(self, namespace: str, pod: str, port: int, path: str) -> str:
        """What a pod answers with 200, through the API server. Raises CommandFailed."""
        return self.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}")

    def load_image(self, archive: Path) -> None:
        """Take an image into the node."""
        done = subprocess.run([*self.load, archive], capture_output=True, text=True, timeout=UP_SECONDS, check=False)
        self._checked(done)

    def add(self, what: str, kind: str) -> bool:
        """Have the kit add `crds` or `operator`. Otherwise, whether the cluster has the custom resource `kind`."""
        if self.kit:
            try:
                _kit([*self.kit, what])
            except CommandFailed:
                # It looks for a status that a new custom resource has not at once.
                _kit([*self.kit, what])
            return True
        return self.run(helm_binaries.kubectl(), "get", "customresourcedefinition", kind).returncode == 0

    def gpu_nodes(self, count: int) -> bool:
        """Have the kit add machines with eight GPUs each, for the scheduler alone; False without one."""
        if self.kit:
            _kit([*self.kit, "nodes", str(count), "nvidia.com/gpu.product=H100"])
        return bool(self.kit)

    def kill(self, component: str) -> None:
        """SIGKILL a component of Kubernetes' own, like kubelet; only where the kit started the cluster."""
        assert self.kit
        _kit([*self.kit, "kill", component])

    def start(self, component: str) -> None:
        """Start it again."""
        assert self.kit
        _kit([*self.kit, "start", component])

    def _checked(self, done: "subprocess.CompletedProcess[str]") -> str:
        if done.returncode:
            raise CommandFailed(done)
        return done.stdout


@contextlib.contextmanager
def cluster(state: Path) -> Iterator[Cluster]:
    """The cluster; one that is started here keeps its files below `state`, and ends."""
    home = state / "helm"
    if not KIT:  # first, as KUBECONFIG may be set for everyday work
        yield Cluster(Path(KUBECONFIG), home, shlex.split(LOAD), None)
        return
    kit = [KIT, "--dir", str(state / "kube")]
    try:
        lines = _kit([*kit, "up"]).splitlines()
        found = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        yield Cluster(Path(found["KUBECONFIG"]), home, [*kit, "load"], kit)
    finally:
        _kit([*kit, "down"])


def _kit(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=UP_SECONDS, check=False)
    if done.returncode:
        raise CommandFailed(done)
    return done.stdout
