"""Carries a rollout out on a Helm release: which versions run is helm's, how the traffic is split is a ConfigMap's.

What was asked stands in the ledger, so that nothing is done when it is asked: `reached` looks at what there is, begins
what has to be done next, and watches it. So a rollout is taken up by any process, whatever was killed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from deploy.errors import LoadFailed, ReleasePending, ReleaseServesOther, ReleaseUnsuited
from deploy.kubernetes import pods
from deploy.kubernetes.aim import (
    Aim,
    Rollback,
    Upgrade,
    Values,
    aim_of,
    changed,
    description,
    forward,
    found_in,
    good_revision,
    next_deed,
)
from deploy.kubernetes.causes import Causes
from deploy.kubernetes.cluster import Cluster
from deploy.kubernetes.helm import UNREACHABLE, Helm, Revision, Work
from deploy.kubernetes.routing import Routing
from deploy.kubernetes.tracks import Track, Tracks, read_tracks
from deploy.rollout.driver import Serving
from deploy.rollout.machine import Traffic
from deploy.rollout.record import Release, Step

LOOK_SECONDS = 0.5
"""Between two looks at the cluster."""
ATTEMPTS = 3
"""At a rollback: Helm 4 calls one failed that works, and an API server may be away meanwhile."""
OTHERS_END_WITHIN_SECONDS = 10.0
"""A command that notices that somebody else has taken over ends its helm."""
PODS_BACK_WITHIN_SECONDS = 30.0
"""After a rollback that helm called failed, before it is asked once more."""

Ask = Callable[[str], bool]
"""Whether to go on, after saying why that is not a matter of course."""


@dataclass
class Task:
    """What the release should be, and how far it is on the way there."""

    aim: Aim
    forwards: bool
    slow_before: frozenset[str]
    """When Kubernetes gave up waiting before this began; it keeps saying so for a while."""
    began: float = field(default_factory=time.monotonic)
    next_look: float = 0.0
    work: Work | None = None
    deed: Upgrade | Rollback | None = None
    failures: int = 0
    wait_until: float = 0.0
    done: bool = False


class HelmDriver:
    """One release."""

    def __init__(self, helm: Helm, cluster: Cluster, chart: Path, take_over: Ask) -> None:
        """`take_over` is asked where a helm was at work on the release that nobody seems to watch."""
        self._helm, self._cluster, self._chart = helm, cluster, chart
        self._take_over = take_over
        self._routing = Routing(cluster)
        self._causes = Causes(cluster)
        self._task: Task | None = None
        self._own = 0
        """The revision that our own helm made last, or that we were allowed to take over."""
        # A revision's values never change.
        self._values: Callable[[int], Values] = cache(helm.values)

    @property
    def patience_seconds(self) -> float:
        """Helm's own patience for every attempt, and time to look."""
        return ATTEMPTS * self._tracks().stable.timeout_seconds + 60.0

    def feasible(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Steps up to the share that the canary's replicas can take; the last of them is followed by promotion."""
        release, latest = self._helm.release, self._helm.history()[-1]
        if latest.pending:
            raise ReleasePending(release, latest.status, self._tracks().stable.model)
        self._refuse_other_chart(latest)
        share = int(self._values(latest.revision).get("maxCanaryShare", 100))
        found = tuple(step for step in steps if step.weight <= share)
        if not any(step.weight for step in found):
            problem = f"gives a canary at most {share}% of the requests (maxCanaryShare), and every step takes more"
            raise ReleaseUnsuited(release, problem, "raise it with helm upgrade, or add a smaller step to the policy")
        return found

    def serving(self, model: str) -> Serving:
        tracks = self._tracks(model)
        stable, canary = tracks.stable, tracks.canary
        unready: dict[int, str] = {}
        if not stable.ready_pods:
            unready[stable.release.version] = self._causes.of(stable) or "no pod is ready"
        if canary is not None and (lost := self._causes.of_lost(canary)):
            unready[canary.release.version] = lost
        return Serving(champion=stable.release, others=(canary.release,) if canary else (), unready=unready)

    def before_failure(self, model: str) -> Release | None:
        """By helm's history: of upgrades by hand, or by a helm that was killed."""
        history = self._helm.history()
        good = None if history[-1].good else good_revision(history, self._values)
        was = found_in(self._values(good.revision)) if good else None
        return was.stable if was and was.stable != self._tracks(model).stable.release else None

    def ask(self, model: str, traffic: Traffic) -> None:  # noqa: ARG002 - a release has one
        """The ledger's newest entry is what is asked, and `reached` carries it out; what cannot be, is not written."""
        self._aim(traffic)

    def reached(self, model: str, traffic: Traffic) -> bool:
        task = self._taken_up(model, traffic)
        if time.monotonic() < task.next_look:
            return False
        task.next_look = time.monotonic() + LOOK_SECONDS
        tracks = self._tracks(model)
        if not task.done:
            task.done = self._brought_about(task, tracks)
            return False
        if tracks.aim != task.aim:
            raise LoadFailed(f"somebody else has changed the release {self._helm.release} meanwhile")
        canary = tracks.canary
        if canary is not None and len(canary.ready_pods) < canary.replicas:
            self._refuse_failed(canary)
            return False  # a weight rises only when its replicas are there
        return self._routing.in_force(tracks, traffic)

    def leave(self) -> None:
        if self._task is not None and self._task.work is not None:
            self._task.work.end()
        self._task = None

    def _taken_up(self, model: str, traffic: Traffic) -> Task:
        """The task of this traffic; another one is left."""
        aim = self._aim(traffic)
        if self._task is None or (self._task.aim, self._task.forwards) != (aim, forward(traffic)):
            self.leave()
            tracks = self._tracks(model)
            if aim.canary is None:
                self._routing.give_back(tracks)  # before helm, so that no revision ever finds a canary with traffic
            slow = frozenset(track.too_slow_since for track in (tracks.stable, tracks.canary) if track)
            self._task = Task(aim, forward(traffic), slow)
        return self._task

    def _aim(self, traffic: Traffic) -> Aim:
        aim = aim_of(traffic)
        if aim is None:
            remedy = f"take it out of service with: helm uninstall {self._helm.release}"
            raise ReleaseUnsuited(self._helm.release, "always serves a version", remedy)
        return aim

    def _brought_about(self, task: Task, tracks: Tracks) -> bool:
        """Whether the release runs the versions that it should; begins or watches what is to be done for that."""
        if task.work is not None:
            self._watch(task, task.work, tracks)
            return False
        if time.monotonic() < task.wait_until and not _runs(tracks, task.aim):
            return False
        history = self._helm.history()
        latest = history[-1]
        if latest.pending and not self._ours_to_clear(task, latest):
            return False
        task.deed = next_deed(task.aim, history, self._values, forwards=task.forwards)
        if task.deed is None:
            return _runs(tracks, task.aim)
        if latest.pending and good_revision(history, self._values) is None:
            remedy = f"take it away with: helm uninstall {self._helm.release}; and install it again"
            raise ReleaseUnsuited(self._helm.release, "was never installed to the end", remedy)
        self._own, seconds = latest.revision + 1, tracks.stable.timeout_seconds
        if isinstance(task.deed, Rollback):
            task.work = self._helm.rollback(task.deed.revision, seconds)
        else:
            values = changed(self._helm.own_values(task.deed.before), task.aim)
            words = description(tracks.stable.model, task.aim)
            task.work = self._helm.upgrade(self._chart, values, words, seconds)
        return False

    def _watch(self, task: Task, work: Work, tracks: Tracks) -> None:
        """Look after helm at work. Raises LoadFailed as soon as it is known that it will not get there."""
        reason = self._hopeless(task, tracks) if isinstance(task.deed, Upgrade) else ""
        if not work.done() and not reason:
            return
        failure = work.end()
        task.work = None
        if not reason and (not failure or UNREACHABLE in failure):
            return  # the next look finds what there is
        task.failures += 1
        task.wait_until = time.monotonic() + PODS_BACK_WITHIN_SECONDS
        if not reason:
            cause = self._cause(tracks)
            reason = f"{cause} ({failure})" if cause else failure
        if isinstance(task.deed, Upgrade) or task.failures >= ATTEMPTS:
            raise LoadFailed(reason)

    def _hopeless(self, task: Task, tracks: Tracks) -> str:
        """Why an upgrade will not get there; empty while it may."""
        for track in (tracks.stable, tracks.canary):
            if track is None or track.release not in (task.aim.stable, task.aim.canary):
                continue  # helm has not changed it yet
            if any(pods.fails_for_good(one) for one in track.own_pods):
                return self._causes.of(track)
            if track.too_slow_since not in ("", *task.slow_before):
                return self._causes.of(track) or f"no pod got ready within {track.progress_seconds} s"
        return ""

    def _cause(self, tracks: Tracks) -> str:
        found = (self._causes.of(track) for track in (tracks.canary, tracks.stable) if track)
        return next((cause for cause in found if cause), "")

    def _refuse_failed(self, track: Track) -> None:
        if any(pods.fails_for_good(one) for one in track.own_pods):
            raise LoadFailed(self._causes.of(track))

    def _ours_to_clear(self, task: Task, latest: Revision) -> bool:
        """Whether a pending revision may be taken over now. Raises ReleasePending where it may not."""
        if latest.revision == self._own:
            return True  # our own helm was killed
        if time.monotonic() - task.began < OTHERS_END_WITHIN_SECONDS:
            return False
        since = f"{latest.updated.astimezone():%Y-%m-%d %H:%M:%S}"
        words = f"The release {self._helm.release} is {latest.status} since {since}, revision {latest.revision}: "
        if not self._take_over(words + "another helm is at work on it, or was killed."):
            raise ReleasePending(self._helm.release, latest.status, self._tracks().stable.model)
        self._own = latest.revision
        return True

    def _refuse_other_chart(self, latest: Revision) -> None:
        """With another chart, an upgrade for a canary would change the stable pods too."""
        ours = self._helm.chart(self._chart)
        if latest.chart != ours:
            remedy = f"upgrade the release with that chart first (helm upgrade {self._helm.release} {self._chart} "
            remedy += "--reset-then-reuse-values), or name its own in SHIPWAY_HELM_CHART"
            raise ReleaseUnsuited(self._helm.release, f"is of the chart {latest.chart}, and {ours} is here", remedy)

    def _tracks(self, model: str | None = None) -> Tracks:
        tracks = read_tracks(self._cluster, self._helm.release)
        if model is not None and tracks.stable.model != model:
            raise ReleaseServesOther(self._helm.release, tracks.stable.model, model)
        return tracks


def _runs(tracks: Tracks, aim: Aim) -> bool:
    settled = all(track.settled for track in (tracks.stable, tracks.canary) if track)
    return settled and tracks.aim == aim
