"""What an exported program takes is read out of its file, with the sample values, and nothing is unpickled."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from model_store.errors import ProgramUnreadable
from model_store.samples import read_inputs


class Scale(nn.Module):
    def forward(self, values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return values * factors[:, None]


def exported(path: Path, values: torch.Tensor, factors: torch.Tensor, **rows: int) -> Path:
    free = {0: Dim("rows", **rows) if rows else Dim.AUTO}
    torch.export.save(torch.export.export(Scale(), (values, factors), dynamic_shapes=(free, free)), path)
    return path


def never(*_: object, **__: object) -> None:
    raise AssertionError("something was unpickled")


def test_names_free_axes_and_values_come_out_without_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.arange(40.0).reshape(4, 10).t()[2:8, 1:3]  # neither contiguous nor at the start of its memory
    factors = torch.arange(6, dtype=torch.int16)
    path = exported(tmp_path / "model.pt2", values, factors)
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    first, second = read_inputs(path)
    assert (first.name, first.free) == ("values", (True, False))
    assert (second.name, second.free) == ("factors", (True,))
    assert np.array_equal(first.sample, values.numpy())
    assert np.array_equal(second.sample, factors.numpy())
    assert second.sample.dtype == np.int16


def test_an_axis_that_the_export_fixed_or_limited_is_not_free(tmp_path: Path) -> None:
    one_row = exported(tmp_path / "one.pt2", torch.ones(1, 2), torch.ones(1))
    at_most_eight = exported(tmp_path / "eight.pt2", torch.ones(4, 2), torch.ones(4), min=2, max=8)
    for path in (one_row, at_most_eight):
        assert [one.free for one in read_inputs(path)] == [(False, False), (False,)]


def test_inputs_that_share_their_memory_are_refused(tmp_path: Path) -> None:
    shared = torch.ones(6)
    path = exported(tmp_path / "model.pt2", shared.view(2, 3), shared[:2])
    with pytest.raises(ProgramUnreadable, match="none of them sharing memory"):
        read_inputs(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ProgramUnreadable, match="wanted a program saved by"):
        read_inputs(path)
