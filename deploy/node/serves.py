"""The one version that a pod serves, fixed by its template: `SHIPWAY_SERVES`, instead of `desired.json`."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from deploy.errors import InvalidSettings
from deploy.node.desired import Desired, DesiredEndpoint, DesiredVersion, Digest, Frozen, ModelName, in_words
from deploy.settings import variable
from model_store.worker_plan import CONFIG

_SERVES = variable("serves")
_OF_TORCHSERVE = {
    "workers": ("minWorkers", "maxWorkers"),
    "batch_size": ("batchSize",),
    "max_batch_delay_ms": ("maxBatchDelay",),
    "response_timeout_seconds": ("responseTimeout",),
    "max_queue": ("jobQueueSize",),
}
"""What TorchServe calls the fields of a Handler in `model-config.yaml`."""


class Handler(Frozen):
    """How the version is run; None is as it was packaged."""

    model_config = ConfigDict(alias_generator=to_camel)

    workers: int | None = Field(default=None, ge=1, le=256)
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    """Requests that one worker answers at once, at most."""
    max_batch_delay_ms: int | None = Field(default=None, ge=0, le=60_000)
    """Of TorchServe's own queue, which no request passes: a worker takes what waits for it, and waits for no more."""
    response_timeout_seconds: int | None = Field(default=None, ge=1, le=3600)
    max_queue: int | None = Field(default=None, ge=1, le=100_000)
    """Requests at the version at once; beyond that clients get 503."""

    def apply(self, unpacked: Path) -> None:
        """Write it into the configuration of an unpacked archive, which stays one complete file."""
        said: Mapping[str, int] = self.model_dump(exclude_none=True)
        if said:
            config = yaml.safe_load((unpacked / CONFIG).read_text())
            config |= {name: value for field, value in said.items() for name in _OF_TORCHSERVE[field]}
            (unpacked / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


class Serves(Frozen):
    model: ModelName
    version: int = Field(ge=1)
    digest: Digest
    explain: bool = False
    handler: Handler = Handler()

    def desired(self) -> Desired:
        """All traffic for this version, and no other."""
        version = DesiredVersion(version=self.version, digest=self.digest, weight=100)
        explainer = self.version if self.explain else None
        return Desired(endpoints=(DesiredEndpoint(model=self.model, versions=(version,), explainer=explainer),))


def read_serves(text: str) -> Serves:
    """What SHIPWAY_SERVES says in JSON. Raises InvalidSettings."""
    try:
        serves = Serves.model_validate_json(text)
        serves.desired()  # has rules of its own
    except ValidationError as error:
        raise InvalidSettings([f"{_SERVES}: {in_words(problem)}" for problem in error.errors()]) from None
    return serves
