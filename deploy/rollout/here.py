"""Endpoints of this machine: the settings as the parts of an `Endpoint`, and what a version given by name is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import NotFetched
from deploy.node import desired
from deploy.packaged import packaged_digest
from deploy.rollout.driver import Local
from deploy.rollout.endpoint import Endpoint
from deploy.rollout.interrupts import Wish
from deploy.rollout.ledger import Ledger
from deploy.rollout.policy import Policy, read_policy
from deploy.rollout.record import Entry, Release
from deploy.rollout.run import Judge, Tell
from deploy.settings import Settings
from model_store.archive import archive_name


def endpoint(
    settings: Settings,
    model: str,
    *,
    tell: Tell = lambda *_: None,
    wish: Callable[[], Wish] = lambda: "",
    policy: Policy | None = None,
) -> Endpoint:
    """The endpoint of `model`, judged by the Prometheus of the settings; `policy` instead of the configured one."""
    from deploy.objectives import read_objectives

    def configured() -> Policy:
        return policy or read_policy(settings.rollout_config, model, read_objectives(settings).objectives)

    return Endpoint(
        model=model,
        ledger=Ledger(settings.rollouts_dir, model),
        driver=Local(settings.desired_file, settings.actual_file),
        locks_dir=settings.rollouts_dir,
        packaged=lambda version: release(settings, model, version),
        read_policy=configured,
        judging=_Judging(settings.prometheus_url, settings.archives_dir),
        breaking=_Breaking(settings.archives_dir, model),
        tell=tell,
        wish=wish,
    )


@dataclass(frozen=True)
class _Judging:
    """Imported when something is judged: going back needs none of it."""

    url: str
    archives_dir: Path

    def __call__(self, policy: Policy) -> Judge:
        from deploy.rollout.judging import by_prometheus

        return by_prometheus(self.url, policy, self.archives_dir)


@dataclass(frozen=True)
class _Breaking:
    """Imported when a version is rolled out, likewise."""

    archives_dir: Path
    model: str

    def __call__(self, champion: Release, candidate: Release) -> tuple[str, ...]:
        from deploy.rollout.compatibility import breaking_changes

        return breaking_changes(self.archives_dir, self.model, champion, candidate)


def release(settings: Settings, model: str, version: int | str) -> Release:
    """The archive of a version, given by number or by an alias (`@challenger`), which only MLflow knows.

    Raises:
        NotPackaged, NotFetched: there is no archive of it on this machine.
        RegistryError: MLflow does not answer, or has no such alias.
    """
    if isinstance(version, int):
        return Release(version=version, digest=packaged_digest(settings.archives_dir, model, version))
    from model_store.registry import Registry

    found = Registry(settings.mlflow_uri).resolve(f"models:/{model}{version}")
    digest = found.digest or packaged_digest(settings.archives_dir, model, found.version)
    if not (settings.archives_dir / archive_name(model, found.version, digest)).exists():
        raise NotFetched(settings.archives_dir, model, found.version, digest)
    return Release(version=found.version, digest=digest)


def serve(settings: Settings, model: str, given: Release, *, explain: bool | None = None) -> Entry | None:
    """Give all traffic of `model` to a version at once, unjudged; RolloutUnfinished while a rollout is on."""
    path = settings.desired_file
    return endpoint(settings, model).adopt(
        given, lambda: desired.serve(path, model, given.version, given.digest, explain=explain)
    )
