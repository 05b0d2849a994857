"""How far a faster way to run a program may be from the exported program in float32, and how far it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Outputs = Sequence[Floats]
"""Every output of the program as float64 [rows, values of a row]."""


@dataclass(frozen=True)
class Tolerance:
    """What must hold on the golden set. A limit of None does not apply."""

    max_difference: float | None = None
    """Of any value of any output."""
    max_relative: float | None = None
    """Allowed on top of `max_difference`, as a share of the value."""
    min_top1: float | None = None
    """Share of rows whose most probable class is the same."""
    min_cosine: float | None = None
    """Cosine similarity of any row's embedding."""

    def words(self) -> str:
        """For a table's title."""
        limits = [
            ("difference at most {:g}", self.max_difference),
            ("plus {:.1%} of the value", self.max_relative),
            ("the same class for at least {:.1%} of the rows", self.min_top1),
            ("cosine similarity above {:g}", self.min_cosine),
        ]
        return ", ".join(words.format(limit) for words, limit in limits if limit is not None)


CLASSES = Tolerance(max_difference=0.05, min_top1=0.99)
EMBEDDING = Tolerance(min_cosine=0.999)
NUMBERS = Tolerance(max_difference=1e-3, max_relative=0.01)


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of two ways to run a program are, over all rows of the golden set."""

    difference: float
    """The largest of any value; infinite where one of the two is no number."""
    excess: float
    """The largest share of the allowed difference that a value took; more than 1 is beyond the tolerance."""
    top1: float
    cosine: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether every limit that applies holds."""
        return (
            self.excess <= 1
            and (tolerance.min_top1 is None or self.top1 >= tolerance.min_top1)
            and (tolerance.min_cosine is None or self.cosine > tolerance.min_cosine)
        )

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def tolerance_of(schema: bytes, max_difference: float | None = None) -> Tolerance:
    """The default for what a `schema.json` describes: classes, an embedding, or other numbers.

    `max_difference` takes the place of the default's, and of its relative part.
    """
    described = json.loads(schema)
    if described.get("classes"):
        default = CLASSES
    elif described["kind"] == "text":
        default = EMBEDDING
    else:
        default = NUMBERS
    if max_difference is None:
        return default
    return Tolerance(max_difference, None, default.min_top1, default.min_cosine)


def compare(found: Outputs, expected: Outputs, tolerance: Tolerance) -> Agreement:
    """How near `found` is to `expected`; classes and cosine are those of the first output."""
    off = [differences(one, other) for one, other in zip(found, expected, strict=True)]
    shares = [excesses(one, other, tolerance) for one, other in zip(off, expected, strict=True)]
    first, reference = found[0], expected[0]
    return Agreement(
        difference=float(max(one.max(initial=0.0) for one in off)),
        excess=float(max(one.max(initial=0.0) for one in shares)),
        top1=float(np.mean(first.argmax(axis=1) == reference.argmax(axis=1))),
        cosine=float(cosines(first, reference).min()),
    )


def differences(found: Floats, expected: Floats) -> Floats:
    """Absolute ones; 0 where both are no number, infinite where one of the two is none."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):  # infinite values, which are the same or not
        return np.where(same, 0.0, np.nan_to_num(np.abs(found - expected), nan=np.inf, posinf=np.inf))


def excesses(off: Floats, expected: Floats, tolerance: Tolerance) -> Floats:
    """The share of its allowed difference that each value took; more than 1 is beyond the tolerance."""
    if tolerance.max_difference is None:
        return np.zeros_like(off)
    return off / (tolerance.max_difference + (tolerance.max_relative or 0.0) * np.abs(np.nan_to_num(expected)))


def cosines(one: Floats, other: Floats) -> Floats:
    """Cosine similarity of each row; no number where one of the two has no direction."""
    with np.errstate(invalid="ignore"):  # infinite values have no direction
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        similar: Floats = (one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return similar
