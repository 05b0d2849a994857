"""Small programs are run by one worker with one thread, large ones by two; the packaging counts what a row costs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from handlers.kinds import TensorSpec, TensorsSchema
from handlers.runtime_plan import RUNTIME, RuntimePlan
from model_store.describing import Origin, describe
from model_store.entry import ENTRY, entry_file
from model_store.members import SMALL_FLOPS, _is_small
from model_store.pt2 import read_program
from model_store.worker_plan import WorkerPlan

ROWS = 3


class Convolution(nn.Module):
    """2 x 9 operations for each of a row's 64 x 64 pixels and of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = self.layer(images).mean((2, 3))
        return means


def members(channels: int, directory: Path) -> dict[str, bytes]:
    sample = torch.rand(ROWS, 1, 64, 64)
    program = torch.export.export(Convolution(channels), (sample,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, directory / "model.pt2")
    stored = read_program(directory / "model.pt2")
    schema = TensorsSchema(
        inputs=(TensorSpec(name="images", datatype="FP32", shape=(1, 64, 64)),),
        outputs=(TensorSpec(name="means", datatype="FP32", shape=(channels,)),),
    ).to_json()
    inputs = [{"name": "images", "datatype": "FP32", "shape": list(sample.shape), "data": sample.numpy().ravel()}]
    described = describe(stored, schema, inputs, Origin())
    return {**stored.members, **described, ENTRY: entry_file("tensors"), RUNTIME: RuntimePlan().to_json()}


# An operation is counted as torch counts it: a multiplication and an addition are two.
@pytest.mark.parametrize(("channels", "small"), [(int(SMALL_FLOPS) // (18 * 64**2) - 1, True), (280, False)])
def test_size_of_a_program_is_the_operations_of_a_row(tmp_path: Path, channels: int, *, small: bool) -> None:
    packed = members(channels, tmp_path)
    assert json.loads(packed["golden.json"])["response"]["outputs"][0]["shape"] == [ROWS, channels]
    assert _is_small(packed) is small


@pytest.mark.parametrize(
    ("given", "small", "workers", "threads"),
    [
        (WorkerPlan(), True, 1, 1),
        (WorkerPlan(), False, 2, None),
        (WorkerPlan(workers=4), True, 4, 1),
        (WorkerPlan(workers=1, threads=8), False, 1, 8),
    ],
)
def test_what_the_plan_leaves_open_follows_the_size(
    given: WorkerPlan, workers: int, threads: int | None, *, small: bool
) -> None:
    settled = given.settled(small=small)
    assert (settled.workers, settled.threads) == (workers, threads)
