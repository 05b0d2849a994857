"""What is wrong with a pod, in one sentence, out of what Kubernetes says of it. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

Pod = Mapping[str, Any]

TRACK, VERSION, DIGEST, MODEL = (f"shipway.dev/{name}" for name in ("track", "version", "digest", "model"))
_ONLY_STARTING = ("ContainerCreating", "PodInitializing")
STARTS_GIVEN_UP_AFTER = 3
"""A first failure may be a network's: a container that failed as often will not succeed soon."""


def name(pod: Pod) -> str:
    return str(pod["metadata"]["name"])


def annotation(thing: Mapping[str, Any], key: str) -> str:
    return str((thing.get("metadata", {}).get("annotations") or {}).get(key, ""))


def ending(pod: Pod) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def ready(pod: Pod) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return not ending(pod) and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def cause(pod: Pod) -> str:
    """Why it does not serve; empty for one that does, or that is on its way as it should be."""
    if ready(pod) or ending(pod):
        return ""
    return next(_causes(pod), "")


def fails_for_good(pod: Pod) -> bool:
    """Whether it has failed so often that waiting is of no use."""
    if _given_up(pod) or not cause(pod):
        return False
    return any(_failures(one) >= STARTS_GIVEN_UP_AFTER for one in _containers(pod))


def was_ready(pod: Pod) -> bool:
    """Whether the running container was ready once: its start-up probe has passed."""
    return any(one.get("started") for one in pod.get("status", {}).get("containerStatuses") or ())


def restarted(pod: Pod) -> bool:
    """Whether its containers, besides those that only prepare it, have ended since it was made."""
    return any(one.get("restartCount", 0) > 0 for one in pod.get("status", {}).get("containerStatuses") or ())


def end(pod: Pod) -> str:
    """How a container that was started again has ended."""
    ends = (
        f"{one['name']} {_ended(one['lastState']['terminated'])}"
        for one in pod.get("status", {}).get("containerStatuses") or ()
        if "terminated" in one.get("lastState", {})
    )
    return next(ends, "")


def container_to_ask(pod: Pod) -> tuple[str, bool] | None:
    """A container that has ended without saying why, and whether it was its run before; its log may say it."""
    for one in _containers(pod):
        for key in ("state", "lastState"):
            ended = one.get(key, {}).get("terminated")
            if ended and ended.get("exitCode", 0) != 0:
                return None if ended.get("message") else (str(one["name"]), key == "lastState")
    return None


def _causes(pod: Pod) -> Iterator[str]:
    status = pod.get("status", {})
    if _given_up(pod):
        yield f"{status.get('reason', 'it failed')}: {status.get('message', '')}"
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"no node takes it: {condition.get('message', condition.get('reason', 'no reason is given'))}"
    for container in _containers(pod):
        yield from _of_container(container)


def _of_container(container: Mapping[str, Any]) -> Iterator[str]:
    state, before = container.get("state", {}), container.get("lastState", {})
    for ended in (state.get("terminated"), before.get("terminated")):
        if ended and ended.get("exitCode", 0) != 0:
            yield f"{container['name']} {_ended(ended)}"
    waiting = state.get("waiting", {})
    if waiting and waiting.get("reason") not in _ONLY_STARTING:
        said = f": {waiting['message']}" if waiting.get("message") else ""
        yield f"{container['name']} waits, {waiting.get('reason', 'without a reason')}{said}"


def _ended(ended: Mapping[str, Any]) -> str:
    if said := str(ended.get("message", "")).strip():
        return f"failed: {said.splitlines()[-1]}"
    if ended.get("reason") == "OOMKilled":
        return "was ended because it took more memory than its limit (OOMKilled)"
    code = ended["exitCode"]
    return f"was ended by signal {code - 128}" if code > 128 else f"ended with exit code {code}"


def _given_up(pod: Pod) -> bool:
    """Whether Kubernetes has ended it (evicted, refused by its machine), and started another in its place."""
    return bool(pod.get("status", {}).get("phase") == "Failed")


def _failures(container: Mapping[str, Any]) -> int:
    """How often it has failed; not this time, if it runs."""
    return int(container.get("restartCount", 0)) + ("running" not in container.get("state", {}))


def _containers(pod: Pod) -> Iterator[Mapping[str, Any]]:
    """Those that have not done their work: what one that prepares a pod failed at before it succeeded is over."""
    status = pod.get("status", {})
    for one in status.get("initContainerStatuses") or ():
        if one.get("state", {}).get("terminated", {}).get("exitCode") != 0:
            yield one
    yield from status.get("containerStatuses") or ()
