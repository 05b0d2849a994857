"""A program at the node: the same numbers as where it was trained, nothing unpickled, nothing foreign called."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from handlers import program as module_under_test
from handlers.errors import ArchiveUnusable
from handlers.program import load_program
from model_store.pt2 import read_program


class Small(nn.Module):
    """Two inputs, two outputs, parameters, buffers of both kinds and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.linear = nn.Linear(7, 2)
        self.register_buffer("scale", torch.full((4,), 0.5))
        self.register_buffer("passing", torch.full((2,), 0.25), persistent=False)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scaled = torch.nan_to_num(numbers * self.get_buffer("scale")) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        hidden = self.linear(torch.cat((scaled, self.embedding(codes)), dim=1)) + self.get_buffer("passing")
        return torch.sigmoid(hidden[:, 0]), hidden


class Counting(nn.Module):
    """Keeps state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        self.get_buffer("calls").add_(1)
        return numbers + self.get_buffer("calls")


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    numbers = torch.randn((rows, 4), generator=generator)
    numbers[0, 0] = torch.nan
    return numbers, torch.randint(0, 5, (rows,), generator=generator)


def unpacked(directory: Path, module: nn.Module, example: tuple[torch.Tensor, ...]) -> Path:
    """The two files of an archive that hold `module`."""
    batch = {0: torch.export.Dim.AUTO}
    exported = torch.export.export(module, example, dynamic_shapes=tuple(batch for _ in example))
    torch.export.save(exported, directory / "model.pt2")
    read_program(directory / "model.pt2").write(directory)
    (directory / "model.pt2").unlink()
    return directory


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture
def directory(tmp_path: Path, small: Small) -> Path:
    return unpacked(tmp_path, small, inputs(2))


def test_it_goes_to_the_device_asked_for_with_all_its_weights(directory: Path) -> None:
    numbers, codes = inputs(3)
    found = load_program(directory, device="meta")(numbers.to("meta"), codes.to("meta"))
    assert [output.device.type for output in found] == ["meta", "meta"]
    assert [tuple(output.shape) for output in found] == [(3,), (3, 2)]


def never(*_: object, **__: object) -> None:
    raise AssertionError("something was unpickled")


@pytest.mark.parametrize("rows", [1, 2, 3, 32])
def test_it_gives_what_the_module_gave_for_any_batch(directory: Path, small: Small, rows: int) -> None:
    loaded = load_program(directory)
    with torch.inference_mode():
        expected = small(*inputs(rows))
    found = loaded(*inputs(rows))
    assert isinstance(found, tuple)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert all(output.is_inference() for output in found)


def test_nothing_is_unpickled(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert len(load_program(directory)(*inputs(2))) == 2


def test_another_torch_is_refused_in_words(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "TORCH_VERSION", "2.12.0")
    with pytest.raises(ArchiveUnusable, match=r"torch 2\.12\.0 exactly; found torch 2\.13\.0"):
        load_program(directory)


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("torch.ops.aten.sigmoid.default", "torch.load", "the operator 'torch.load'"),
        ("torch.ops.aten.sigmoid.default", "_operator.methodcaller", "the operator '_operator.methodcaller'"),
        ("torch.ops.aten.sigmoid.default", "torch.ops.aten.sigmoid.default.__class__", "the operator"),
        ("positive=True, integer=True", "positive=print(1)", "the expression"),
        ("positive=True, integer=True", "positive=__import__(chr(111))", "the expression"),
    ],
)
def test_a_program_that_would_call_something_else_is_refused(directory: Path, good: str, bad: str, words: str) -> None:
    path = directory / "program.json"
    text = path.read_text()
    assert good in text
    path.write_text(text.replace(good, bad))
    with pytest.raises(ArchiveUnusable, match=words):
        load_program(directory)


@pytest.mark.parametrize("name", ["program.json", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_missing_or_damaged_file_is_refused(directory: Path, name: str, content: bytes | None) -> None:
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    with pytest.raises(ArchiveUnusable, match="cannot be loaded"):
        load_program(directory)


def test_a_program_without_one_of_its_weights_is_refused(directory: Path) -> None:
    path = directory / "program.json"
    document = json.loads(path.read_text())
    for spec in document["graph_module"]["signature"]["input_specs"]:
        if spec.get("parameter", {}).get("parameter_name") == "linear.bias":
            spec["parameter"]["parameter_name"] = "linear.gone"
    path.write_text(json.dumps(document))
    with pytest.raises(ArchiveUnusable, match=r"linear\.gone"):
        load_program(directory)


def test_a_program_that_keeps_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnusable, match="changes calls while it runs; it may not keep state"):
        load_program(unpacked(tmp_path, Counting(), (torch.ones(2),)))
