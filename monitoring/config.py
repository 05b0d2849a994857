"""What monitoring judges by: windows, thresholds and objectives, typed and checked, with defaults for all of it."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from monitoring.names import LATENCY_BUCKETS_SECONDS

Duration = Annotated[str, Field(pattern=r"^[1-9][0-9]*[smhd]$")]
"""A whole number of seconds, minutes, hours or days, as Prometheus writes it."""
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _a_bound(given: float) -> float:
    if given not in LATENCY_BUCKETS_SECONDS:
        allowed = ", ".join(f"{bound:g}" for bound in LATENCY_BUCKETS_SECONDS)
        raise ValueError(f"must be a bound of the latency histogram, so that slow requests are counted: {allowed}")
    return given


LatencyBound = Annotated[Positive, AfterValidator(_a_bound)]
"""Seconds."""
Severity = Literal["page", "ticket"]
DriftWindow = Literal["10m", "1h", "6h", "1d", "7d"]
BurnWindow = Literal["5m", "30m", "1h", "2h", "6h", "1d", "3d"]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: Duration) -> int:
    return int(duration[:-1]) * SECONDS[duration[-1]]


class ConfigInvalid(ValueError):
    """A file of objectives that cannot be used; `problems` says what was found and what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class Part(BaseModel):
    """One part of the configuration: it does not change, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


class DriftTier(Part):
    """How far a feature must have moved within one window, and for how long, before anybody hears of it."""

    effect: Positive
    """PSI beyond what chance gives: about the square of a mean's shift in standard deviations.

    Where windows of the training rows have moved further than that themselves, an alert wants more than they did.
    """
    hold: Duration = Field(alias="for")


DRIFT_TIERS: dict[DriftWindow, DriftTier] = {
    "10m": DriftTier(effect=0.25, hold="2m"),
    "1h": DriftTier(effect=0.10, hold="5m"),
    "6h": DriftTier(effect=0.05, hold="15m"),
    "1d": DriftTier(effect=0.03, hold="30m"),
    "7d": DriftTier(effect=0.02, hold="1h"),
}


class Drift(Part):
    """An alert wants all three: an effect, significance (z), and rows (after correction for bursts)."""

    tiers: dict[DriftWindow, DriftTier] = DRIFT_TIERS
    z: Positive = 5
    rows: Count = 100
    missing: Share = 0.05
    """By how much the share of missing values must have risen."""
    rff_effect: Positive = 0.01
    """Mean square shift of a random Fourier feature beyond chance, in variances."""

    @field_validator("tiers")
    @classmethod
    def _all_tiers(cls, given: dict[DriftWindow, DriftTier]) -> dict[DriftWindow, DriftTier]:
        """Tiers that were not given stay as they are."""
        return {**DRIFT_TIERS, **given}


class Quality(Part):
    """Judged over one day of labels."""

    sigmas: Positive = 3
    """Half the width of the Wilson interval around accuracy, in standard deviations."""
    labels: Count = 50
    """Fewer say nothing."""
    accuracy_drop: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """By how much accuracy may fall short of what it was when the version was registered."""
    macro_f1: Share = 0.5


class Burn(Part):
    """An alert when the error budget burns `factor` times too fast in both windows (Google SRE Workbook, chapter 5)."""

    long: BurnWindow
    short: BurnWindow
    factor: Positive
    hold: Duration = Field(alias="for")
    severity: Severity


BURNS = (
    Burn(long="1h", short="5m", factor=14.4, hold="2m", severity="page"),
    Burn(long="6h", short="30m", factor=6, hold="15m", severity="page"),
    Burn(long="1d", short="2h", factor=3, hold="1h", severity="ticket"),
    Burn(long="3d", short="6h", factor=1, hold="3h", severity="ticket"),
)


class Objectives(Part):
    """What is promised for 30 days, per model and version."""

    available: Share = 0.999
    """Share of requests that the server does not fail."""
    fast: Share = 0.99
    """Share of requests that are answered within `fast_seconds`."""
    fast_seconds: LatencyBound = 0.25
    burns: Annotated[tuple[Burn, ...], Field(min_length=1)] = BURNS
    bad_requests: Count = 10
    """An alert wants as many bad requests in its long window: with little traffic a share means nothing."""


class Health(Part):
    """The nodes and their programs."""

    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = "shipway-node"
    """The job under which Prometheus scrapes the nodes."""
    requests: Count = 100
    """A model that had as many within the last 6 hours, and in this hour of yesterday, is missed when it has none."""
    queue: Share = 0.8
    """Share of the requests that may be at a version at once."""
    restarts: Count = 3
    """Restarts of workers in 15 minutes."""
    gpus: bool = False
    """Whether there are GPUs to watch, so that a missing exporter is a fault."""
    gpu_memory: Share = 0.95


class Webhook(Part):
    """Whom Alertmanager tells. What is secret is in a file."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    token_file: Path | None = None
    """A file with a bearer token; its path is absolute."""

    @field_validator("url")
    @classmethod
    def _no_secret(cls, given: str) -> str:
        if "@" in urlsplit(given).netloc:
            raise ValueError("must hold no user and password: put a bearer token into token_file")
        return given

    @field_validator("token_file")
    @classmethod
    def _absolute(cls, given: Path | None) -> Path | None:
        if given is not None and not given.is_absolute():
            raise ValueError("must be an absolute path")
        return given


class Config(Part):
    """Everything; what is not given has its default."""

    drift: Drift = Drift()
    quality: Quality = Quality()
    objectives: Objectives = Objectives()
    health: Health = Health()
    runbook: Annotated[str, Field(min_length=1, pattern=r"^[^\s#]+$")] = "monitoring/RUNBOOK.md"
    """Where the runbook is read; an alert adds its own section."""
    webhook: Webhook | None = None

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read what differs from the defaults; ConfigInvalid for unknown keys and values that are not allowed."""
        try:
            return cls.model_validate(yaml.safe_load(text) or {})
        except yaml.YAMLError as error:
            raise ConfigInvalid([f"not YAML: {' '.join(str(error).split())}"]) from error
        except ValidationError as error:
            raise ConfigInvalid([_in_words(dict(problem)) for problem in error.errors()]) from error


def _in_words(problem: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{where} is not known"
    # What stands in an address may be a secret: it is not repeated.
    found = "" if where.startswith("webhook") else f"; found {problem['input']!r}"
    return f"{where}: {str(problem['msg']).removeprefix('Value error, ')}{found}"
