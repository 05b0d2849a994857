"""From the desired state to what TorchServe and Envoy do. What is new is made ready before what is old is let go."""

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import yaml

from deploy.errors import LoadFailed, NodeError
from deploy.node import envoy, explainer, golden, peers
from deploy.node.admin import Admin
from deploy.node.agreement import Agreement
from deploy.node.desired import (
    Actual,
    ActualEndpoint,
    ActualExplainer,
    ActualVersion,
    Desired,
    DesiredEndpoint,
    DesiredVersion,
    Peer,
    State,
)
from deploy.node.layout import Layout
from deploy.node.places import Places
from deploy.node.routes import routes
from deploy.node.torchserve import Management
from handlers.answer import EXPLAINER
from model_store.archive import archive_name, signature_path, unpack, verify_archive
from model_store.errors import ModelStoreError
from model_store.files import write_atomically
from model_store.signing import TrustedKeys
from monitoring.profile import Profile, ProfileInvalid

logger = logging.getLogger(__name__)

Key = tuple[str, int]

POLL_SECONDS = 0.05
ACTIVE_WITHIN_SECONDS = 10.0
LOADED_WITHIN_SECONDS = 120.0


@dataclass
class Loaded:
    """One version in TorchServe, or the reason why it is not there."""

    model: str
    version: int
    digest: str
    state: State = "LOADING"
    reason: str = ""
    registered: bool = False
    workers: tuple[Path, ...] = ()
    """Where its workers listen."""
    queue_size: int = 0
    """Requests that may wait for them."""
    metadata: bytes = b""
    profile: Profile | None = None
    profile_json: bytes = b""

    @property
    def key(self) -> Key:
        return self.model, self.version

    @property
    def explains(self) -> bool:
        """Whether it is an explainer: the archive of another model's name, registered once more."""
        return self.model.endswith(EXPLAINER)

    @property
    def proven(self) -> bool:
        """Whether it reproduced its golden set here, or explained it. Its workers may come and go; routes do not."""
        return self.registered and self.profile is not None


@dataclass(frozen=True)
class _Use:
    """What the clusters of one version must be there for."""

    digest: str
    peer: Peer | None = None
    mirrored: bool = False
    falls_in: bool = False
    """For what another node did not answer."""

    def __or__(self, newer: "_Use") -> "_Use":
        return replace(newer, mirrored=self.mirrored or newer.mirrored, falls_in=self.falls_in or newer.falls_in)


class Overtaken(Exception):
    """There is a newer desired state."""


