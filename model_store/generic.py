"""Any network that was logged to MLflow with a signature of tensors: described from that signature, with no code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.kinds import TensorSpec, TensorsSchema
from handlers.tensors import NUMPY_DTYPES
from model_store.describing import Origin, describe
from model_store.errors import SignatureUnusable
from model_store.profiling import MIN_ROWS, Reference
from model_store.pt2 import StoredProgram
from model_store.registry import LoggedModel, TensorType
from model_store.samples import ProgramInput, read_inputs

MAX_GOLDEN_ROWS = 128
MAX_GOLDEN_VALUES = 2**18
"""A golden request is JSON, and must fit into the body that a node accepts."""

_DATATYPES = {dtype.name: datatype for datatype, dtype in NUMPY_DTYPES.items() if datatype != "BF16"}


def describe_logged(
    logged: LoggedModel, program_file: Path, program: StoredProgram, origin: Origin
) -> dict[str, bytes]:
    """The description of a version that nobody described when it was logged: its sample inputs make the golden set.

    They are also what traffic is compared with, if they are MIN_ROWS at least.

    Raises SignatureUnusable, ProgramUnreadable, NotServable or GoldenRefused.
    """
    samples = read_inputs(program_file)
    _check(logged, samples)
    inputs = tuple(
        _spec(logged, one, one.name or sample.name) for one, sample in zip(logged.inputs, samples, strict=True)
    )
    outputs = tuple(_spec(logged, one, one.name or "output") for one in logged.outputs)
    schema = TensorsSchema(inputs=inputs, outputs=outputs).to_json()
    arrays = tuple(sample.sample for sample in samples)
    reference = Reference(arrays if len(arrays[0]) >= MIN_ROWS else ())
    return describe(program, schema, _golden_inputs(inputs, arrays), origin, reference)


def _check(logged: LoggedModel, samples: Sequence[ProgramInput]) -> None:
    """The signature is what somebody wrote, the program is what runs: they must agree on what may vary."""
    model_id, specs = logged.model_id, logged.inputs
    if len(specs) != len(samples):
        names = ", ".join(sample.name for sample in samples)
        raise SignatureUnusable(model_id, f"its signature has {len(specs)} inputs, its program {len(samples)}: {names}")
    for spec, sample in zip(specs, samples, strict=True):
        exported = tuple(-1 if free else size for free, size in zip(sample.free, sample.sample.shape, strict=True))
        what = f"its signature says {spec.dtype}{list(spec.shape)} of input {sample.name}"
        if spec.shape[:1] != (-1,):
            raise SignatureUnusable(model_id, f"{what}, and the first axis must be the rows")
        if (spec.dtype, spec.shape) != (sample.sample.dtype.name, exported):
            found = f"{sample.sample.dtype.name}{list(exported)}"
            raise SignatureUnusable(model_id, f"{what}, but its program was exported for {found}")


def _spec(logged: LoggedModel, found: TensorType, name: str) -> TensorSpec:
    if found.dtype not in _DATATYPES:
        raise SignatureUnusable(
            logged.model_id, f"{name} has the dtype {found.dtype}; allowed are {', '.join(_DATATYPES)}"
        )
    return TensorSpec(name=name, datatype=_DATATYPES[found.dtype], shape=found.shape[1:])


def _golden_inputs(specs: Sequence[TensorSpec], samples: Sequence[npt.NDArray[Any]]) -> list[dict[str, Any]]:
    values_per_row = sum(sample[0].size for sample in samples)
    rows = min(len(samples[0]), MAX_GOLDEN_ROWS, max(2, MAX_GOLDEN_VALUES // max(1, values_per_row)))
    cut = [np.ascontiguousarray(sample[:rows]) for sample in samples]
    return [
        {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": array.ravel()}
        for spec, array in zip(specs, cut, strict=True)
    ]
