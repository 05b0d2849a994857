"""From a registered version to a signed archive. The same version gives the same bytes, in any process."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from handlers.answer import EXPLAINER
from model_store.archive import MODEL_NAME, pack
from model_store.errors import NotServable
from model_store.members import OwnFiles, OwnParts, members_of
from model_store.registry import Registry
from model_store.worker_plan import WorkerPlan


@dataclass(frozen=True)
class Optimizing:
    """What is wished of `--optimize`."""

    max_difference: float | None = None
    """Of any output value; None is the default of the version's kind."""
    console: Console | None = None
    """Shows progress, and the table of what was measured."""


@dataclass(frozen=True)
class PackagedVersion:
    """A signed archive of a version."""

    model: str
    version: int
    digest: str
    archive: Path


def package(
    model_uri: str,
    *,
    tracking_uri: str,
    archives_dir: Path,
    signing_key: Path,
    plan: WorkerPlan | None = None,
    own: OwnFiles | None = None,
    optimizing: Optimizing | None = None,
) -> PackagedVersion:
    """Write and sign the archive of `models:/NAME/VERSION` or `models:/NAME@ALIAS`, and log both beside the version.

    `own` are files of the user's instead of the version's own parts. With `optimizing` the archive runs the version in
    the way that was the fastest on this hardware with outputs near enough.

    Raises RegistryError, ProgramUnreadable, HandlerUnusable, NotServable, GoldenRefused, ReferenceRefused, NotCompiled
    or KeyUnusable;
    the archive is there whole or not at all.
    """
    parts = OwnParts.read(own or OwnFiles())
    registry = Registry(tracking_uri)
    version = registry.resolve(model_uri)
    _check_name(version.model)
    plan = plan or WorkerPlan()
    members = members_of(registry, version, plan, parts)
    if optimizing:
        from model_store.optimize import optimized  # torch's compiler takes seconds to import

        members = optimized(registry, version, members, plan, **vars(optimizing))
    archive, digest = pack(members, version.model, version.version, archives_dir, signing_key)
    registry.log_archive(version, archive, digest)
    return PackagedVersion(version.model, version.version, digest, archive)


def _check_name(model: str) -> None:
    if MODEL_NAME.fullmatch(model) is None or model.endswith(EXPLAINER):
        raise NotServable(
            f"its name is {model!r}; allowed are up to 100 letters, digits, - and _ that do not end with {EXPLAINER}; "
            "copy it to another name with: mlflow.MlflowClient().copy_model_version"
        )
