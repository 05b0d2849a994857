"""What a pod serves: the version of its template, and beside it the canary that its routing files name.

The release's file says who the canary is, and its share; the rollout's says how much it gets meanwhile, as long as it
names that very canary. They only move traffic: nothing is loaded or unloaded because of them.
"""

import logging
from pathlib import Path

from pydantic import Field

from deploy.errors import StateFileInvalid
from deploy.node.desired import Desired, DesiredEndpoint, DesiredVersion, Digest, Frozen, Mirror, Peer, read_state
from deploy.node.serves import Serves
from deploy.node.user_files import identity

logger = logging.getLogger(__name__)

RELEASE, ROLLOUT = "release/routing.json", "rollout/routing.json"


class Canary(Peer):
    """Another version of the model, on other nodes. Of the requests it answers `weight` percent, and sees `mirror`."""

    version: int = Field(ge=1)
    digest: Digest
    weight: int = Field(ge=0, le=100)
    mirror: int = Field(default=0, ge=0, le=100)


class RoutingFile(Frozen):
    canary: Canary | None


class Routing:
    """Of a pod. What is not right leaves in force what was, and is a problem in words."""

    def __init__(self, serves: Serves, directory: Path | None) -> None:
        self._serves = serves
        self._paths = {} if directory is None else {name: directory / name for name in (RELEASE, ROLLOUT)}
        self._files = {name: RoutingFile(canary=None) for name in (RELEASE, ROLLOUT)}
        self._problems: dict[str, str] = {}

    def seen(self) -> object:
        """What changes when a file is replaced; in a ConfigMap a link is moved."""
        return [identity(path) for path in self._paths.values()]

    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems.values())

    def read(self) -> Desired:
        for name, path in self._paths.items():
            before = self._problems.pop(name, "")
            try:
                self._files[name] = self._read(name, path)
            except StateFileInvalid as error:
                self._problems[name] = f"the routing that was there before stays in force: {error}"
                if self._problems[name] != before:
                    logger.error("%s", self._problems[name])
        return _beside(self._serves.desired(), self._canary())

    def _read(self, name: str, path: Path) -> RoutingFile:
        found = read_state(path, RoutingFile)
        if found is None and name == RELEASE:
            raise StateFileInvalid(path, ["it is not there"])
        return found or RoutingFile(canary=None)

    def _canary(self) -> Canary | None:
        canary, moved = (self._files[name].canary for name in (RELEASE, ROLLOUT))
        # A pod of the canary's version that is left from a promotion that was rolled back answers by itself.
        if canary is None or canary.version == self._serves.version:
            return None
        if moved is None or (moved.version, moved.digest) != (canary.version, canary.digest):
            return canary
        return canary.model_copy(update={"weight": moved.weight, "mirror": moved.mirror})


def _beside(alone: Desired, canary: Canary | None) -> Desired:
    """The pod's own version falls in for whatever the canary loses."""
    if canary is None:
        return alone
    (endpoint,) = alone.endpoints
    (own,) = endpoint.versions
    peer = Peer(host=canary.host, port=canary.port)
    versions = (
        own.model_copy(update={"weight": 100 - canary.weight}),
        DesiredVersion(version=canary.version, digest=canary.digest, weight=canary.weight, peer=peer),
    )
    mirror = Mirror(version=canary.version, percent=canary.mirror) if canary.mirror else None
    changes = {"versions": versions, "fallback": own.version, "mirror": mirror}
    return Desired(endpoints=(DesiredEndpoint.model_validate(endpoint.model_copy(update=changes)),))
