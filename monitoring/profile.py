"""The profile: the training distribution of a version's inputs and outputs, in bins that traffic is counted into.

Features stand in a fixed order: numbers, categories, outputs, predictions. All their bins lie in one flat row of
counters, so that a worker keeps one array and replicas' counts add up:

    number, output       one bin per interval between edges, then `missing` (NaN)
    category             one bin per vocabulary entry, then `other`, then `missing`
    prediction           of a classifier alone: `class` as a category, `confidence` and `entropy` as numbers
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from monitoring.prediction import predicted
from monitoring.usual import usual_psi_excess

Kind = Literal["number", "category", "output", "prediction"]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

KINDS: tuple[Kind, ...] = ("number", "category", "output", "prediction")
CLASS, CONFIDENCE, ENTROPY = "class", "confidence", "entropy"
"""The features of kind prediction."""
MISSING = "missing"
OTHER = "other"
_DECILES = np.linspace(0.1, 0.9, 9)


class ProfileInvalid(ValueError):
    """A profile that contradicts itself; says which feature and how."""


@dataclass(frozen=True)
class Feature:
    """One input or output: its bins and how many of the profile's rows fell into each.

    Numbers and outputs: bin `searchsorted(edges, x, side="right")`, so there is one more bin than edges; edges are
    exact float32 values. Categories: bin = code, the last one `other`. Rows without a value are in `missing` alone.
    """

    name: str
    kind: Kind
    edges: tuple[float, ...]
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    missing: int
    usual: Mapping[str, float] = field(default_factory=dict)
    """By window, PSI excess that windows of the profile's rows reach themselves: see `monitoring/usual.py`."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ProfileInvalid(f"feature {self.name}: kind {self.kind!r}; allowed are {', '.join(KINDS)}")
        wanted = len(self.categories if self.categorical else self.edges) + 1
        if len(self.counts) != wanted:
            raise ProfileInvalid(f"feature {self.name}: {len(self.counts)} counts; its bins are {wanted}")
        if not all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ProfileInvalid(f"feature {self.name}: edges must rise; found {self.edges}")

    @property
    def categorical(self) -> bool:
        """Whether its bins are categories and not intervals."""
        return self.kind == "category" or bool(self.categories)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label of every bin, in the order of the counters; the last is `missing`."""
        if self.categorical:
            return (*self.categories, OTHER, MISSING)
        return (*(f"{index:02d}" for index in range(len(self.counts))), MISSING)

    @property
    def reference(self) -> tuple[int, ...]:
        """The profile's own rows per bin, in the order of `labels`."""
        return (*self.counts, self.missing)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each feature's bins lie in the flat row of counters."""

    offsets: IntArray
    """Index of each feature's first bin, [features]."""
    bins: IntArray
    """Number of each feature's bins with `missing`, which is the last, [features]."""
    size: int
    """Number of counters."""


class Binner:
    """Index of every value's bin in the flat row of counters. Holds arrays only; safe to share between threads."""

    def __init__(self, features: Sequence[Feature], layout: Layout) -> None:
        numeric = np.array([not feature.categorical for feature in features], dtype=np.bool_)
        # A value's bin is counted down from `missing`, its feature's last bin: one down for being a number at all
        # (a comparison with inf that only NaN fails), one more for every edge above it. So one comparison does it.
        # "x < edge" is written "x <= the float32 below edge", so that inf <= inf puts inf into the highest bin.
        # Rows of the table are filled up with NaN, which nothing compares with.
        width = 1 + max((len(feature.edges) for feature in features), default=0)
        table = np.full((int(numeric.sum()), width), np.nan, dtype=np.float32)
        for row, feature in zip(table, (f for f in features if not f.categorical), strict=True):
            row[0] = np.inf
            edges = np.array(feature.edges, dtype=np.float32)
            row[1 : 1 + len(edges)] = np.nextafter(edges, np.float32(-np.inf))
        self._table = np.ascontiguousarray(table.T)  # [edges, features]: the sum runs along the fast axis
        missing, first = (layout.offsets + layout.bins - 1)[numeric], layout.offsets[~numeric]
        self._origins = np.concatenate((missing, first))
        self._signs = np.concatenate((np.full_like(missing, -1), np.ones_like(first)))

    def __call__(self, values: Sequence[FloatArray], codes: Sequence[IntArray]) -> IntArray:
        """Bins of n rows as counter indices, int64 [n, features], those of numeric features first.

        `values`, each [n, …], and `codes`, each [n, …], stand side by side in the order of the profile's features.
        Codes must lie within their vocabularies (`other` = its length, missing one more), as encoding gives them.
        """
        numbers = np.concatenate(values, axis=1)
        if len(numbers) == 1:  # a lone row, the usual case, is done in half the time without a third axis
            above = np.add.reduce(numbers <= self._table, axis=0, dtype=np.int64)[np.newaxis]
        else:
            above = np.add.reduce(numbers[:, None, :] <= self._table, axis=1, dtype=np.int64)
        bins: IntArray = np.concatenate((above, *codes), axis=1)
        bins *= self._signs
        bins += self._origins
        return bins


