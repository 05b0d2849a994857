"""What a rollout is judged by: its steps and the gate's limits, for each endpoint, from one YAML file.

`defaults:` holds what differs for every endpoint, `endpoints: {NAME: ...}` what differs for one. A list replaces the
one before it; of a part (`errors:`) only the keys that are given do.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from deploy.errors import PolicyInvalid
from deploy.rollout.record import Record, Step
from monitoring.config import Count, LatencyBound, Objectives, Positive, Share

Reaction = Literal["hold", "roll back"]


class Rate(Record):
    """Limits on a share of bad requests: p0 and p1 of Wald's test, and what the champion's share may be exceeded by."""

    p0: Share = 0.01
    """A version with no more than this is healthy."""
    p1: Share = 0.05
    """One with as many is bad."""
    margin: Share = 0.01
    """Promotion wants it shown that the candidate's share is above the champion's by no more."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.p1 <= self.p0:
            raise ValueError(f"p1 must be above p0, which is {self.p0:g}; p1 is {self.p1:g}")
        return self


class Slow(Rate):
    """A request that took longer than `seconds` is bad."""

    margin: Share = 0.02
    seconds: LatencyBound = 0.25


class Latency(Record):
    """At any latency of the champion's, `share` more of the candidate's requests may take factor x it + slack."""

    factor: Annotated[float, Field(ge=1)] = 1.5
    slack_seconds: Annotated[float, Field(ge=0)] = 0.01
    """A canary's batches are smaller and wait differently: a few milliseconds are no fault of the version."""
    share: Share = 0.1


class Memory(Record):
    """A leak grows in each quarter of the time; warm-up ends, and a larger batch is one jump."""

    seconds: Positive = 60
    """The shortest time that is judged; half as long before it is warm-up."""
    bytes: Positive = 64 * 2**20
    """Growth that is no leak yet, of one node's workers."""
    bytes_per_second: Positive = 2**20
    """Steady growth beyond the champion's that is allowed."""


class Predictions(Record):
    """When the candidate predicts something else than the champion, on the same window."""

    effect: Positive = 0.1
    """PSI beyond chance, where both have the same bins."""
    share: Share = 0.1
    """Of the rows that may lie on the other side of a value, where the two profiles have bins of their own."""
    rows: Count = 100


class Agreement(Record):
    """Of the mirrored rows."""

    share: Share = 0.95
    rows: Count = 100


class Quality(Record):
    """Of the labels that came back for predictions of this rollout."""

    labels: Count = 50
    """Fewer, of either version, say nothing."""
    drop: Share = 0.02
    """By how much accuracy may be below the champion's."""


class Policy(Record):
    steps: tuple[Step, ...] = (
        Step(weight=5, seconds=60, requests=100, give_up_seconds=1800),
        Step(weight=25, seconds=60, requests=200, give_up_seconds=1800),
        Step(weight=50, seconds=60, requests=300, give_up_seconds=1800),
        Step(weight=100, seconds=60, requests=400, give_up_seconds=1800),
    )
    errors: Rate = Rate()
    slow: Slow = Slow()
    refused_margin: Share = 0.02
    """By how much the share of refused inputs may be above the champion's."""
    false_alarm: Share = 0.02
    """How probable it may be in a whole rollout that Wald's test condemns a version whose share is p0."""
    missed: Share = 0.1
    """How probable it may be in one step that it finds a version healthy whose share is p1."""
    z: Annotated[float, Field(ge=3)] = 5
    """Standard deviations by which a comparison condemns. It is made at every look: fewer raise false alarms."""
    confidence_z: Annotated[float, Field(ge=1)] = 1.645
    """One-sided, of the bound that must lie within a margin: 1.645 for 95%."""
    latency: Latency = Latency()
    restarts: Annotated[int, Field(ge=0)] = 0
    """Of workers, beyond the champion's."""
    memory: Memory = Memory()
    predictions: Predictions = Predictions()
    agreement: Agreement = Agreement()
    quality: Quality = Quality()
    input_drift_effect: Positive = 0.25
    """PSI of an input against the candidate's own profile, beyond chance."""
    on_prediction_change: Reaction = "hold"
    on_disagreement: Reaction = "hold"
    on_input_drift: Literal["hold", "nothing"] = "hold"

    @field_validator("steps")
    @classmethod
    def _rise_to_all(cls, given: tuple[Step, ...]) -> tuple[Step, ...]:
        weights = [step.weight for step in given]
        found = ", ".join(map(str, weights)) or "no step"
        rising = [step.weight for step in given if step.weight > 0]
        if rising != sorted(set(rising)) or weights[-1:] != [100] or weights != sorted(weights):
            raise ValueError(f"weights must rise to 100 at the last; found {found}")
        if any(step.weight == 0 and step.mirror == 0 for step in given):
            raise ValueError(f"a weight must be above 0 in a step that mirrors nothing; found {found}")
        if short := [step for step in given if step.give_up_seconds <= step.seconds]:
            raise ValueError(
                f"give_up_seconds must be more than seconds; found {short[0].give_up_seconds:g}, {short[0].seconds:g}"
            )
        return given


