"""What a node should serve (`desired.json`) and what it serves (`actual.json`): two files, each replaced whole."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from deploy.errors import StateFileInvalid
from handlers.answer import EXPLAINER
from handlers.errors import shown
from model_store.archive import MODEL_NAME
from model_store.files import write_atomically

ModelName = Annotated[str, Field(pattern=f"^{MODEL_NAME.pattern}$")]
Digest = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
State = Literal["LOADING", "READY", "FAILED"]


class Frozen(BaseModel):
    # Strict: a version is an integer, and neither true nor "1".
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DesiredVersion(Frozen):
    """One version of an endpoint. Weight 0: loaded, and answering only those who pin it."""

    version: int = Field(ge=1)
    digest: Digest
    weight: int = Field(ge=0, le=100)


class Mirror(Frozen):
    """Of the requests that other versions answer, a share is copied to this one; nobody sees what it answers."""

    version: int
    percent: int = Field(ge=1, le=100)


class DesiredEndpoint(Frozen):
    """One model name in service. The weights of its versions add up to 100."""

    model: ModelName
    versions: tuple[DesiredVersion, ...]
    explainer: int | None = None
    """The version whose predictions can be explained."""
    fallback: int | None = None
    """The version that answers what another version lost: its worker reset the connection, or is not there."""
    mirror: Mirror | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        # Here and not as the field's own rule, which also complains when a version was refused for itself.
        if not self.versions:
            raise ValueError("at least one version; found none")
        numbers = [version.version for version in self.versions]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"every version once; found {numbers}")
        if (total := sum(version.weight for version in self.versions)) != 100:
            raise ValueError(f"the weights must add up to 100; found {total}")
        mirrored = self.mirror.version if self.mirror else None
        for role, version in (("explainer", self.explainer), ("fall-back", self.fallback), ("mirror", mirrored)):
            if version is not None and version not in numbers:
                raise ValueError(f"the {role} must be one of the versions {numbers}; found {version}")
        if self.model.endswith(EXPLAINER):
            raise ValueError(f"a model's name must not end in {EXPLAINER}; found {self.model}")
        return self


class Desired(Frozen):
    endpoints: tuple[DesiredEndpoint, ...] = ()

    @model_validator(mode="after")
    def _models_once(self) -> Self:
        models = [endpoint.model for endpoint in self.endpoints]
        if len(set(models)) != len(models):
            raise ValueError(f"every model once; found {models}")
        return self

    def endpoint(self, model: str) -> DesiredEndpoint | None:
        return next((endpoint for endpoint in self.endpoints if endpoint.model == model), None)


class ActualVersion(Frozen):
    version: int
    digest: str
    weight: int
    """What is in force; the desired one only once its routes are."""
    state: State
    reason: str = ""
    """Why it is not READY, in words."""


class ActualExplainer(Frozen):
    version: int
    state: State
    reason: str = ""


class ActualEndpoint(Frozen):
    model: str
    versions: tuple[ActualVersion, ...]
    explainer: ActualExplainer | None = None
    """Its state does not count for the node's: predictions do not depend on it."""
    fallback: int | None = None
    mirror: Mirror | None = None
    """These two are, like weights, what is in force."""


class Actual(Frozen):
    pid: int
    ready: bool
    reason: str = ""
    """Why the node is not ready, in words."""
    warnings: tuple[str, ...] = ()
    """What is wrong, in words, though the node goes on as before."""
    endpoints: tuple[ActualEndpoint, ...] = ()

    def endpoint(self, model: str) -> ActualEndpoint | None:
        return next((endpoint for endpoint in self.endpoints if endpoint.model == model), None)


_File = TypeVar("_File", Desired, Actual)


def read_desired(path: Path) -> Desired:
    """The desired state; nothing at all where there is no file yet. Raises StateFileInvalid."""
    return _read(path, Desired) or Desired()


def read_actual(path: Path) -> Actual | None:
    """What the node last said of itself, None where it has never run. Raises StateFileInvalid."""
    return _read(path, Actual)


def running(path: Path) -> Actual | None:
    """What a node that runs says of itself, None where none does. Raises StateFileInvalid."""
    actual = read_actual(path)
    return actual if actual is not None and psutil.pid_exists(actual.pid) else None


def write_state(path: Path, state: Desired | Actual) -> None:
    write_atomically(path, state.model_dump_json(indent=2).encode() + b"\n")


def serve(path: Path, model: str, version: int, digest: str, *, explain: bool | None = None) -> Desired:
    """Give all of `model`'s traffic to `version`; the version that had it stays loaded at weight 0, others go.

    There is no fall-back and no mirror afterwards: those are a rollout's, and this ends it.
    `explain`: whether this version gets an explainer; None for one if the model had one.
    """

    def served(kept: DesiredEndpoint | None) -> DesiredEndpoint:
        warm = [v for v in kept.versions if v.weight > 0 and v.version != version] if kept else []
        if kept and not warm:
            warm = [v for v in kept.versions if v.version != version]
        versions = (
            DesiredVersion(version=version, digest=digest, weight=100),
            *(v.model_copy(update={"weight": 0}) for v in warm),
        )
        explained = explain if explain is not None else kept is not None and kept.explainer is not None
        return DesiredEndpoint(model=model, versions=versions, explainer=version if explained else None)

    return change(path, model, served)


def change(path: Path, model: str, edit: Callable[[DesiredEndpoint | None], DesiredEndpoint | None]) -> Desired:
    """Replace one endpoint by what `edit` makes of it, None to take it out of service; what says so already stays.

    Endpoints change independently of each other, so a lock beside the file keeps two changes apart.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_desired(path)
        endpoint = edit(before.endpoint(model))
        others = tuple(one for one in before.endpoints if one.model != model)
        changed = Desired(endpoints=(*others, endpoint) if endpoint else others)
        if endpoint != before.endpoint(model) or not path.exists():
            write_state(path, changed)
    return changed


def _read(path: Path, kind: type[_File]) -> _File | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFileInvalid(path, [f"it cannot be read: {error.strerror}"]) from error
    except ValidationError as error:
        raise StateFileInvalid(path, [in_words(problem) for problem in error.errors()]) from error


def in_words(problem: ErrorDetails) -> str:
    words = problem["msg"].removeprefix("Value error, ")
    where = "".join(f"{part}." for part in problem["loc"])[:-1]
    words = f"{where}: {words}" if where else words
    # These two say by themselves what was found.
    return words if problem["type"] in ("value_error", "json_invalid") else f"{words}; found {shown(problem['input'])}"
