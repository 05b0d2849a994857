"""Random Fourier features: 32 numbers of an image or an embedding whose means tell one distribution from another.

The distance of two distributions' means in such a space approximates the maximum mean discrepancy under a Gaussian
kernel (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007; Gretton et al., "A Kernel
Two-Sample Test", JMLR 13, 2012). Sums of them add up over workers and replicas, as counts do.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MEMBER = "rff.safetensors"
"""Where an archive keeps the map."""
WAVES = 64
"""Cosines of one row. More cost more, and found no more on digits, see tests/bench/NOTES.md."""
DIMENSIONS = 32
"""What is left of them: the directions in which the reference varies most, each scaled to a variance of 1."""
CUT = 4.0
"""Dimensions are cut to -4 to 4, so that no single row weighs more than its share; raised by 4 they are counted."""
MAX_VALUES = 512
"""Values of one row that the map takes, so that it stays cheap."""
_MEDIAN_ROWS = 1000
"""Rows whose distances are looked at for the bandwidth."""
_SEED = 20070


@dataclass(frozen=True, eq=False)
class Rff:
    """The map of rows [n, d] to [n, DIMENSIONS]: whitened on the reference, so there means are 0 and variances 1."""

    frequencies: FloatArray
    """[d, WAVES]"""
    phases: FloatArray
    """[WAVES]"""
    whitening: FloatArray
    """[WAVES, DIMENSIONS]"""
    centre: FloatArray
    """The reference's mean after `whitening`, [DIMENSIONS]."""

    @classmethod
    def fit(cls, reference: npt.NDArray[Any]) -> Self:
        """The map for a reference [M, d]. The same rows give the same map.

        The kernel's bandwidth is the median distance of two different rows (Gretton et al., section 8).
        """
        random = np.random.default_rng(_SEED)
        rows = np.nan_to_num(reference.astype(np.float64))
        frequencies = random.standard_normal((rows.shape[1], WAVES)) / _median_distance(rows, random)
        phases = random.uniform(0, 2 * np.pi, WAVES)
        waves = np.cos(rows @ frequencies + phases)
        variances, directions = np.linalg.eigh(np.cov(waves, rowvar=False))
        variances, directions = variances[-DIMENSIONS:], directions[:, -DIMENSIONS:]
        # Directions in which the reference does not vary at all say nothing.
        varying = variances > 1e-9 * WAVES
        whitening = np.where(varying, directions / np.sqrt(np.where(varying, variances, 1)), 0)
        arrays = (frequencies, phases, whitening, waves.mean(axis=0) @ whitening)
        return cls(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read `rff.safetensors`."""
        from safetensors.numpy import load  # not in the base install

        return cls(**load(data))

    def to_bytes(self) -> bytes:
        """`rff.safetensors`, the same bytes for the same map."""
        from safetensors.numpy import save

        return save(vars(self))

    def __call__(self, rows: npt.NDArray[Any]) -> FloatArray:
        """float32 [n, DIMENSIONS], cut to ±CUT. A row that cannot be measured (NaN) is 0, which says nothing."""
        # All rows at once, which takes half the time: in another batch a row's last bits may be others.
        waves = rows.astype(np.float32, copy=False) @ self.frequencies
        waves += self.phases
        with np.errstate(invalid="ignore"):  # the cosine of what float32 cannot hold
            np.cos(waves, out=waves)
        found = waves @ self.whitening
        found -= self.centre
        found[found != found] = 0  # noqa: PLR0124 - NaN alone
        cut: FloatArray = np.minimum(np.maximum(found, -CUT, out=found), CUT, out=found)
        return cut


def digest(data: bytes) -> str:
    """What names a map in its profile: `sha256:` and 64 digits of its file."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def pooled(rows: npt.NDArray[Any], values: int = MAX_VALUES) -> npt.NDArray[Any]:
    """Rows [n, d] with at most `values` values each: means of as many neighbours as that takes."""
    width = rows.shape[1]
    if width <= values:
        return rows
    size = -(-width // values)
    whole = width - width % size
    rows = rows.astype(np.float32, copy=False)
    # A product takes a thirtieth of the time of numpy's sums of few neighbours.
    sums = rows[:, :whole].reshape(-1, size) @ np.ones(size, dtype=np.float32)
    means = sums.reshape(len(rows), -1) / np.float32(size)
    if whole == width:
        return means
    return np.concatenate((means, rows[:, whole:].mean(axis=1, keepdims=True)), axis=1)


def _median_distance(rows: npt.NDArray[np.float64], random: np.random.Generator) -> float:
    some = rows[random.permutation(len(rows))[:_MEDIAN_ROWS]]
    squares = np.square(some).sum(axis=1)
    distances = squares[:, None] + squares - 2 * some @ some.T
    different = distances[np.triu_indices(len(some), 1)]
    different = different[different > 1e-12 * max(1e-300, float(squares.max(initial=0)))]
    return float(np.sqrt(np.median(different))) if len(different) else 1.0
