"""The choice: the fastest within the tolerance, kept and used again; a candidate that cannot be made says why."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from handlers.kinds import TensorSpec, TensorsSchema
from handlers.runtime_plan import COMPILED, RUNTIME, RuntimePlan
from model_store import optimize as module_under_test
from model_store.describing import Origin, describe, opened
from model_store.entry import ENTRY, entry_file
from model_store.errors import NotCompiled
from model_store.golden import GOLDEN, inputs_of, request
from model_store.optimize import CANDIDATES, CHOICE, PLAIN, Candidate, Result, choose, optimized
from model_store.pt2 import read_program
from model_store.registry import Registry, ResolvedVersion
from model_store.worker_plan import CONFIG, WorkerPlan

ROWS, WIDTH = 6, 512
VERSION = ResolvedVersion("wide", 1, "", "m-1", None)
BFLOAT16 = Candidate("exported", "bfloat16")
INT8 = Candidate("aot_inductor", "int8")


class Folders:
    """Keeps files as the registry does, in memory: the registry's own tests use the real one."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, str] = {}

    def read_files(self, _: str, folder: str) -> dict[str, bytes]:
        return dict(self.folders.get(folder, {}))

    def log_files(self, _: str, files: Mapping[str, bytes], folder: str) -> None:
        self.folders.setdefault(folder, {}).update(files)

    def tag(self, _: ResolvedVersion, tags: Mapping[str, str]) -> None:
        self.tags.update(tags)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 3))
        sample = torch.randn(ROWS, WIDTH)
    program = torch.export.export(network, (sample,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(program, path)
    stored = read_program(path)
    schema = TensorsSchema(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(WIDTH,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(3,)),),
    ).to_json()
    inputs = [{"name": "x", "datatype": "FP32", "shape": [ROWS, WIDTH], "data": sample.numpy().ravel()}]
    described = describe(stored, schema, inputs, Origin())
    return {
        **stored.members,
        **described,
        ENTRY: entry_file("tensors"),
        RUNTIME: RuntimePlan(threads=1).to_json(),
        CONFIG: WorkerPlan(workers=1).to_yaml(),
    }


def result(candidate: Candidate, row_ms: float, one_ms: float = 1.0, *, within: bool = True) -> Result:
    return Result(candidate, within=within, one_ms=one_ms, row_ms=row_ms)


def test_the_fastest_within_the_tolerance_is_chosen() -> None:
    results = [result(PLAIN, 1.0), result(BFLOAT16, 0.6), result(INT8, 0.3, within=False)]
    assert choose(results).candidate == BFLOAT16


def test_a_gain_that_is_noise_is_none() -> None:
    assert choose([result(PLAIN, 1.0), result(BFLOAT16, 0.97)]).candidate == PLAIN


def test_a_lone_request_counts_as_much_as_a_full_batch() -> None:
    assert choose([result(PLAIN, 1.0), result(BFLOAT16, 0.6, one_ms=2.0)]).candidate == PLAIN


def test_what_could_not_be_measured_is_not_chosen() -> None:
    missing = Result(INT8, unavailable="no compiler")
    assert choose([result(PLAIN, 1.0), missing]).candidate == PLAIN


def test_the_choice_is_kept_and_used_again(members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "CANDIDATES", (PLAIN, BFLOAT16))
    monkeypatch.setattr(module_under_test, "choose", lambda results: results[1])
    folders = Folders()
    registry = cast(Registry, folders)
    first = optimized(registry, VERSION, members, WorkerPlan())
    plan = json.loads(first[RUNTIME])
    assert (plan["runtime"], plan["dtype"], plan["threads"]) == ("exported", "bfloat16", 1)
    (kept,) = folders.folders.values()
    assert set(kept) == {CHOICE}
    assert next(iter(folders.tags.values())).startswith("exported bfloat16, ")

    monkeypatch.setattr(module_under_test, "_measured", None)
    assert optimized(registry, VERSION, members, WorkerPlan()) == first
    with pytest.raises(TypeError):  # other wishes are measured
        optimized(registry, VERSION, members, WorkerPlan(), max_difference=0.5)


def test_the_golden_set_is_the_float32_programs_and_allows_what_was_found(
    members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "CANDIDATES", (PLAIN, BFLOAT16))
    monkeypatch.setattr(module_under_test, "choose", lambda results: results[1])
    chosen = optimized(cast(Registry, Folders()), VERSION, members, WorkerPlan())
    golden, before = json.loads(chosen[GOLDEN]), json.loads(members[GOLDEN])
    assert golden["response"] == before["response"]
    assert before["atol"] < golden["atol"] < 0.1
    with opened(chosen) as handler:
        (answer,) = handler.predict(request(inputs_of(chosen[GOLDEN])))
    expected = before["response"]["outputs"][0]["data"]
    found = np.ravel(answer.values)
    assert np.allclose(found, expected, golden["rtol"], golden["atol"])
    assert not np.allclose(found, expected, before["rtol"], before["atol"])


def test_without_a_compiler_the_table_says_so(
    members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folders = Folders()
    console = Console(width=200, record=True, file=io.StringIO())
    packed = optimized(cast(Registry, folders), VERSION, members, WorkerPlan(), console=console)
    assert COMPILED not in packed
    (kept,) = folders.folders.values()
    reasons = {f"{one['runtime']} {one['dtype']}": one["unavailable"] for one in json.loads(kept[CHOICE])["candidates"]}
    assert len(reasons) == len(CANDIDATES)
    assert [name for name, reason in reasons.items() if not reason] == ["exported float32", "exported bfloat16"]
    assert all("no C++ compiler" in reason for name, reason in reasons.items() if name.startswith("aot"))
    assert "install g++" in console.export_text()


def test_a_handler_with_its_own_network_is_refused(members: dict[str, bytes]) -> None:
    eager = {**members, RUNTIME: RuntimePlan("eager").to_json()}
    with pytest.raises(NotCompiled, match="brings its own network"):
        optimized(cast(Registry, Folders()), VERSION, eager, WorkerPlan())
