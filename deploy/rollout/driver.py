"""Who carries out what a rollout decides: on one machine the node, which is told by a file and says so in another."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import Field

from deploy.errors import LoadFailed
from deploy.node.desired import (
    Actual,
    ActualEndpoint,
    ActualVersion,
    DesiredEndpoint,
    DesiredVersion,
    Mirror,
    change,
    read_desired,
    running,
)
from deploy.rollout.machine import Traffic
from deploy.rollout.record import Record, Release, Step

NODE_BACK_WITHIN_SECONDS = 30.0
"""A node that was killed is started again by who supervises it."""


class Serving(Record):
    """What an endpoint serves."""

    champion: Release | None
    """The version with most of the traffic; none where the endpoint is not in service."""
    others: tuple[Release, ...] = ()
    """Loaded beside it."""
    unready: dict[int, str] = Field(default_factory=dict)
    """By version, why it is not READY any more."""


class Driver(Protocol):
    @property
    def patience_seconds(self) -> float:
        """In which traffic that was asked for is in force, or never will be."""

    def feasible(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        """Those steps that can be carried out; raises ReleaseError if no rollout can be."""

    def serving(self, model: str) -> Serving: ...

    def before_failure(self, model: str) -> Release | None:
        """What served before somebody else put another version in its place that failed; None where nobody did."""

    def ask(self, model: str, traffic: Traffic) -> None:
        """Ask for this traffic and return at once; asking again changes nothing."""

    def reached(self, model: str, traffic: Traffic) -> bool:
        """Whether this traffic is in force. Raises LoadFailed, with the reason, if it will never be."""

    def leave(self) -> None:
        """Stop working on what was asked, because somebody else works on something else now."""


class Local:
    """The node of this machine."""

    patience_seconds = 180.0
    """More than the node gives a version to load and to reproduce its golden set."""

    def __init__(self, desired_file: Path, actual_file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._desired_file = desired_file
        self._actual_file = actual_file
        self._clock = clock
        self._seen = clock()
        """When a node ran last."""

    def feasible(self, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return steps

    def leave(self) -> None:
        """It is the node that works, and it reads what is asked last."""

    def serving(self, model: str) -> Serving:
        endpoint = read_desired(self._desired_file).endpoint(model)
        if endpoint is None:
            return Serving(champion=None)
        first, *others = sorted(endpoint.versions, key=lambda one: -one.weight)
        found = _in_force(self._actual(), model)
        # A node that was started again loads its versions one after the other: without a reason, nothing is lost.
        lost = (one for one in found.versions if one.state == "FAILED" or (one.state != "READY" and one.reason))
        unready = {one.version: one.reason or one.state for one in lost}
        return Serving(champion=_release(first), others=tuple(map(_release, others)), unready=unready)

    def before_failure(self, model: str) -> Release | None:  # noqa: ARG002 - what fails to load replaces nothing here
        return None

    def ask(self, model: str, traffic: Traffic) -> None:
        change(self._desired_file, model, lambda before: _endpoint(model, traffic, before))

    def reached(self, model: str, traffic: Traffic) -> bool:
        actual = self._actual()
        if actual is None:
            if self._clock() - self._seen > NODE_BACK_WITHIN_SECONDS:
                raise LoadFailed("no node runs; start it with: shipway up")
            return False
        found, wanted = _in_force(actual, model), _endpoint(model, traffic, None)
        asked = {(one.version, one.digest): one.weight for one in wanted.versions} if wanted else {}
        weights = {(one.version, one.digest): one.weight for one in found.versions}
        if asked.keys() != weights.keys():
            return False  # the node has not read it yet
        # What stays warm beside the version that serves must not hold up a promotion.
        needed = [one for one in found.versions if traffic.guarded or _release(one) == traffic.serving]
        if failed := [one for one in needed if one.state == "FAILED"]:
            raise LoadFailed(failed[0].reason)
        ready = all(one.state == "READY" for one in needed)
        extras = (found.fallback, found.mirror) == ((wanted.fallback, wanted.mirror) if wanted else (None, None))
        return ready and asked == weights and extras

    def _actual(self) -> Actual | None:
        actual = running(self._actual_file)
        if actual is not None:
            self._seen = self._clock()
        return actual


def _in_force(actual: Actual | None, model: str) -> ActualEndpoint:
    found = actual.endpoint(model) if actual else None
    return found or ActualEndpoint(model=model, versions=())


def _release(version: DesiredVersion | ActualVersion) -> Release:
    return Release(version=version.version, digest=version.digest)


def _endpoint(model: str, traffic: Traffic, before: DesiredEndpoint | None) -> DesiredEndpoint | None:
    """This traffic as the node reads it; the explainer, if there was one, goes with most of the traffic."""
    serving, beside = traffic.serving, traffic.beside
    if serving is None:
        return None
    weights = [(serving, 100 - traffic.weight), *([(beside, traffic.weight)] if beside else [])]
    return DesiredEndpoint(
        model=model,
        versions=tuple(DesiredVersion(**release.model_dump(), weight=weight) for release, weight in weights),
        explainer=serving.version if before and before.explainer is not None else None,
        fallback=serving.version if traffic.guarded else None,
        mirror=Mirror(version=beside.version, percent=traffic.mirror) if beside and traffic.mirror else None,
    )