@dataclass
class Reconciler:
    """Holds TorchServe and Envoy to a Desired. `publish` is called whenever the actual state has changed."""

    layout: Layout
    edge: envoy.Edge
    management: Management
    places: Places
    admin: Admin
    archives_dir: Path
    trusted: Callable[[], TrustedKeys]
    """Asked for each archive: keys may come and go."""
    drain_seconds: float
    publish: Callable[[], None]
    agreement: Agreement
    configure: Callable[[Path], None]
    """What is done to a verified, unpacked archive before TorchServe sees it. Explainers are left alone."""
    others_answer: bool = False
    """Whether other nodes answer what this one does not, so that nobody waits here for a worker."""
    loaded: dict[Key, Loaded] = field(default_factory=dict)
    routed: tuple[DesiredEndpoint, ...] = ()
    overtaken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is a newer desired state, so that nobody waits for a version that is being loaded."""
    _routing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _unpacking: threading.Lock = field(default_factory=threading.Lock)
    """One archive at a time: a thread goes on when its pass was given up, and the next pass may want the same one."""

    async def reconcile(self, desired: Desired) -> None:
        """One pass. A version that cannot be loaded is FAILED, with its reason, and the rest goes on.

        Raises Overtaken while a version is being loaded; the next pass goes on with that, or lets go of it.
        """
        versions = {(e.model, v.version): v.digest for e in desired.endpoints for v in e.versions if v.peer is None}
        explainers = {key: versions[e.model, key[1]] for e in desired.endpoints if (key := _explainer(e))}
        # What needs no loading is done first: a rollback must not wait until another version is loaded.
        await self._route_ready(desired)
        # Explainers come last, because predictions must not wait for them.
        for some in (_busiest_first(desired, versions), explainers):
            slots = asyncio.Semaphore(len(os.sched_getaffinity(0)))  # starting a worker keeps a processor busy
            ensuring = (self._ensure_routed(desired, key, digest, slots) for key, digest in some.items())
            for failed in await asyncio.gather(*ensuring, return_exceptions=True):
                if failed is not None:
                    raise failed
        wanted = versions | explainers
        for key in [key for key in self.loaded if key not in wanted and key not in _named(self.routed)]:
            await self._unload(self.loaded[key])

    def workers_died(self) -> None:
        """TorchServe is being started, so it has no worker. Routes stay: requests wait, or go to the fall-back."""
        for loaded in list(self.loaded.values()):
            if loaded.proven:
                loaded.state, loaded.reason = "LOADING", "TorchServe died and is being started again"
            else:
                self.places.close(*loaded.key)
                del self.loaded[loaded.key]
        self.publish()

    async def register_again(self) -> None:
        """Give a TorchServe that was started again what it had: the archives are verified, unpacked, and proven."""
        for loaded in self.loaded.values():
            await self.management.register(self._directory(loaded).name)

    def check_workers(self) -> None:
        """A version without a single live worker is not ready; one that has them back is."""
        for loaded in self.loaded.values():
            if loaded.proven:
                alive = bool(self.places.workers(*loaded.key).alive)
                state: State = "READY" if alive else "LOADING"
                if state != loaded.state:
                    loaded.state = state
                    loaded.reason = "" if alive else "all its workers died and are being restarted"
                    self.publish()

    def actual(self, desired: Desired, pid: int, not_now: str) -> Actual:
        """The state to publish. `not_now`: why the node as a whole is not ready, empty if nothing stands against it."""
        endpoints = tuple(self._actual_endpoint(endpoint) for endpoint in desired.endpoints)
        missing = [
            f"{e.model} version {v.version} is {v.state}{': ' + v.reason if v.reason else ''}"
            for wanted, e in zip(desired.endpoints, endpoints, strict=True)
            for asked, v in zip(wanted.versions, e.versions, strict=True)
            if v.state != "READY" and asked.peer is None
        ]
        not_routed = [e.model for e in desired.endpoints if not self._is_routed(e)]
        if not missing and not_routed:
            missing = [f"the routes of {', '.join(not_routed)} are not in force yet"]
        if not_now:
            missing = [not_now]
        return Actual(pid=pid, ready=not missing, reason="; ".join(missing), endpoints=endpoints)

    def _is_routed(self, endpoint: DesiredEndpoint) -> bool:
        """Whether predictions are routed as desired. A node's readiness must not depend on what others answer."""
        routed = self.routing(endpoint.model)
        if routed is not None and any(v.peer for v in (*endpoint.versions, *routed.versions)):
            return True
        return _without_explainer(endpoint) in [_without_explainer(e) for e in self.routed]

    def _actual_endpoint(self, desired: DesiredEndpoint) -> ActualEndpoint:
        routed = self.routing(desired.model)
        weights = {v.version: v.weight for v in routed.versions} if routed else {}
        return ActualEndpoint(
            model=desired.model,
            versions=tuple(
                self._actual_version(desired.model, version, weights.get(version.version, 0))
                for version in desired.versions
            ),
            explainer=self._actual_explainer(desired),
            fallback=routed.fallback if routed else None,
            mirror=routed.mirror if routed else None,
        )

    def routing(self, model: str) -> DesiredEndpoint | None:
        """What is in force for a model; None while it has no route."""
        return next((routed for routed in self.routed if routed.model == model), None)

    def _actual_version(self, model: str, desired: DesiredVersion, weight: int) -> ActualVersion:
        loaded = self.loaded.get((model, desired.version)) if desired.peer is None else None
        state: State = loaded.state if loaded else "LOADING"
        reason = loaded.reason if loaded else ""
        if desired.peer is not None:
            state = "READY" if (model, desired.version) in _named(self.routed) else "LOADING"
        elif loaded and loaded.digest != desired.digest:
            state, reason = "FAILED", f"it is loaded as {loaded.digest}; serve another version, then this one again"
        return ActualVersion(version=desired.version, digest=desired.digest, weight=weight, state=state, reason=reason)

    def _actual_explainer(self, endpoint: DesiredEndpoint) -> ActualExplainer | None:
        key = _explainer(endpoint)
        if key is None:
            return None
        loaded = self.loaded.get(key) or Loaded(*key, "")
        return ActualExplainer(version=loaded.version, state=loaded.state, reason=loaded.reason)

    async def _ensure_routed(self, desired: Desired, key: Key, digest: str, slots: asyncio.Semaphore) -> None:
        """Load one version and route it at once, whatever else is being loaded."""
        async with slots:
            if self.overtaken.is_set():
                raise Overtaken
            await self._ensure(*key, digest)
        await self._route_ready(desired)

    async def _ensure(self, model: str, version: int, digest: str) -> None:
        current = self.loaded.get((model, version))
        if current is not None and current.digest != digest and current.key not in _named(self.routed):
            await self._unload(current)
            current = None
        if current is not None and current.proven:
            return  # also with another digest: TorchServe holds one archive of a version, and this one answers clients
        loading = current is not None and current.registered  # an earlier pass was overtaken
        loaded = current if current is not None and loading else Loaded(model, version, digest)
        self.loaded[loaded.key] = loaded
        self.publish()
        started = time.monotonic()
        try:
            await self._load(loaded)
        except (NodeError, ModelStoreError, ProfileInvalid) as error:
            loaded.state, loaded.reason = "FAILED", str(error)
            logger.error("%s version %s: %s", model, version, error)
            await self._forget(loaded)
        else:
            loaded.state = "READY"
            logger.info("%s version %s is ready after %.1f s", model, version, time.monotonic() - started)
        self.publish()

    async def _load(self, loaded: Loaded) -> None:
        if not loaded.registered:
            directory = await asyncio.to_thread(self._unpacked, loaded)
            plan = yaml.safe_load((directory / "model-config.yaml").read_text())
            loaded.queue_size = int(plan["jobQueueSize"])
            loaded.workers = self.places.open(*loaded.key, int(plan["minWorkers"]))
            await self.management.register(directory.name)
            loaded.registered = True
        await unless(self.overtaken, self._prove(loaded))

    async def _prove(self, loaded: Loaded) -> None:
        """Return once this hardware reproduces the version's golden set, or explains it."""
        directory = self._directory(loaded)
        loaded.metadata = (directory / "metadata.json").read_bytes()
        loaded.profile_json = (directory / "profile.json").read_bytes()
        profile = Profile.from_json(loaded.profile_json)
        golden_set = golden.GoldenSet.from_json((directory / "golden.json").read_bytes())
        await self._wait_for_workers(loaded)
        await (explainer.check if loaded.explains else golden.replay)(loaded.workers, golden_set)
        loaded.profile = profile

    def _directory(self, loaded: Loaded) -> Path:
        """Where its archive is unpacked."""
        return self.layout.store / Path(archive_name(*loaded.key, loaded.digest)).stem

    def _unpacked(self, loaded: Loaded) -> Path:
        """The archive's directory, unpacked here, as TorchServe would do so in a thread that answers inference."""
        with self._unpacking:
            return self._unpacked_alone(loaded)

    def _unpacked_alone(self, loaded: Loaded) -> Path:
        """Of a copy that was verified, so that the original may change meanwhile."""
        model = loaded.model.removesuffix(EXPLAINER)
        source = self.archives_dir / archive_name(model, loaded.version, loaded.digest)
        copy = self.layout.store / archive_name(*loaded.key, loaded.digest)
        try:
            shutil.copyfile(source, copy)
            shutil.copyfile(signature_path(source), signature_path(copy))
            verify_archive(copy, model, loaded.version, loaded.digest, self.trusted())
            return explainer.unpack_apart(copy) if loaded.explains else self._configured(unpack(copy))
        except FileNotFoundError as error:
            raise LoadFailed(
                f"there is no {error.filename}; make it with: shipway package models:/{model}/{loaded.version}"
            ) from None
        except OSError as error:
            raise LoadFailed(f"{source} cannot be copied and unpacked: {error}") from error
        finally:
            copy.unlink(missing_ok=True)
            signature_path(copy).unlink(missing_ok=True)

    def _configured(self, directory: Path) -> Path:
        self.configure(directory)
        return directory

    async def _wait_for_workers(self, loaded: Loaded) -> None:
        """Return once all of them are READY."""
        deadline = time.monotonic() + LOADED_WITHIN_SECONDS
        while time.monotonic() < deadline:
            states = await self.management.workers(*loaded.key)
            if len(states) >= len(loaded.workers) and all(state == "READY" for state in states):
                return
            await asyncio.sleep(POLL_SECONDS)
        raise LoadFailed(
            f"its workers were not ready within {LOADED_WITHIN_SECONDS:g} s; what they said is in logs/workers.log"
        )

    async def _forget(self, loaded: Loaded) -> None:
        """Take a version that has no route out of TorchServe, and its unpacked archive from the disk."""
        if loaded.registered:
            await self.management.unregister(*loaded.key)
            loaded.registered = False
        self.places.close(*loaded.key)
        await asyncio.to_thread(shutil.rmtree, self._directory(loaded), ignore_errors=True)

    def _routable(self, endpoint: DesiredEndpoint) -> DesiredEndpoint | None:
        """The endpoint with its ready versions; as it was, while one that should get traffic is not ready."""
        ready = {v.version for v in endpoint.versions if v.peer is not None or self._has(endpoint.model, v)}
        if not all(v.version in ready for v in endpoint.versions if v.weight > 0):
            before = self.routing(endpoint.model)
            if before is not None or endpoint.fallback not in ready:
                return before
            # A node that starts in the middle of a rollout: the champion must not wait for the candidate.
            endpoint = _without(endpoint, ready)
        now = {
            "versions": tuple(v for v in endpoint.versions if v.version in ready),
            "explainer": self._explaining(endpoint, ready),
            "fallback": endpoint.fallback if endpoint.fallback in ready else None,
            "mirror": endpoint.mirror if endpoint.mirror and endpoint.mirror.version in ready else None,
        }
        return endpoint.model_copy(update=now)

    def _has(self, model: str, version: DesiredVersion) -> bool:
        """Whether this very archive can answer here."""
        loaded = self.loaded.get((model, version.version))
        return loaded is not None and loaded.proven and loaded.digest == version.digest

    def _explaining(self, endpoint: DesiredEndpoint, ready: set[int]) -> int | None:
        """The version that is explained now: the one before as long as the one that should be is being loaded."""
        key = _explainer(endpoint)
        loaded = self.loaded.get(key) if key else None
        if key is None or (loaded is not None and loaded.state == "FAILED"):
            return None
        if loaded is not None and loaded.proven:
            return endpoint.explainer
        before = self.routing(endpoint.model)
        return before.explainer if before and before.explainer in ready else None

    async def _route_ready(self, desired: Desired) -> None:
        async with self._routing:
            await self._route(tuple(found for endpoint in desired.endpoints if (found := self._routable(endpoint))))

    async def _route(self, endpoints: tuple[DesiredEndpoint, ...]) -> None:
        if endpoints == self.routed:
            return
        old, new = self._uses(self.routed), self._uses(endpoints)
        both = old | {key: old[key] | use if key in old else use for key, use in new.items()}
        # A change of weights alone needs no cluster to come or to go.
        if both != old:
            await self._set_clusters(both)
        await self._set_routes(endpoints)
        self.places.turn_away(_replaceable(endpoints) | (set(new) if self.others_answer else set()))
        self.agreement.watch({key for key, use in new.items() if use.mirrored and self._decides(key)})
        for model, version in old.keys() - new.keys():
            await self._drain(model, version)
        if both != new:
            await self._set_clusters(new)

    def _uses(self, endpoints: tuple[DesiredEndpoint, ...]) -> dict[Key, _Use]:
        """Every version that routes name, and every explainer."""
        found = {key: _Use(self.loaded[key].digest) for e in endpoints if (key := _explainer(e))}
        for endpoint in endpoints:
            mirrored = endpoint.mirror.version if endpoint.mirror else None
            telling = bool(self.edge.guard.credentials) and any(v.peer for v in endpoint.versions)
            for v in endpoint.versions:
                found[endpoint.model, v.version] = _Use(
                    v.digest,
                    v.peer,
                    mirrored=v.version == mirrored,
                    falls_in=telling and v.version == endpoint.fallback,
                )
        return found

    async def _set_clusters(self, uses: dict[Key, _Use]) -> None:
        own = [self._upstream(self.loaded[key], use) for key, use in sorted(uses.items()) if use.peer is None]
        asked = [
            peers.Asked(*key, use.digest, use.peer, mirrored=use.mirrored)
            for key, use in sorted(uses.items())
            if use.peer is not None
        ]
        config = envoy.clusters(own, [cluster for each in asked for cluster in peers.clusters(each, self.edge)])
        names = {cluster["name"] for cluster in config["resources"]}
        write_atomically(self.layout.clusters_file, envoy.to_json(config), 0o600)
        deadline = time.monotonic() + ACTIVE_WITHIN_SECONDS
        while await self.admin.active_clusters() != names:
            if time.monotonic() > deadline:
                raise LoadFailed(f"Envoy did not take the clusters {sorted(names)}; logs/envoy.log says why")
            await asyncio.sleep(POLL_SECONDS)

    def _decides(self, key: Key) -> bool:
        """Whether a version predicts classes, which can agree with another's."""
        loaded = self.loaded.get(key)  # what another node predicts is not told here
        return loaded is not None and loaded.profile is not None and bool(loaded.profile.classes)

    def _upstream(self, loaded: Loaded, use: _Use) -> envoy.Upstream:
        return envoy.Upstream(
            *loaded.key,
            loaded.digest,
            loaded.workers,
            loaded.queue_size,
            mirrored=use.mirrored,
            peered=self.edge.own is not None and loaded.key == (self.edge.own.model, self.edge.own.version),
            falls_in=use.falls_in,
        )

    async def _set_routes(self, endpoints: tuple[DesiredEndpoint, ...]) -> None:
        config = routes(endpoints, self.edge)
        write_atomically(self.layout.routes_file, envoy.to_json(config), 0o600)
        deadline = time.monotonic() + ACTIVE_WITHIN_SECONDS
        while await self.admin.active_routes() != config["version_info"]:
            if time.monotonic() > deadline:
                raise LoadFailed("Envoy did not take the new routes; logs/envoy.log says why")
            await asyncio.sleep(POLL_SECONDS)
        self.routed = endpoints
        self.publish()  # what is drained after this takes no part in it

    async def _drain(self, model: str, version: int) -> None:
        """Wait until a version that has no route any more has answered its last request."""
        deadline = time.monotonic() + self.drain_seconds
        name = f"cluster.{envoy.cluster_name(model, version)}.upstream_rq_active"
        while await self.admin.gauge(name) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def _unload(self, loaded: Loaded) -> None:
        await self._forget(loaded)
        del self.loaded[loaded.key]
        logger.info("%s version %s is out of service", loaded.model, loaded.version)


