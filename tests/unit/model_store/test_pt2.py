"""Weights leave an exported program bit for bit, and nothing is ever unpickled on the way."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from model_store.errors import ProgramUnreadable
from model_store.pt2 import read_program

WEIGHTS = "data/weights/model_weights_config.json"


class Awkward(nn.Module):
    """Weights that share storage, are not contiguous, empty, of several types, and constants beside them."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.arange(12, dtype=torch.float32)
        self.register_buffer("whole", base.view(3, 4))
        self.register_buffer("transposed", base.view(3, 4).t())
        self.register_buffer("tail", base[8:])
        self.register_buffer("scalar", torch.tensor(3, dtype=torch.int64))
        self.register_buffer("brief", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
        self.register_buffer("passing", torch.ones(4), persistent=False)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole, transposed, tail = (self.get_buffer(name) for name in ("whole", "transposed", "tail"))
        scalar, brief, passing = (self.get_buffer(name) for name in ("scalar", "brief", "passing"))
        mixed: torch.Tensor = self.linear(x) @ transposed @ whole + tail * scalar + brief.sum()
        return mixed + passing + torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Awkward, Path]:
    module = Awkward()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(module, (torch.ones(2, 4),)), path)
    return module, path


def never(*_: object, **__: object) -> None:
    raise AssertionError("something was unpickled")


def test_every_tensor_comes_out_bit_for_bit_without_unpickling(
    saved: tuple[Awkward, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path = saved
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    program = read_program(path)
    tensors = safetensors.torch.load(program.weights)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].dtype == tensor.dtype
    constants = sorted(set(tensors) - set(module.state_dict()))
    assert "passing" in constants
    assert len(constants) == 2  # and the tensor that forward makes
    assert json.loads(program.graph)["graph_module"]


def test_the_same_file_gives_the_same_bytes(saved: tuple[Awkward, Path]) -> None:
    _, path = saved
    assert read_program(path) == read_program(path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the program with its weights' configuration changed."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(WEIGHTS):
                config = json.loads(content)
                change(config["config"])
                content = json.dumps(config).encode()
            new.writestr(name, content)
    return target


def pickle_a_weight(config: dict[str, Any]) -> None:
    config["linear.bias"]["use_pickle"] = True


def reach_outside(config: dict[str, Any]) -> None:
    config["linear.bias"]["tensor_meta"]["sizes"] = [{"as_int": 1000}]


def start_outside(config: dict[str, Any]) -> None:
    config["linear.bias"]["tensor_meta"]["storage_offset"] = {"as_int": 3}


def name_no_file(config: dict[str, Any]) -> None:
    config["linear.bias"]["path_name"] = "../../models/none"


def have_a_symbolic_size(config: dict[str, Any]) -> None:
    config["linear.bias"]["tensor_meta"]["sizes"] = [{"as_expr": {"expr_str": "s0"}}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickle_a_weight, r"linear\.bias would have to be unpickled"),
        (reach_outside, "out of bounds"),
        (start_outside, "out of bounds"),
        (name_no_file, "models/none"),
        (have_a_symbolic_size, "as_int"),
    ],
)
def test_weights_that_cannot_be_read_safely_are_refused(
    saved: tuple[Awkward, Path], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    with pytest.raises(ProgramUnreadable, match=words):
        read_program(rewrite(saved[1], change))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(ProgramUnreadable, match="wanted a program saved by"):
        read_program(path)
