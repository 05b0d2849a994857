"""Real archives of a tiny table model, signed and verified like any other, without a registry."""

import json
from pathlib import Path

import torch
from torch import nn

from deploy.rollout.record import Release
from handlers.runtime_plan import RUNTIME, RuntimePlan
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from model_store.archive import (
    IDENTITY,
    TORCHSERVE_MANIFEST,
    Manifest,
    archive_name,
    sign_archive,
    signature_path,
    write,
)
from model_store.describing import Origin, describe
from model_store.entry import ENTRY, entry_file
from model_store.golden import Inputs
from model_store.pt2 import StoredProgram, read_program
from model_store.worker_plan import CONFIG, WorkerPlan

MODEL = "tiny"
WIND = NumberColumn("wind", nullable=True)
CARRIER = CategoryColumn("carrier", ("AA", "UA"))
LATE = OutputColumn("late", classes=("no", "yes"))
SCHEMA = TableSchema((NumberColumn("delay"), WIND), (CARRIER,), (LATE,))
ROWS = 20
DELAYS = tuple(range(ROWS))


class Late(nn.Module):
    """Late is what has a delay of `minutes` and more. It raises on a delay of `limit` and more."""

    def __init__(self, minutes: float, limit: int = 1000) -> None:
        super().__init__()
        self.minutes = minutes
        self.known = nn.Embedding(limit, 1)
        nn.init.zeros_(self.known.weight)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        delay = numbers[:, 0] + self.known(numbers[:, 0].to(torch.int64)).squeeze(1) + 0 * codes[:, 0]
        return (torch.sigmoid(delay - self.minutes + 0.5),)


def make(
    directory: Path, version: int, network: nn.Module, schema: TableSchema = SCHEMA, batch_size: int = 8
) -> Release:
    """Write and sign the archive of a version below `directory`, where the signing key is."""
    inputs = _golden(schema)
    described = describe(_exported(directory, network, schema), schema.to_json(), inputs, Origin())
    origin = json.loads(described.pop("origin.json"))
    manifest = {"model": {"modelName": MODEL, "modelVersion": str(version), "handler": ENTRY, "configFile": CONFIG}}
    members = {
        **described,
        **_exported(directory, network, schema).members,
        TORCHSERVE_MANIFEST: json.dumps(manifest).encode(),
        IDENTITY: Manifest(model=MODEL, version=version, run_id="none", shipway="0", **origin).to_json(),
        ENTRY: entry_file("table"),
        RUNTIME: RuntimePlan(threads=1).to_json(),
        CONFIG: WorkerPlan(workers=1, batch_size=batch_size).to_yaml(),
        "metadata.json": b"{}",
    }
    draft = directory / "draft.mar"
    digest = write(draft, members)
    archive = directory / archive_name(MODEL, version, digest)
    sign_archive(draft, MODEL, version, directory / "signing.pem").replace(signature_path(archive))
    draft.replace(archive)
    return Release(version=version, digest=digest)


def _exported(directory: Path, network: nn.Module, schema: TableSchema) -> StoredProgram:
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(2, len(schema.numbers)), torch.zeros(2, len(schema.categories), dtype=torch.int64))
    program = torch.export.export(network.eval(), example, dynamic_shapes=({0: rows}, {0: rows}))
    torch.export.save(program, directory / "model.pt2")
    return read_program(directory / "model.pt2")


def _golden(schema: TableSchema) -> Inputs:
    values = {"delay": list(DELAYS), "wind": [None, 1.5] * (ROWS // 2), "carrier": ["AA", "??"] * (ROWS // 2)}
    entries, _ = schema.metadata()
    return [{**entry, "shape": [ROWS], "data": values[entry["name"]]} for entry in entries]
