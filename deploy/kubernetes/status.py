"""`shipway status` of a Helm release: what helm, the pods and the ledger say, and where they do not agree."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from deploy.kubernetes import pods
from deploy.kubernetes.adopting import adopt as adopted_by
from deploy.kubernetes.aim import told_by
from deploy.kubernetes.causes import Causes
from deploy.kubernetes.helm import Revision
from deploy.kubernetes.routing import Routing, shares
from deploy.kubernetes.there import Place, place
from deploy.kubernetes.tracks import Track
from deploy.rollout.record import Entry
from deploy.settings import Settings


@dataclass(frozen=True)
class TrackStatus:
    """One of the two Deployments."""

    track: str
    version: int
    digest: str
    weight: int
    """Of the requests, in percent, as the stable pods say that it is in force; -1 where none says it."""
    ready: int
    replicas: int


@dataclass(frozen=True)
class ReleaseStatus:
    """What there is, and what is wrong with it in words."""

    release: str
    namespace: str
    model: str
    revision: int
    status: str
    """As helm says it."""
    chart: str
    description: str
    tracks: list[TrackStatus]
    rollout: str
    """The newest state of the ledger, in words."""
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Group:
        """The same for a person."""
        release = Table("release", "namespace", "model", "revision", "state", "description")
        revision = f"{self.revision}"
        release.add_row(self.release, self.namespace, self.model, revision, self.status, escape(self.description))
        tracks = Table("track", "version", "weight", "ready", "digest")
        for one in self.tracks:
            weight = f"{one.weight}%" if one.weight >= 0 else "unknown"
            tracks.add_row(one.track, str(one.version), weight, f"{one.ready} of {one.replicas}", one.digest)
        problems = [f"Warning: {escape(each)}" for each in self.problems]
        return Group(release, tracks, f"Rollout: {escape(self.rollout)}", *problems)


def read_status(settings: Settings, *, adopt: bool = False) -> ReleaseStatus:
    """How the release of the settings is; with `adopt` the ledger follows it first, and MLflow's alias the ledger."""
    found = place(settings)
    ledger = found.ledger
    if adopt and adopted_by(ledger, found.helm.release, found.tracks.aim) is not None:
        from deploy.rollout.commands import deliver_now

        Routing(found.cluster).give_back(found.tracks)  # or the kubelet would see to it within a minute
        deliver_now(settings, ledger)
    revision, newest = found.helm.history()[-1], ledger.newest()
    stable, canary = found.tracks.stable, found.tracks.canary
    weights = shares(found.cluster, stable)
    tracks = [_row("stable", stable, weights), *([_row("canary", canary, weights)] if canary else [])]
    return ReleaseStatus(
        release=found.helm.release,
        namespace=found.cluster.namespace,
        model=stable.model,
        revision=revision.revision,
        status=revision.status,
        chart=revision.chart,
        description=revision.description,
        tracks=tracks,
        rollout=f"{newest.rollout or newest.kind} is {newest.state}: {newest.words}"
        if newest
        else "there was none yet",
        problems=list(_problems(found, revision, newest)),
    )


def _row(name: str, track: Track, weights: Mapping[int, int]) -> TrackStatus:
    release = track.release
    weight = weights.get(release.version, 0) if weights else -1
    return TrackStatus(name, release.version, release.digest, weight, len(track.ready_pods), track.replicas)


def _problems(found: Place, revision: Revision, newest: Entry | None) -> Iterator[str]:
    model = found.tracks.stable.model
    if revision.pending:
        yield (
            f"revision {revision.revision} is {revision.status}: another helm is at work on it, or was killed; in that "
            f"case: shipway rollback {model} --yes"
        )
    elif revision.status != "deployed":
        yield f"revision {revision.revision} is {revision.status}: {revision.description}"
    causes = Causes(found.cluster)
    for track in (found.tracks.stable, found.tracks.canary):
        for pod in track.pods if track else ():
            if cause := causes.of_pod(pod):
                yield f"pod {pods.name(pod)} (version {pods.annotation(pod, pods.VERSION)}): {cause}"
    said = told_by(newest) if newest else None
    # While helm is at work, what the ledger says is where it goes to: that is nothing to adopt.
    if said is not None and said != found.tracks.aim and not revision.pending:
        yield (
            f"the release runs {found.tracks.aim}, and the ledger says {said}; if that was meant, let the ledger "
            "follow: shipway status --adopt"
        )
