"""Endpoints of a Helm release: the settings as the parts of an `Endpoint`, and what a version given by name is."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from deploy.errors import NotPackaged, ReleaseServesOther, ShipwayError
from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.driver import Ask, HelmDriver
from deploy.kubernetes.helm import Helm
from deploy.kubernetes.ledger import ClusterLedger
from deploy.kubernetes.tracks import Tracks, read_tracks
from deploy.rollout import here
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.interrupts import Wish
from deploy.rollout.policy import Policy
from deploy.rollout.record import Entry, Release, Verdict
from deploy.rollout.run import Judge, Tell
from deploy.settings import Settings
from deploy.trust import trusted_keys
from model_store.errors import ModelStoreError
from model_store.fetching import Download, fetch


@dataclass(frozen=True)
class Place:
    """A release that was found, and what is asked of it."""

    helm: Helm
    cluster: Cluster
    tracks: Tracks
    """As they were when it was found."""

    @property
    def ledger(self) -> ClusterLedger:
        return ClusterLedger(self.cluster, self.tracks.fullname, self.tracks.stable.model)


def place(settings: Settings, model: str | None = None) -> Place:
    """The release of the settings.

    Raises:
        ReleaseError: there is no helm, cluster or release; or it serves another model than `model`.
    """
    assert settings.helm_release is not None, "only called where a release is named"  # noqa: S101
    cluster = Cluster.current(settings.helm_namespace)
    helm = Helm.found(settings.helm, settings.helm_release, cluster.namespace, cluster.context)
    tracks = read_tracks(cluster, settings.helm_release)
    if model is not None and tracks.stable.model != model:
        raise ReleaseServesOther(settings.helm_release, tracks.stable.model, model)
    return Place(helm, cluster, tracks)


def endpoint(
    settings: Settings,
    model: str,
    *,
    tell: Tell = lambda *_: None,
    wish: Callable[[], Wish] = lambda: "",
    policy: Policy | None = None,
    take_over: Ask = lambda _: False,
) -> Endpoint:
    """As `here.endpoint`; `take_over` is asked where a helm is at work on the release that nobody seems to watch."""
    found = place(settings, model)
    local = here.endpoint(settings, model, tell=tell, wish=wish, policy=policy)
    archives = Archives(settings, model)
    return replace(
        local,
        ledger=found.ledger,
        driver=HelmDriver(found.helm, found.cluster, chart(settings), take_over),
        locks_dir=settings.rollouts_dir / "releases" / f"{found.cluster.namespace}.{found.helm.release}",
        packaged=lambda version: release(settings, model, version),
        judging=lambda policy: archives.first(local.judging(policy)),
        breaking=lambda champion, candidate: archives.breaking(local, champion, candidate),
    )


def release(settings: Settings, model: str, version: int | str) -> Release:
    """The archive that the registry has of a version, given by number or by an alias. It is the registry's to know.

    Raises:
        NotPackaged: it has none.
        RegistryError: it does not answer, or has no such version or alias.
    """
    from model_store.registry import Registry

    name = f"/{version}" if isinstance(version, int) else version
    found = Registry(settings.mlflow_uri).resolve(f"models:/{model}{name}")
    if found.digest is None:
        raise NotPackaged(Path("the registry"), model, found.version, [])
    return Release(version=found.version, digest=found.digest)


def chart(settings: Settings) -> Path:
    """The chart that releases are upgraded with."""
    return settings.helm_chart or Path(str(files("deploy.kubernetes") / "chart")).resolve()


@dataclass(frozen=True)
class Archives:
    """Archives that must lie on this machine to be compared, fetched from the registry where they do not."""

    settings: Settings
    model: str

    def breaking(self, local: Endpoint, champion: Release, candidate: Release) -> Sequence[str]:
        """What would break clients. Raises RegistryError where an archive is neither here nor to be had."""
        self.fetch(champion, candidate)
        return local.breaking(champion, candidate)

    def first(self, judge: Judge) -> Judge:
        """Judges after fetching: profiles say where the bins of numbers lie. Without one, there is no data for that."""
        asked: set[int] = set()

        def judged(entry: Entry, *, canary_since: float, at: float, lost_readiness: str) -> Verdict:
            both = [one for one in (entry.champion, entry.candidate) if one and one.version not in asked]
            asked.update(one.version for one in both)
            with contextlib.suppress(ModelStoreError, ShipwayError):
                self.fetch(*both)
            return judge(entry, canary_since=canary_since, at=at, lost_readiness=lost_readiness)

        return judged

    def fetch(self, *releases: Release) -> None:
        trusted = trusted_keys(self.settings)
        for one in releases:
            fetch(self.settings.archives_dir, self.model, one.version, one.digest, trusted, self._download(one))

    def _download(self, one: Release) -> Download:
        def download(archive: Path) -> None:
            from model_store.registry import Registry  # imports MLflow, which takes its time: only where it is asked

            Registry(self.settings.mlflow_uri).download_archive(self.model, one.version, archive)

        return download
