"""What a release should be, what its revisions were, and what helm has to do between the two. Pure."""

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
    """Change these values."""

    values: dict[str, Any]
    description: str


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
    except (KeyError, TypeError, ValueError):
        return None


def good_revision(
    history: Sequence[Revision], values: Callable[[int], Values], aim: Aim | None = None
) -> Revision | None:
    """The newest good revision; with `aim` the newest one that was that."""
    good = (one for one in reversed(history) if one.good)
    return next((one for one in good if aim is None or found_in(values(one.revision)) == aim), None)


def next_deed(
    model: str, aim: Aim, history: Sequence[Revision], values: Callable[[int], Values], *, forwards: bool
) -> Upgrade | Rollback | None:
    """What helm has to do; None where the release is what it should be, as far as helm knows.

    The newest revision may be pending only where that may be taken over: a rollback alone can.
    """
    latest = history[-1]
    if latest.status == "deployed" and found_in(values(latest.revision)) == aim:
        return None
    if aim.canary is None and not forwards and (found := good_revision(history, values, aim)):
        return Rollback(revision=found.revision)
    if latest.pending:
        found = good_revision(history, values)
        return Rollback(revision=found.revision) if found else None
    found = good_revision(history, values)
    return _upgrade(model, aim, values(found.revision if found else latest.revision))


def _upgrade(model: str, aim: Aim, before: Values) -> Upgrade:
    """Canary on at weight 0; or off, with the canary's values in stable's place where it is what stable becomes."""
    off: dict[str, Any] = {"enabled": False, "weight": 0, "mirror": 0}
    if aim.canary is not None:
        on = {"enabled": True, "model": _as_values(aim.canary), "weight": 0, "mirror": 0}
        words = f"{model} {_words(aim.stable)}; canary {_words(aim.canary)}"
        return Upgrade(values={"model": _as_values(aim.stable), "canary": on}, description=words)
    values: dict[str, Any] = {"model": _as_values(aim.stable), "canary": off}
    found = found_in(before)
    if found is not None and found.canary == aim.stable:
        values = _moved(values, before["canary"])
    return Upgrade(values=values, description=f"{model} {_words(aim.stable)}")


def _moved(values: dict[str, Any], canary: Values) -> dict[str, Any]:
    """What the canary had of its own beside its version goes with it, and is not there for the next one."""
    own = canary["model"].get("handlerConfig")
    if own:
        values["model"]["handlerConfig"] = own
        values["canary"]["model"] = {"handlerConfig": dict.fromkeys(own)}
    image = canary.get("image")
    if image:
        values["image"] = image
        values["canary"]["image"] = dict.fromkeys(image) if isinstance(image, dict) else ""
    return values


def _release(model: Values) -> Release:
    return Release(version=model["version"], digest=model["sha256"])


def _as_values(release: Release) -> dict[str, Any]:
    return {"version": release.version, "sha256": release.digest}


def _words(release: Release) -> str:
    return f"version {release.version} {release.digest}"