def read_policy(path: Path | None, model: str, objectives: Objectives | None = None) -> Policy:
    """The policy of the endpoint `model`: the defaults, or what the file says instead.

    What is slow follows `objectives` unless the file says otherwise.

    Raises:
        PolicyInvalid: the file cannot be read; or says what is not allowed, for whatever endpoint.
    """
    base = _of_objectives(objectives or Objectives())
    if path is None:
        return Policy.model_validate(base)
    defaults, endpoints = _parts(path)
    common = _merged(base, defaults)
    problems = list(_problems(common, "defaults"))
    if not problems:
        for name, given in endpoints.items():
            problems += _problems(_merged(common, given), f"endpoints.{name}")
    if problems:
        raise PolicyInvalid(path, problems)
    return Policy.model_validate(_merged(common, endpoints.get(model, {})))


def _of_objectives(objectives: Objectives) -> dict[str, Any]:
    p0 = round(1 - objectives.fast, 12)
    return {"slow": {"seconds": objectives.fast_seconds, "p0": p0, "p1": 5 * p0 / (1 + 4 * p0)}}


def _parts(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`defaults` and `endpoints` of the file, which are mappings."""
    try:
        found = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyInvalid(path, [str(error)]) from error
    except yaml.YAMLError as error:
        raise PolicyInvalid(path, [f"not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(found, dict):
        raise PolicyInvalid(path, [f"must have the keys defaults and endpoints; found {found!r}"])
    problems = [
        f"{key} is not known; allowed are defaults, endpoints" for key in found.keys() - {"defaults", "endpoints"}
    ]
    defaults, endpoints = found.get("defaults") or {}, found.get("endpoints") or {}
    places = {"defaults": defaults, "endpoints": endpoints}
    if isinstance(endpoints, dict):
        places |= {f"endpoints.{name}": given or {} for name, given in endpoints.items()}
    problems += [
        f"{at}: must be keys and values; found {it!r}" for at, it in places.items() if not isinstance(it, dict)
    ]
    if problems:
        raise PolicyInvalid(path, sorted(problems))
    return defaults, {str(name): given or {} for name, given in endpoints.items()}


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _problems(given: Mapping[str, Any], place: str) -> Iterator[str]:
    try:
        Policy.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join((place, *map(str, problem["loc"])))
            if problem["type"] == "extra_forbidden":
                yield f"{where} is not known; allowed are {', '.join(_allowed(problem['loc'][:-1]))}"
            else:
                yield f"{where}: {problem['msg'].removeprefix('Value error, ')}; found {problem['input']!r}"


def _allowed(place: tuple[int | str, ...]) -> list[str]:
    """Keys of the part at that place of a policy."""
    part: type[Record] = Policy
    for key in place:
        if isinstance(key, str):
            annotation: Any = part.model_fields[key].annotation
            part = next(iter(get_args(annotation)), annotation)
    return sorted(part.model_fields)