@dataclass(frozen=True)
class Profile:
    """The training distribution: `rows` rows, binned by feature."""

    rows: int
    features: tuple[Feature, ...]
    classes: tuple[str, ...] = ()
    """What the model decides between; empty where it predicts no class."""
    accuracy: float | None = None
    """On validation data when the version was registered, a share of 1; None where nobody said."""
    rff: str = ""
    """Digest of the map of random Fourier features, which is a file of its own; empty where there is none."""

    def __post_init__(self) -> None:
        kinds = [KINDS.index(feature.kind) for feature in self.features]
        if kinds != sorted(kinds):
            raise ProfileInvalid(f"features must stand in the order {', '.join(KINDS)}")
        found = tuple(feature.name for feature in self.features if feature.kind == "prediction")
        wanted = (CLASS, CONFIDENCE, ENTROPY) if self.classes and self.features else ()
        if found != wanted:
            raise ProfileInvalid(f"features of kind prediction are {found}; with its classes they must be {wanted}")
        for feature in self.features:
            total = sum(feature.reference)
            if total != self.rows:
                raise ProfileInvalid(f"feature {feature.name}: its bins hold {total} rows; the profile has {self.rows}")

    @classmethod
    def build(
        cls,
        numbers: Mapping[str, FloatArray],
        categories: Mapping[str, tuple[IntArray, Sequence[str]]],
        outputs: Mapping[str, FloatArray],
        probabilities: npt.NDArray[Any] | None = None,
        classes: Sequence[str] = (),
        times: IntArray | None = None,
    ) -> Self:
        """Bin whole columns: numbers and outputs by deciles, categories (codes, vocabulary) by code; each array [n].

        `probabilities` [n, classes] are a classifier's, and become the features of kind prediction. `times` [n] are
        the rows' Unix times, where they have some.
        """
        features = [
            *(_number(name, "number", values, times) for name, values in numbers.items()),
            *(_category(name, "category", *column, times) for name, column in categories.items()),
            *(_number(name, "output", values, times) for name, values in outputs.items()),
        ]
        if probabilities is not None:
            found, (confidence, entropy) = (array.T for array in predicted(probabilities))
            features += [
                _category(CLASS, "prediction", found[0], classes, times),
                _number(CONFIDENCE, "prediction", confidence, times),
                _number(ENTROPY, "prediction", entropy, times),
            ]
        return cls(sum(features[0].reference) if features else 0, tuple(features), tuple(classes))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read `profile.json`; ProfileInvalid if it is none."""
        try:
            fields = json.loads(data)
            return cls(
                rows=int(fields["rows"]),
                features=tuple(_feature(entry) for entry in fields["features"]),
                classes=tuple(str(name) for name in fields["classes"]),
                accuracy=None if fields["accuracy"] is None else float(fields["accuracy"]),
                rff=str(fields["rff"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ProfileInvalid):
                raise
            raise ProfileInvalid(f"not a profile: {type(error).__name__}: {error}") from error

    def to_json(self) -> bytes:
        """`profile.json`, the same bytes for the same profile."""
        return json.dumps(asdict(self), indent=1).encode()

    @cached_property
    def layout(self) -> Layout:
        """Where each feature's bins lie among the counters."""
        bins = np.array([len(feature.labels) for feature in self.features], dtype=np.int64)
        ends = np.cumsum(bins)
        return Layout(offsets=ends - bins, bins=bins, size=int(bins.sum()))

    def binner(self) -> Binner:
        """The function that finds counter indices for rows of traffic."""
        return Binner(self.features, self.layout)


def _number(name: str, kind: Kind, values: FloatArray, times: IntArray | None) -> Feature:
    values = np.asarray(values, dtype=np.float32)
    missing = np.isnan(values)
    edges = _edges(values[~missing])
    bins = np.where(missing, len(edges) + 1, np.searchsorted(edges, values, side="right"))
    return _feature_of(bins, times, name=name, kind=kind, edges=tuple(edges.tolist()))


def _edges(values: FloatArray) -> FloatArray:
    """Deciles as edges, without duplicates and without an edge that nothing lies below.

    A value that fills more than one decile (no rain, no delay) would swallow its neighbours: the bin that starts at
    it ends at the next value seen, so that the bin holds nothing else.
    """
    if len(values) == 0:
        return np.empty(0, dtype=np.float32)
    ordered = np.sort(values)
    deciles = ordered[(_DECILES * len(ordered)).astype(np.int64)]
    edges, times = np.unique(deciles, return_counts=True)
    after = np.searchsorted(ordered, edges[times > 1], side="right")
    edges = np.unique(np.concatenate((edges, ordered[after[after < len(ordered)]])))
    above: FloatArray = edges[edges > ordered[0]]
    return above


def _category(name: str, kind: Kind, codes: IntArray, vocabulary: Sequence[str], times: IntArray | None) -> Feature:
    return _feature_of(codes, times, name=name, kind=kind, categories=tuple(vocabulary))


def _feature_of(
    bins: IntArray,
    times: IntArray | None,
    *,
    name: str,
    kind: Kind,
    edges: tuple[float, ...] = (),
    categories: tuple[str, ...] = (),
) -> Feature:
    size = len(edges or categories) + 2
    *counts, missing = np.bincount(bins, minlength=size).tolist()
    usual = {} if times is None else usual_psi_excess(bins, size, times)
    return Feature(name, kind, edges, categories, tuple(counts), missing, usual)


def _feature(entry: dict[str, Any]) -> Feature:
    return Feature(
        name=str(entry["name"]),
        kind=entry["kind"],
        edges=tuple(float(edge) for edge in entry["edges"]),
        categories=tuple(str(category) for category in entry["categories"]),
        counts=tuple(int(count) for count in entry["counts"]),
        missing=int(entry["missing"]),
        usual={str(window): float(excess) for window, excess in entry["usual"].items()},
    )