async def unless(event: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do the work; Overtaken if the event comes first."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when="FIRST_COMPLETED")
        if not working.done():
            raise Overtaken
        working.result()
    finally:
        waiting.cancel()
        working.cancel()
        await asyncio.wait((working, waiting))


def describe(loaded: Loaded) -> dict[str, object]:
    """The version's metadata in the Open Inference Protocol's terms."""
    document: dict[str, object] = orjson.loads(loaded.metadata)
    return document


def _named(endpoints: tuple[DesiredEndpoint, ...]) -> set[Key]:
    versions = {(endpoint.model, v.version) for endpoint in endpoints for v in endpoint.versions}
    return versions | {key for endpoint in endpoints if (key := _explainer(endpoint))}


def _busiest_first(desired: Desired, digests: dict[Key, str]) -> dict[Key, str]:
    """The versions in the order of their traffic: where there are more than processors, users wait for the others."""
    weights = {(endpoint.model, v.version): v.weight for endpoint in desired.endpoints for v in endpoint.versions}
    return {key: digests[key] for key in sorted(digests, key=lambda key: -weights[key])}


def _without(endpoint: DesiredEndpoint, ready: set[int]) -> DesiredEndpoint:
    """The endpoint whose fall-back has the traffic of those who are not ready."""
    lost = sum(v.weight for v in endpoint.versions if v.version not in ready)
    versions = tuple(
        v.model_copy(update={"weight": v.weight + lost}) if v.version == endpoint.fallback else v
        for v in endpoint.versions
    )
    return endpoint.model_copy(update={"versions": versions})


def _replaceable(endpoints: tuple[DesiredEndpoint, ...]) -> set[Key]:
    """The versions whose requests another version answers if they do not."""
    falling_back = [endpoint for endpoint in endpoints if endpoint.fallback is not None]
    return {(e.model, v.version) for e in falling_back for v in e.versions if v.version != e.fallback}


def _explainer(endpoint: DesiredEndpoint) -> Key | None:
    return None if endpoint.explainer is None else (explainer.explainer_of(endpoint.model), endpoint.explainer)


def _without_explainer(endpoint: DesiredEndpoint) -> DesiredEndpoint:
    return endpoint.model_copy(update={"explainer": None})
