"""From the desired state to what TorchServe and Envoy do. What is new is made ready before what is old is let go."""

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import yaml

from deploy.errors import LoadFailed, NodeError
from deploy.node import envoy, explainer, golden
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
        versions = {(endpoint.model, v.version): v.digest for endpoint in desired.endpoints for v in endpoint.versions}
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
            for e in endpoints
            for v in e.versions
            if v.state != "READY"
        ]
        predicting = [_without_explainer(e) for e in self.routed]
        not_routed = [e.model for e in desired.endpoints if _without_explainer(e) not in predicting]
        if not missing and not_routed:
            missing = [f"the routes of {', '.join(not_routed)} are not in force yet"]
        if not_now:
            missing = [not_now]
        return Actual(pid=pid, ready=not missing, reason="; ".join(missing), endpoints=endpoints)

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
        loaded = self.loaded.get((model, desired.version))
        state: State = loaded.state if loaded else "LOADING"
        reason = loaded.reason if loaded else ""
        if loaded and loaded.digest != desired.digest:
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
        ready = {
            v.version
            for v in endpoint.versions
            if (loaded := self.loaded.get((endpoint.model, v.version))) and loaded.proven and loaded.digest == v.digest
        }
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
        old, new = _named(self.routed), _named(endpoints)
        copied, copying = _mirrored(self.routed), _mirrored(endpoints)
        # A change of weights alone needs no cluster to come or to go.
        if (both := (old | new, copied | copying)) != (old, copied):
            await self._set_clusters(*both)
        await self._set_routes(endpoints)
        self.places.turn_away(_replaceable(endpoints))
        self.agreement.watch({key for key in copying if self._decides(key)})
        for model, version in old - new:
            await self._drain(model, version)
        if both != (new, copying):
            await self._set_clusters(new, copying)

    async def _set_clusters(self, keys: set[Key], mirrored: set[Key]) -> None:
        config = envoy.clusters(self._upstream(self.loaded[key], mirrored=key in mirrored) for key in sorted(keys))
        names = {cluster["name"] for cluster in config["resources"]}
        write_atomically(self.layout.clusters_file, envoy.to_json(config), 0o600)
        deadline = time.monotonic() + ACTIVE_WITHIN_SECONDS
        while await self.admin.active_clusters() != names:
            if time.monotonic() > deadline:
                raise LoadFailed(f"Envoy did not take the clusters {sorted(names)}; logs/envoy.log says why")
            await asyncio.sleep(POLL_SECONDS)

    def _decides(self, key: Key) -> bool:
        """Whether a version predicts classes, which can agree with another's."""
        profile = self.loaded[key].profile
        return profile is not None and bool(profile.classes)

    @staticmethod
    def _upstream(loaded: Loaded, *, mirrored: bool) -> envoy.Upstream:
        return envoy.Upstream(*loaded.key, loaded.digest, loaded.workers, loaded.queue_size, mirrored=mirrored)

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


def _mirrored(endpoints: tuple[DesiredEndpoint, ...]) -> set[Key]:
    """The versions that get copies of requests."""
    return {(endpoint.model, endpoint.mirror.version) for endpoint in endpoints if endpoint.mirror}


def _replaceable(endpoints: tuple[DesiredEndpoint, ...]) -> set[Key]:
    """The versions whose requests another version answers if they do not."""
    falling_back = [endpoint for endpoint in endpoints if endpoint.fallback is not None]
    return {(e.model, v.version) for e in falling_back for v in e.versions if v.version != e.fallback}


def _explainer(endpoint: DesiredEndpoint) -> Key | None:
    return None if endpoint.explainer is None else (explainer.explainer_of(endpoint.model), endpoint.explainer)


def _without_explainer(endpoint: DesiredEndpoint) -> DesiredEndpoint:
    return endpoint.model_copy(update={"explainer": None})
