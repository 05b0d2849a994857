"""A release of the chart by helm alone, and questions to it as its clients ask."""

import json
import socket
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.cluster.conftest import CHART, Lab
from tests.cluster.registry import MODEL, Version
from tests.cluster.steady import KNOWN_WITHIN_SECONDS
from tests.waiting import wait_for

NAME = "flights"
FULLNAME = "flights-shipway"
TIMEOUT_SECONDS = 240
WAIT = ("--wait", "--timeout", f"{TIMEOUT_SECONDS}s")
TRACK = "shipway.dev/track"
SERVICE_KNOWN_WITHIN_SECONDS = 20.0
"""To kube-proxy, for which helm does not wait."""


@dataclass
class Release:
    """One release, by Helm 3 or 4."""

    lab: Lab
    namespace: str
    major: int = 4
    chart: str = str(CHART)

    def install(self, version: Version, *, wait: bool = True, **changes: Any) -> None:
        """`changes` are values of the chart. Raises CommandFailed."""
        values = json.dumps({"replicaCount": 1, **self.lab.values(version, **changes)})
        options = WAIT if wait else ()
        self.helm("install", NAME, self.chart, "--values", "-", *options, stdin=values)
        if wait:
            wait_for(self._taken, SERVICE_KNOWN_WITHIN_SECONDS)

    def upgrade(self, *options: str, wait: bool = True) -> str:
        """To the chart's defaults, the values so far, and these options (`--set …`). Raises CommandFailed."""
        waiting = WAIT if wait else ()
        return self.helm("upgrade", NAME, self.chart, "--reset-then-reuse-values", *waiting, *options)

    def rollback(self, revision: int, *options: str) -> str:
        """Raises CommandFailed."""
        return self.helm("rollback", NAME, str(revision), *WAIT, *options)

    def helm(self, *arguments: str, stdin: str | None = None, seconds: float = TIMEOUT_SECONDS + 60) -> str:
        """In the release's namespace. Raises CommandFailed."""
        arguments = (*arguments, "--namespace", self.namespace)
        return self.lab.cluster.helm(self.major, *arguments, stdin=stdin, seconds=seconds)

    def kubectl(self, *arguments: str) -> str:
        return self.lab.cluster.kubectl("--namespace", self.namespace, *arguments)

    def json(self, *arguments: str) -> Any:
        return self.lab.cluster.json("--namespace", self.namespace, *arguments)

    @property
    def history(self) -> list[str]:
        """The status of each revision."""
        return [str(one["status"]) for one in json.loads(self.helm("history", NAME, "--output", "json"))]

    @property
    def notes(self) -> str:
        """What helm tells whoever installed or upgraded it last."""
        return self.helm("get", "notes", NAME)

    @property
    def objects(self) -> set[str]:
        """KIND/NAME of all that belongs to it, but for what controllers made of that."""
        kinds = self.lab.cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        listed = ",".join(kind for kind in kinds if not kind.startswith("events"))
        found = self.json("get", listed, "--selector", f"app.kubernetes.io/instance={NAME}")["items"]
        return {
            f"{one['kind']}/{one['metadata']['name']}" for one in found if not one["metadata"].get("ownerReferences")
        }

    @property
    def template(self) -> str:
        """The pods', as the API server has it."""
        return json.dumps(self.json("get", "deployment", FULLNAME)["spec"]["template"], sort_keys=True)

    def pods(self, track: str = "stable") -> list[Any]:
        """Those that are not being deleted."""
        selector = f"app.kubernetes.io/instance={NAME},{TRACK}={track}"
        found = self.json("get", "pods", "--selector", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    @property
    def port(self) -> int:
        """Where the node's address answers."""
        ports = self.json("get", "service", FULLNAME)["spec"]["ports"]
        return int(next(one["nodePort"] for one in ports if one["name"] == "http"))

    @property
    def address(self) -> str:
        return f"{self.lab.cluster.node_ip}:{self.port}"

    def ask(self, version: Version) -> tuple[dict[str, str], list[float]]:
        """Headers of the answer (names in lower case) to the golden request of `version`, and the first output."""
        request = urllib.request.Request(
            f"http://{self.address}/v2/models/{MODEL}/infer",
            json.dumps(version.golden["request"]).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return headers, json.loads(answer.read())["outputs"][0]["data"]

    def serves(self, version: Version) -> None:
        """It alone answers requests on connections of their own, soon after what was done, and from then on."""
        wait_for(lambda: self._answering() == {version.number}, KNOWN_WITHIN_SECONDS)
        assert self._answering() == {version.number}

    def _taken(self) -> bool:
        """Whether the node takes connections for a Service that is new."""
        try:
            socket.create_connection((self.lab.cluster.node_ip, self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def _answering(self) -> set[int]:
        return {int(self.ask(self.lab.good)[0]["x-shipway-version"]) for _ in range(8)}

    def wait_until_ready(self, within_seconds: float = TIMEOUT_SECONDS) -> None:
        """Until every pod of the stable version is."""

        def ready() -> bool:
            status = self.json("get", "deployment", FULLNAME)["status"]
            return bool(status.get("readyReplicas", 0) == status["replicas"])

        wait_for(ready, within_seconds)


def to(version: Version) -> tuple[str, ...]:
    """Options of an upgrade to `version`."""
    return ("--set", f"model.version={version.number}", "--set", f"model.sha256={version.digest}")


def canary(version: Version) -> tuple[str, ...]:
    """Options that switch a canary of `version` on."""
    model = f"canary.model.version={version.number}", f"canary.model.sha256={version.digest}"
    return ("--set", "canary.enabled=true", "--set", model[0], "--set", model[1])
