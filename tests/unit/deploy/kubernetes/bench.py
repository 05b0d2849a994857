"""A release without a cluster: helm in memory changes Deployments in memory, whose pods obey the routing ConfigMap."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.kubernetes.aim import found_in
from deploy.kubernetes.cluster import Json
from deploy.kubernetes.driver import HelmDriver
from deploy.kubernetes.helm import Helm, Revision, Work
from deploy.kubernetes.ledger import ClusterLedger
from deploy.kubernetes.there import Place
from deploy.kubernetes.tracks import read_tracks
from deploy.node.desired import Actual, ActualEndpoint, ActualVersion, Mirror
from deploy.node.routing import RoutingFile
from deploy.rollout.record import Release
from tests.unit.deploy.kubernetes.api import Answer, Api
from tests.unit.deploy.kubernetes.objects import FULLNAME, MODEL, ONE, TWO, deployment, pod

CHART = "shipway-0.1.0"
DEFAULTS = {"maxCanaryShare": 50}


def values(stable: Release, canary: Release | None = None) -> dict[str, Any]:
    """A release's own values."""
    found: dict[str, Any] = {"model": {"name": MODEL, "version": stable.version, "sha256": stable.digest}}
    if canary is not None:
        beside = {"version": canary.version, "sha256": canary.digest}
        found["canary"] = {"enabled": True, "model": beside, "weight": 0, "mirror": 0}
    return found


class Nodes(Api):
    """Its stable pods say that the split is in force which the ConfigMap asks for."""

    def run(self, stable: Release, canary: Release | None = None, *, broken: Mapping[int, Json] | None = None) -> None:
        """Both versions in pods that serve, but for those that have another status."""
        for key in [key for key in self.objects if key.startswith(("deployments/", "pods/"))]:
            del self.objects[key]
        for release in (stable, canary):
            if release is None:
                continue
            beside, status = release is canary, (broken or {}).get(release.version)
            unavailable = {"availableReplicas": 0} if status else {}
            self.add("deployments", deployment(release, canary=beside, **unavailable))
            self.add("pods", pod(_pod(release), release, canary=beside, **({"status": status} if status else {})))

    def _once(self, method: str, path: str, body: Json | None = None, *, seconds: float = 10.0) -> Answer:
        if path.endswith(":8082/proxy/actual"):
            return 200, self._actual().model_dump_json().encode()
        return super()._once(method, path, body, seconds=seconds)

    def _actual(self) -> Actual:
        tracks = read_tracks(self, "flights")
        found = self.objects.get(f"configmaps/{FULLNAME}-rollout")
        asked = RoutingFile.model_validate_json(found["data"]["routing.json"]).canary if found else None
        weight, mirror = (asked.weight, asked.mirror) if asked else (0, 0)
        weights = {tracks.stable.release: 100 - weight, **({tracks.canary.release: weight} if tracks.canary else {})}
        versions = tuple(ActualVersion(**one.model_dump(), weight=each, state="READY") for one, each in weights.items())
        copies = Mirror(version=asked.version, percent=mirror) if asked and mirror else None
        return Actual(pid=1, ready=True, endpoints=(ActualEndpoint(model=MODEL, versions=versions, mirror=copies),))


@dataclass
class _Made:
    """A revision."""

    status: str
    values: dict[str, Any]
    description: str


class MemoryHelm(Helm):
    """Its deeds are done at the second look, or fail with what `failing` says next, or hang."""

    def __init__(self, api: Nodes) -> None:
        super().__init__(Path("helm"), 4, "flights", api.namespace, "desk")
        self.api = api
        self.made: list[_Made] = []
        self.deeds: list[str] = []
        self.failing: list[str] = []
        self.hangs = False
        self.broken: dict[int, Json] = {}
        """By version, the status of a pod that does not serve."""

    def add(self, status: str, own: dict[str, Any], description: str = "") -> None:
        if status == "deployed":
            for one in self.made:
                one.status = "superseded" if one.status == "deployed" else one.status
        self.made.append(_Made(status, own, description))

    def history(self) -> list[Revision]:
        at = datetime(2026, 11, 24, 10, tzinfo=UTC)
        return [
            Revision(revision=number, updated=at, status=one.status, chart=CHART, description=one.description)
            for number, one in enumerate(self.made, 1)
        ]

    def chart(self, path: Path) -> str:  # noqa: ARG002 - there is one
        return CHART

    def values(self, revision: int) -> dict[str, Any]:
        return {**DEFAULTS, **self.own_values(revision)}

    def own_values(self, revision: int) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self.made[revision - 1].values)))

    def upgrade(self, chart: Path, values: Mapping[str, Any], description: str, timeout_seconds: float) -> Work:
        assert chart == Path("chart")
        self.deeds.append(f"upgrade to {description}, within {timeout_seconds:g} s")
        return self._at_work("pending-upgrade", dict(values), description)

    def rollback(self, revision: int, timeout_seconds: float) -> Work:
        self.deeds.append(f"rollback to {revision}, within {timeout_seconds:g} s")
        return self._at_work("pending-rollback", self.own_values(revision), f"Rollback to {revision}")

    def _at_work(self, status: str, own: dict[str, Any], description: str) -> Work:
        for one in self.made:
            one.status = "failed" if one.status.startswith("pending-") else one.status
        self.add(status, own, description)
        return MemoryWork(self, self.made[-1])


class MemoryWork(Work):
    def __init__(self, helm: MemoryHelm, made: _Made) -> None:
        self._helm, self._made, self._looks = helm, made, 0

    def done(self) -> bool:
        self._looks += 1
        aim = found_in(self._made.values)
        assert aim is not None
        self._helm.api.run(aim.stable, aim.canary, broken=self._helm.broken)
        return self._looks > 1 and not self._helm.hangs

    def end(self) -> str:
        self._made.status = "failed"
        if not self.done():
            return "helm said nothing (ended by signal 15)"
        if self._helm.failing:
            return self._helm.failing.pop(0)
        self._helm.made.remove(self._made)
        self._helm.add("deployed", self._made.values, self._made.description)
        return ""


def _pod(release: Release) -> str:
    return f"flights-{release.version}"


@dataclass
class Bench:
    """Version 1 is installed."""

    api: Nodes = field(default_factory=Nodes)
    consents: bool = False
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.helm = MemoryHelm(self.api)
        self.helm.add("deployed", values(ONE))
        self.api.run(ONE)

    @property
    def place(self) -> Place:
        return Place(self.helm, self.api, read_tracks(self.api, "flights"))

    @property
    def ledger(self) -> ClusterLedger:
        return ClusterLedger(self.api, FULLNAME, MODEL)

    @property
    def driver(self) -> HelmDriver:
        """A new process's."""
        return HelmDriver(self.helm, self.api, Path("chart"), self._take_over)

    def canary_is_on(self, weight: int = 0) -> None:
        """Version 2 beside version 1."""
        self.helm.add("deployed", values(ONE, TWO))
        self.api.run(ONE, TWO)
        if weight:
            canary = {**TWO.model_dump(), "host": "c", "port": 8081, "weight": weight, "mirror": 0}
            data = {"routing.json": json.dumps({"canary": canary})}
            self.api.write_config_map(f"{FULLNAME}-rollout", {}, data)

    def _take_over(self, words: str) -> bool:
        self.asked.append(words)
        return self.consents
