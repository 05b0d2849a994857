"""A trained network as a registry and a node would have it, with neither of them."""

import tempfile
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import nn

from handlers.program import Program, load_program
from model_store.describing import Origin, describe
from model_store.pt2 import StoredProgram, read_program
from model_store.registering import Trained


def exported(trained: Trained, network: nn.Module | None = None) -> StoredProgram:
    """The network, or another in its place, exported with every axis free that its types leave free."""
    free = [
        {axis: torch.export.Dim.AUTO for axis, size in enumerate(kind.shape) if size == -1} for kind in trained.inputs
    ]
    inputs = tuple(map(torch.from_numpy, trained.example))
    program = torch.export.export(network or trained.network, inputs, dynamic_shapes=free)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.pt2"
        torch.export.save(program, path)
        return read_program(path)


def loaded(stored: StoredProgram) -> Program:
    """The program as a node loads it."""
    with tempfile.TemporaryDirectory() as name:
        stored.write(Path(name))
        return load_program(Path(name))


def golden_outputs(trained: Trained, stored: StoredProgram) -> dict[str, dict[str, Any]]:
    """What the version's handler answers to its golden request, by output: Open Inference tensors."""
    described = describe(stored, trained.schema, trained.golden, Origin(), trained.reference, trained.files)
    outputs = orjson.loads(described["golden.json"])["response"]["outputs"]
    return {one["name"]: one for one in outputs}
