"""A release with two stable pods under steady load from beginning to end, and what happens to it meanwhile."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.kubernetes.pods import VERSION, ready
from deploy.kubernetes.routing import ROUTED
from tests.bench.cluster.command_line import CommandLine
from tests.bench.cluster.scraping import METRICS_PORT, scraped
from tests.cluster import cluster as clusters
from tests.cluster.cluster import CommandFailed
from tests.cluster.conftest import STATE, Lab, built_image, namespace_for, open_lab
from tests.cluster.registry import MODEL, Version, questions
from tests.cluster.release import NAME, TRACK, Release, canary, to
from tests.cluster.steady import RATE, Steady
from tests.waiting import wait_for

REPLICAS = 2
BEFORE_SECONDS = 8.0
"""Of load before each event, at least, to compare with."""
SETTLED_SECONDS = 240.0
BAD = "resetting"
"""A kind of bad version that costs no client an answer: the stable pods answer what the canary does not."""
BAD_SEED = 5
"""Of its training: it answers otherwise than both good ones to every question of the load."""
STARTUP: Mapping[str, Any] = {"startup": {"budgetSeconds": 75}, "progressDeadlineSeconds": 85}
"""As little as a busy machine allows: so long takes what never gets ready."""


@dataclass(frozen=True)
class State:
    """What a release should run."""

    stable: Version
    canary: Version | None = None
    weight: int = 0

    @property
    def meant(self) -> tuple[int, ...]:
        """Versions whose answers are right ones."""
        return (self.stable.number, *((self.canary.number,) if self.canary and self.weight else ()))

    @property
    def tracks(self) -> dict[str, int]:
        """The version of each Deployment."""
        return {"stable": self.stable.number, **({"canary": self.canary.number} if self.canary else {})}

    @property
    def weights(self) -> dict[int, int]:
        """Of the versions with traffic."""
        beside = {self.canary.number: self.weight} if self.canary and self.weight else {}
        return {self.stable.number: 100 - self.weight, **beside}

    @property
    def options(self) -> tuple[str, ...]:
        """By which helm brings it about from any other."""
        beside = canary(self.canary) if self.canary else ("--set", "canary.enabled=false")
        return (*to(self.stable), *beside, "--set", f"canary.weight={self.weight}")


@dataclass
class Event:
    """Something that happened to the release."""

    name: str
    start: float
    """On the monotonic clock, seconds."""
    end: float = 0.0
    problem: str = ""
    """Why it did not go as it should."""
    skipped: str = ""


@dataclass
class Ground:
    """Where everything happens; what is meant to serve is told to the load."""

    lab: Lab
    bad: Version
    release: Release
    load: Steady
    shipway: CommandLine
    nodes_namespace: str
    """Where a pod may do as it likes."""
    console: Console
    state: State | None = None
    """None where something went wrong."""
    events: list[Event] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    """Of a canary at 5%, in percent, by protocol."""

    @contextlib.contextmanager
    def event(self, name: str) -> Iterator[None]:
        """What goes on meanwhile; an AssertionError is noted, and the next event begins anew."""
        self.go_on(int(BEFORE_SECONDS * RATE))
        event = Event(name, time.monotonic())
        self.events.append(event)
        try:
            yield
            self.wait_until_whole()
        except (AssertionError, OSError, ValueError) as error:
            event.problem = f"{error}"
            self.lost()
        event.end = time.monotonic()
        self.console.log(f"{name}: {event.end - event.start:.0f} s {event.problem}", markup=False)

    @contextlib.contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Events that begin with the first version alone in service; if they cannot go on, others do."""
        start = time.monotonic()
        try:
            self.bring(State(self.lab.good))
            yield
        except (AssertionError, OSError, ValueError) as error:
            self.events.append(Event(f"between the events of {name}", start, time.monotonic(), f"{error}"))
            self.console.log(f"{name}: {error}", markup=False)
            self.lost()

    def skip(self, name: str, why: str) -> None:
        self.events.append(Event(name, time.monotonic(), time.monotonic(), skipped=why))
        self.console.log(f"{name}: skipped, {why}", markup=False)

    def lost(self) -> None:
        """Nobody knows what runs: anything may answer until that is known again."""
        self.state = None
        self.load.meant(*self._all)

    def bring(self, wanted: State) -> None:
        """Between events, and soon; nothing to do where it is so."""
        if self.state == wanted:
            return

        def soon() -> None:
            self.upgrade(wanted)
            self._touch()

        self.change(wanted, soon)
        self.wait_until_whole()

    def upgrade(self, wanted: State) -> None:
        """By helm alone, from whatever there is."""
        self.release.upgrade(*wanted.options)

    def change(self, wanted: State, how: Callable[[], object], *tried: Version) -> None:
        """From what there is to `wanted`: until it is done, all versions of both and those `tried` are meant to serve.

        A weight takes its time to be known to the stable pods; a version does not, once helm has waited.
        """
        before = self.state.meant if self.state else self._all
        reweighted = self.state is None or self.state.stable == wanted.stable
        with self.load.during((*before, *wanted.meant, *(one.number for one in tried)), wanted.meant):
            how()
            if reweighted:
                self.wait_until_in_force(wanted)
        self.wait_until_in_force(wanted)
        self.state = wanted

    def wait_until_in_force(self, wanted: State) -> None:
        """Versions and weights, of which the latter are what stable pods say."""
        wait_for(lambda: self._tracks() == wanted.tracks and self._weights() == [wanted.weights], SETTLED_SECONDS)

    def wait_until_whole(self) -> None:
        """Every pod that there is to be is ready, and none is on its way out."""
        wait_for(self._whole, SETTLED_SECONDS)

    def go_on(self, requests: int) -> None:
        """Until the load has asked so many more."""
        wanted = self.load.requests + requests
        wait_for(lambda: self.load.requests >= wanted, 60 + 4 * requests / RATE)

    @property
    def _all(self) -> tuple[int, ...]:
        return (self.lab.good.number, self.lab.other.number, self.bad.number)

    def _touch(self) -> None:
        """The kubelet then delivers ConfigMaps at once, which else takes it a minute."""
        annotation = f"{ROUTED}={time.time():.3f}"
        for pod in self.release.pods():
            self.release.kubectl("annotate", "--overwrite", "pod", pod["metadata"]["name"], annotation)

    def _tracks(self) -> dict[str, int]:
        templates = (one["spec"]["template"]["metadata"] for one in self._deployments())
        return {one["labels"][TRACK]: int(one["annotations"][VERSION]) for one in templates}

    def _deployments(self) -> list[Any]:
        return list(
            self.release.json("get", "deployments", "--selector", f"app.kubernetes.io/instance={NAME}")["items"]
        )

    def _weights(self) -> list[dict[int, int]]:
        """The different splits that ready stable pods say are in force."""
        found: list[dict[int, int]] = []
        for pod in self.release.pods():
            with contextlib.suppress(CommandFailed):  # it has just begun, or ended
                name = pod["metadata"]["name"]
                said = self.lab.cluster.from_pod(self.release.namespace, name, METRICS_PORT, "/actual")
                (endpoint,) = json.loads(said)["endpoints"]
                split = {one["version"]: one["weight"] for one in endpoint["versions"] if one["weight"]}
                found += [split] if split not in found else []
        return found

    def _whole(self) -> bool:
        selector = f"app.kubernetes.io/instance={NAME},{TRACK}"
        try:
            pods = self.release.json("get", "pods", "--selector", selector)["items"]
            wanted = sum(one["spec"]["replicas"] for one in self._deployments())
        except CommandFailed:  # the API server is away
            return False
        return len(pods) == wanted and all(map(ready, pods))


@contextlib.contextmanager
def open_ground(console: Console) -> Iterator[Ground]:
    """On a cluster of its own or that of KUBECONFIG, with the first version in service and under load."""
    with clusters.cluster(STATE) as cluster, contextlib.ExitStack() as stack:
        lab = stack.enter_context(open_lab(cluster, built_image(cluster)))
        bad = lab.store.spoiled(lab.store.trained(BAD_SEED), BAD)
        namespace = stack.enter_context(namespace_for(cluster, "bench", {"enforce": "restricted"}))
        nodes = stack.enter_context(namespace_for(cluster, "bench-nodes", {}))
        release = Release(lab, namespace)
        release.install(lab.good, replicaCount=REPLICAS, **STARTUP)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shipway-bench-")))
        shipway = CommandLine(release, directory, stack.enter_context(scraped(release, directory)))
        load = Steady(cluster.node_ip, release.port, MODEL, questions([lab.good, lab.other, bad]))
        load.meant(lab.good.number)
        with load:
            yield Ground(lab, bad, release, load, shipway, nodes, console, State(lab.good))
