"""What an exported program takes: types and sample values of its inputs, read without unpickling.

torch pickles the sample inputs, as it does everything that it saves. But what the pickle says of them, the graph says
too; the values themselves lie beside it as raw bytes.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model_store.errors import ProgramUnreadable
from model_store.pt2 import strided

_SAMPLES = "/data/sample_inputs/model.pt"
_SYMBOL = re.compile(r"Symbol\('(\w+)'[^()]*\)")
_WANTED = "a program saved by torch.export.save with sample inputs that are tensors, none of them sharing memory"


@dataclass(frozen=True, eq=False)
class ProgramInput:
    """One input of an exported program."""

    name: str
    """Of the argument of `forward`."""
    free: tuple[bool, ...]
    """For every axis, whether the program takes it in any size of at least two."""
    sample: npt.NDArray[Any]
    """The input that the program was exported with."""


def read_inputs(path: Path) -> tuple[ProgramInput, ...]:
    """The inputs of `model.pt2`, in their order. Raises ProgramUnreadable."""
    try:
        with zipfile.ZipFile(path) as archive:
            top = archive.namelist()[0].partition("/")[0]
            program = json.loads(archive.read(f"{top}/models/model.json"))
            samples = _storages(archive.read(top + _SAMPLES))
        graph = program["graph_module"]
        names = [
            spec["user_input"]["arg"]["as_tensor"]["name"]
            for spec in graph["signature"]["input_specs"]
            if "user_input" in spec
        ]
        limits = program["range_constraints"]
        return tuple(
            _input(name, graph["graph"]["tensor_values"][name], limits, sample)
            for name, sample in zip(names, samples, strict=True)
        )
    except (zipfile.BadZipFile, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProgramUnreadable(path, f"{type(error).__name__}: {error}", _WANTED) from error


def _storages(saved: bytes) -> list[bytes]:
    """Raw bytes of the tensors in a file of torch.save, in the order in which they were first met."""
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        top = archive.namelist()[0].partition("/")[0]
        if archive.read(f"{top}/byteorder") != b"little":
            raise ValueError("it was saved on a big-endian machine")
        stored = {name for name in archive.namelist() if name.startswith(f"{top}/data/")}
        return [archive.read(f"{top}/data/{number}") for number in range(len(stored))]


def _input(name: str, meta: Mapping[str, Any], limits: Mapping[str, Any], raw: bytes) -> ProgramInput:
    sizes, strides = ([_number(entry) for entry in meta[key]] for key in ("sizes", "strides"))
    tensor = strided(raw, meta["dtype"], sizes, strides, _number(meta["storage_offset"]))
    return ProgramInput(name, tuple(_is_free(entry, limits) for entry in meta["sizes"]), _array(tensor))


def _number(entry: Mapping[str, Any]) -> int:
    """A size as it was with the sample inputs."""
    return int(entry["as_int"] if "as_int" in entry else entry["as_expr"]["hint"]["as_int"])


def _is_free(entry: Mapping[str, Any], limits: Mapping[str, Any]) -> bool:
    """Whether a size is a symbol of its own, with no limit but the two that torch.export always assumes."""
    symbol = _SYMBOL.fullmatch(entry["as_expr"]["expr_str"]) if "as_expr" in entry else None
    limit = limits.get(symbol[1]) if symbol else None
    return limit is not None and (limit["min_val"] or 0) <= 2 and limit["max_val"] is None


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.numpy()
    return np.ascontiguousarray(array)
