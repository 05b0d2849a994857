"""The profile: what a version's handler measures of rows that stand for its normal traffic."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.base import BaseHandler
from handlers.errors import RequestRefused
from handlers.tensors import NUMPY_DTYPES, InferRequest, Tensor
from model_store.errors import ReferenceRefused
from monitoring import rff
from monitoring.profile import Profile
from monitoring.rff import Rff

PROFILE = "profile.json"
NO_PROFILE = Profile(rows=0, features=())
"""Nothing but rows is counted."""
MIN_ROWS = 100
"""Of sample inputs that happen to be there: fewer say too little of a distribution to compare with."""

_DATATYPES = {dtype: datatype for datatype, dtype in NUMPY_DTYPES.items() if datatype != "BF16"}

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Reference:
    """Rows that stand for the version's normal traffic: what it learned from, or better, what it was judged by.

    What a network answers to rows that it knows by heart is surer than what it will ever answer again.
    """

    inputs: tuple[npt.NDArray[Any], ...] = ()
    """The program's inputs, as the handler's `check` gives them; none where no rows are known."""
    accuracy: float | None = None
    """On validation data, a share of 1; None where it is not known or the version is no classifier."""
    times: npt.NDArray[np.int64] | None = None
    """Unix time of each row, where rows have one: of the same clock, and as dense in time as traffic will be."""


def profiled(handler: BaseHandler, reference: Reference) -> dict[str, bytes]:
    """`profile.json`, and `rff.safetensors` where the handler's rows are more than numbers.

    Raises ReferenceRefused for rows that the model fails on.
    """
    if not reference.inputs:
        profile = replace(NO_PROFILE, classes=handler.classes, accuracy=reference.accuracy)
        return {PROFILE: profile.to_json()}
    inputs = list(reference.inputs)
    try:
        measured = handler.measure(inputs, handler.run(inputs))
    except Exception as error:  # whatever the model raises, or a handler of the user's
        raise ReferenceRefused(f"the model fails on it: {type(error).__name__}: {error}") from error
    features = handler.features
    vocabularies = features.categories.items()
    profile = Profile.build(
        dict(zip(features.numbers, measured.numbers.T, strict=True)),
        {name: (codes, words) for (name, words), codes in zip(vocabularies, measured.codes.T, strict=True)},
        dict(zip(features.outputs, measured.outputs.T, strict=True)),
        measured.probabilities,
        handler.classes,
        reference.times,
    )
    profile = replace(profile, accuracy=reference.accuracy)
    if measured.vectors is None:
        return {PROFILE: profile.to_json()}
    data = Rff.fit(measured.vectors).to_bytes()
    return {PROFILE: replace(profile, rff=rff.digest(data)).to_json(), rff.MEMBER: data}


def read_arrays(path: Path) -> Arrays:
    """Reference rows in a file of the user's, written by `numpy.savez`. Raises ReferenceRefused."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {str(name): np.asarray(array) for name, array in dict(loaded).items()}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ReferenceRefused(f"{path} cannot be read: {error}") from error
    if wrong := [name for name, array in arrays.items() if not array.ndim or not array.size]:
        raise ReferenceRefused(f"{path}: {wrong[0]} has no rows")
    return arrays


def read_reference(handler: BaseHandler, arrays: Arrays) -> tuple[npt.NDArray[Any], ...]:
    """The program's inputs for arrays by the names of the version's inputs. Raises ReferenceRefused."""
    request = InferRequest(tuple(_tensor(name, array) for name, array in arrays.items()))
    try:
        return tuple(handler.prepare(request))
    except RequestRefused as error:
        raise ReferenceRefused(f"the handler refuses it: {error}") from error


def _tensor(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind in "US":
        values = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
        return Tensor(name, "BYTES", array.shape, values)
    if array.dtype not in _DATATYPES:
        allowed = ", ".join([*map(str, _DATATYPES), "and text"])
        raise ReferenceRefused(f"{name} has the dtype {array.dtype}; allowed are {allowed}")
    return Tensor(name, _DATATYPES[array.dtype], array.shape, np.ravel(array))
