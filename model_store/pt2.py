"""Graph and weights of an exported program (`model.pt2`), read without unpickling anything.

The file is a zip with one top folder. Its JSON configurations say where each tensor's raw bytes lie. Sample inputs,
which torch always pickles, are not touched.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch._export.serde import schema as serde_schema
from torch._export.serde import serialize as serde

from model_store.errors import ProgramUnreadable

_GRAPH = "models/model.json"
_CONFIGS = {
    "data/weights/": "model_weights_config.json",
    "data/constants/": "model_constants_config.json",
}
_WANTED = "a program saved by torch.export.save with every tensor stored as raw bytes"


@dataclass(frozen=True)
class StoredProgram:
    """What an archive keeps of an exported program."""

    graph: bytes
    """`program.json`: the exported graph, as torch wrote it."""
    weights: bytes
    """`weights.safetensors`: all weights and constants by their names in the graph."""

    @property
    def members(self) -> dict[str, bytes]:
        """The two as members of an archive."""
        return {"program.json": self.graph, "weights.safetensors": self.weights}

    def write(self, directory: Path) -> None:
        """Put both files into `directory`, as an unpacked archive has them."""
        for name, content in self.members.items():
            (directory / name).write_bytes(content)


def read_program(path: Path) -> StoredProgram:
    """Read `model.pt2`. The same file gives the same bytes. Raises ProgramUnreadable rather than unpickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            top = archive.namelist()[0].partition("/")[0] + "/"
            tensors: dict[str, torch.Tensor] = {}
            for folder, config in _CONFIGS.items():
                tensors |= _tensors(path, archive, top + folder, config)
            return StoredProgram(graph=archive.read(f"{top}{_GRAPH}"), weights=safetensors.torch.save(tensors))
    except (zipfile.BadZipFile, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ProgramUnreadable(path, f"{type(error).__name__}: {error}", _WANTED) from error


def _tensors(path: Path, archive: zipfile.ZipFile, folder: str, config: str) -> dict[str, torch.Tensor]:
    """Tensors that a configuration names, each a contiguous copy of its own."""
    entries = json.loads(archive.read(folder + config))["config"]
    pickled = sorted(name for name, entry in entries.items() if entry["use_pickle"])
    if pickled:
        raise ProgramUnreadable(path, f"{', '.join(pickled)} would have to be unpickled", _WANTED)
    return {
        name: _tensor(archive.read(folder + entry["path_name"]), entry["tensor_meta"])
        for name, entry in entries.items()
    }


def _tensor(raw: bytes, meta: Mapping[str, Any]) -> torch.Tensor:
    """One tensor out of the bytes of its storage, which other tensors may share."""
    sizes = [size["as_int"] for size in meta["sizes"]]
    strides = [stride["as_int"] for stride in meta["strides"]]
    return strided(raw, meta["dtype"], sizes, strides, meta["storage_offset"]["as_int"])


def strided(raw: bytes, scalar_type: int, sizes: list[int], strides: list[int], offset: int) -> torch.Tensor:
    """A contiguous tensor of the elements that sizes, strides and offset name in `raw`; torch checks the bounds.

    `scalar_type` is the number that torch.export writes for a dtype.
    """
    dtype = serde.deserialize_scalar_type(serde_schema.ScalarType(scalar_type))
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype)  # a copy: torch warns of memory that it may not write
    return flat.as_strided(sizes, strides, offset).clone(memory_format=torch.contiguous_format)
