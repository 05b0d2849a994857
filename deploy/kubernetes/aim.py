"""What a release should be, what its revisions were, and what helm has to do between the two. Pure."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.kubernetes.helm import Revision
from deploy.rollout import machine
from deploy.rollout.machine import Traffic
from deploy.rollout.record import ENDED, Entry, Record, Release

Values = Mapping[str, Any]


class Aim(Record):
    """Which versions a release runs; how the traffic is split between them is no matter of helm's."""

    stable: Release
    canary: Release | None = None

    def __str__(self) -> str:
        beside = f", and version {self.canary.version} as its canary" if self.canary else ""
        return f"version {self.stable.version}{beside}"


class Upgrade(Record):
    """Change the values of this revision."""

    before: int


class Rollback(Record):
    """Make what this revision was the newest."""

    revision: int


def aim_of(traffic: Traffic) -> Aim | None:
    """What a release should be for this traffic; None for out of service. Nothing stays warm after a promotion."""
    if traffic.serving is None:
        return None
    return Aim(stable=traffic.serving, canary=traffic.beside if traffic.guarded else None)


def told_by(entry: Entry) -> Aim | None:
    """What a release should be by an entry of the ledger that says where a rollout stands."""
    if entry.state in ENDED:
        serving = machine.serves(entry)
        return Aim(stable=serving) if serving else None
    beside = entry.state not in ("PROMOTING", "ROLLING_BACK")
    return aim_of(machine.traffic(entry.model_copy(update={"state": "PENDING"}) if beside else entry, ()))


def forward(traffic: Traffic) -> bool:
    """Whether it is a promotion, and not a way back: one is an upgrade, so that values changed since stay."""
    return traffic.beside is not None


def found_in(values: Values) -> Aim | None:
    """What the values of a revision say; None where they are none of the chart's."""
    try:
        canary = values.get("canary") or {}
        beside = _release(canary["model"]) if canary.get("enabled") else None
        return Aim(stable=_release(values["model"]), canary=beside)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def good_revision(
    history: Sequence[Revision], values: Callable[[int], Values], aim: Aim | None = None
) -> Revision | None:
    """The newest good revision; with `aim` the newest one that was that."""
    good = (one for one in reversed(history) if one.good)
    return next((one for one in good if aim is None or found_in(values(one.revision)) == aim), None)


def next_deed(
    aim: Aim, history: Sequence[Revision], values: Callable[[int], Values], *, forwards: bool
) -> Upgrade | Rollback | None:
    """What helm has to do; None where the release is what it should be, as far as helm knows.

    An upgrade has no values yet. The newest revision may be pending only where that may be taken over, which a
    rollback alone can.
    """
    latest, good = history[-1], good_revision(history, values)
    if latest.status == "deployed" and _is(values(latest.revision), aim):
        return None
    was = None if forwards or aim.canary else good_revision(history, values, aim)
    back = was or (good if latest.pending else None)
    if back is not None:
        return Rollback(revision=back.revision)
    return Upgrade(before=(good or latest).revision)


def _is(values: Values, aim: Aim) -> bool:
    """Whether a revision is that, and leaves the traffic to us: a canary that somebody put in by hand may get some."""
    if found_in(values) != aim:
        return False
    canary = values.get("canary") or {}
    return aim.canary is None or not (canary.get("weight") or canary.get("mirror"))


def changed(before: Values, aim: Aim) -> dict[str, Any]:
    """A release's own values with `aim` in them: canary on at weight 0, or off.

    Where stable becomes what the canary was, it takes what the canary had of its own.
    """
    values = copy.deepcopy(dict(before))
    stable, canary = values.setdefault("model", {}), values.setdefault("canary", {})
    if aim.canary is not None:
        stable.update(_as_values(aim.stable))
        model = {**(canary.get("model") or {}), **_as_values(aim.canary)}
        canary.update(enabled=True, model=model, weight=0, mirror=0)
        return values
    own, image = (canary.pop(key, None) or {} for key in ("model", "image"))
    if canary.get("enabled") and own.get("sha256") == aim.stable.digest:
        if own.get("handlerConfig"):
            stable["handlerConfig"] = own["handlerConfig"]
        if image:
            values["image"] = _image(values.get("image") or {}, image)
    stable.update(_as_values(aim.stable))
    canary.update(enabled=False, weight=0, mirror=0)
    return values


def description(model: str, aim: Aim) -> str:
    """Of the revision in helm's history."""
    canary = f"; canary {_words(aim.canary)}" if aim.canary else ""
    return f"{model} {_words(aim.stable)}{canary}"


def _image(stable: Values, canary: Values) -> dict[str, Any]:
    """As the chart reads a canary's image: a tag of its own is not for the other's digest."""
    kept = {key: value for key, value in stable.items() if not (key == "digest" and "tag" in canary)}
    return {**kept, **canary}


def _release(model: Values) -> Release:
    return Release(version=model["version"], digest=model["sha256"])


def _as_values(release: Release) -> dict[str, Any]:
    return {"version": release.version, "sha256": release.digest}


def _words(release: Release) -> str:
    return f"version {release.version} {release.digest}"
