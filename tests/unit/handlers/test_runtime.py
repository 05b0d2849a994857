"""Each runtime gives nearly what the exported program gives; an archive for other hardware is refused in words."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from handlers.errors import ArchiveUnusable
from handlers.program import load_program
from handlers.runtime import device_of, device_target, load_runtime, on_device
from handlers.runtime_plan import COMPILED, RUNTIME, Dtype, RuntimePlan
from model_store.compiling import Compiler
from model_store.errors import NotCompiled
from tests.unit.handlers.archives import write

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)


class Net(nn.Module):
    """Two layers, and an output of whole numbers beside the float one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 4)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.softmax(self.second(torch.relu(self.first(values))), dim=1)
        return scores, scores.argmax(dim=1)


def values(rows: int) -> torch.Tensor:
    return torch.randn((rows, 16), generator=torch.Generator().manual_seed(rows))


@pytest.fixture(scope="module")
def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, network: Net) -> Path:
    return write(tmp_path_factory.mktemp("exported"), network, (values(2),), b"{}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Path:
    """The archive compiled in bfloat16 for this CPU: it takes a compiler some seconds."""
    directory = tmp_path_factory.mktemp("compiled")
    shutil.copytree(exported, directory, dirs_exist_ok=True)
    (directory / COMPILED).write_bytes(Compiler()(exported, "bfloat16", [(values(8),)]))
    return planned(directory, RuntimePlan("aot_inductor", "bfloat16", 1, device_target("cpu")))


def planned(directory: Path, plan: RuntimePlan) -> Path:
    (directory / RUNTIME).write_bytes(plan.to_json())
    return directory


@pytest.fixture
def archive(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported archive, for a test to change."""
    return Path(shutil.copytree(exported, tmp_path / "archive"))


def assert_near(directory: Path, exported: Path, tolerance: float, network: Net | None = None) -> None:
    program = load_runtime(directory, network=(lambda: network) if network else None)
    for rows in (1, 2, 7):
        found, best = program(values(rows))
        expected, _ = load_program(exported)(values(rows))
        assert found.dtype == torch.float32
        assert best.dtype == torch.int64
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, check_stride=False)


def test_exported_is_the_program_itself(exported: Path) -> None:
    assert_near(exported, exported, 0.0)


def test_bfloat16_is_near_and_not_the_same(archive: Path, exported: Path) -> None:
    planned(archive, RuntimePlan(dtype="bfloat16"))
    assert_near(archive, exported, 0.02)
    (found, _), (expected, _) = load_runtime(archive)(values(7)), load_program(exported)(values(7))
    assert not torch.equal(found, expected)


@needs_compiler
def test_compiled_program_takes_any_rows(compiled: Path, exported: Path) -> None:
    assert_near(compiled, exported, 0.02)


@needs_compiler
def test_weights_are_folded_into_the_compiled_program(compiled: Path, network: Net) -> None:
    load_runtime(compiled)
    (library,) = (compiled / "compiled").glob("*.so")
    content = library.read_bytes()
    weight = network.first.weight.detach()
    assert weight.numpy().tobytes() not in content  # or every call would cast it
    assert network.second.weight.detach().numpy().tobytes() not in content


@needs_compiler
def test_compiled_program_reads_inputs_in_any_layout(compiled: Path) -> None:
    program = load_runtime(compiled)
    (straight, _), (turned, _) = program(values(5)), program(values(5).t().contiguous().t())
    assert torch.equal(straight, turned)


@needs_compiler
def test_it_is_unpacked_once_beside_the_archive(compiled: Path) -> None:
    load_runtime(compiled)
    before = {path: path.stat().st_mtime_ns for path in (compiled / "compiled").iterdir()}
    assert [path.suffix for path in before if path.suffix in (".so", ".cpp")] == [".so"]
    load_runtime(compiled)
    assert {path: path.stat().st_mtime_ns for path in (compiled / "compiled").iterdir()} == before


@needs_compiler
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"device": "cpu", "machine": "x86_64", "isa": "avx1024"}, "compiled for cpu x86_64 avx1024"),
        ({"device": "cpu", "machine": "sparc", "isa": ""}, "compiled for cpu sparc"),
        ({"device": "cuda", "arch": "sm_90"}, "compiled for cuda sm_90"),
    ],
)
def test_an_archive_for_other_hardware_is_refused_naming_both(
    compiled: Path, tmp_path: Path, target: dict[str, str], words: str
) -> None:
    other = Path(shutil.copytree(compiled, tmp_path / "other"))
    planned(other, replace(RuntimePlan.read(compiled), target=target))
    with pytest.raises(ArchiveUnusable, match=words) as refused:
        load_runtime(other)
    assert " ".join(filter(None, device_target("cpu").values())) in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_missing_or_damaged_compiled_program_is_refused(archive: Path, content: bytes | None) -> None:
    planned(archive, RuntimePlan("aot_inductor", "float32", 1, device_target("cpu")))
    if content is not None:
        (archive / COMPILED).write_bytes(content)
    with pytest.raises(ArchiveUnusable, match="cannot be unpacked"):
        load_runtime(archive)


def test_nothing_is_compiled_without_a_compiler(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotCompiled, match=r"no C\+\+ compiler: .*; install g\+\+"):
        Compiler()(exported, "float32", [(values(2),)])


@needs_compiler
def test_a_program_without_large_operations_has_no_int8(tmp_path: Path) -> None:
    directory = write(tmp_path, nn.ReLU(), (values(2),), b"{}")
    with pytest.raises(NotCompiled, match="neither convolutions nor linear layers"):
        Compiler()(directory, "int8", [(values(2),)])


def test_eager_runs_the_network_with_the_versions_weights(archive: Path, exported: Path) -> None:
    planned(archive, RuntimePlan("eager"))
    fresh = Net()
    assert_near(archive, exported, 1e-6, fresh)
    assert not fresh.training


def test_eager_refuses_weights_of_another_network(archive: Path) -> None:
    planned(archive, RuntimePlan("eager"))
    with pytest.raises(ArchiveUnusable, match=r"do not fit the handler's network(.|\n)*first\.weight"):
        load_runtime(archive, network=lambda: nn.Linear(16, 4))
    with pytest.raises(ArchiveUnusable, match=r"no method network\(\)"):
        load_runtime(archive)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runtime": "jit"}, "runtime.json: runtime: .*'jit'"),
        ({"dtype": "float8"}, "runtime.json: dtype: .*'float8'"),
        ({"threads": "2"}, "runtime.json: threads"),
        ({"more": 1}, "runtime.json: more"),
        ({"runtime": "aot_inductor"}, "target: a compiled program names its hardware"),
        ({"dtype": "int8"}, "int8 is for aot_inductor alone"),
    ],
)
def test_a_wrong_plan_is_refused(archive: Path, change: dict[str, object], words: str) -> None:
    plan = json.loads((archive / RUNTIME).read_bytes())
    (archive / RUNTIME).write_text(json.dumps({**plan, **change}))
    with pytest.raises(ArchiveUnusable, match=words):
        load_runtime(archive)


def test_a_worker_without_a_gpu_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(1) == "cuda:1"


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_inputs_and_outputs_are_in_host_memory(archive: Path, exported: Path, dtype: Dtype) -> None:
    planned(archive, replace(RuntimePlan(), dtype=dtype))
    (found, _), (expected, _) = load_runtime(archive, "cuda:0")(values(7)), load_program(exported)(values(7))
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@needs_gpu
def test_a_cuda_error_ends_the_worker() -> None:
    def fail(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with pytest.raises(SystemExit, match="illegal memory access"):
        on_device(fail, "cuda:0")(values(1))
