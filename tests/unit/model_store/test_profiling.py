"""The profile made by the version's own handler, and the reference rows of a user's own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console

from handlers.base import BaseHandler
from handlers.kinds import TensorSpec, TensorsSchema
from handlers.loading import open_handler
from model_store import digits
from model_store import members as archive_members
from model_store.describing import Origin, describe
from model_store.entry import ENTRY, entry_file
from model_store.errors import ReferenceRefused
from model_store.generic import describe_logged
from model_store.golden import golden_set, reproduces
from model_store.members import OwnFiles, OwnParts
from model_store.profiling import MIN_ROWS, Reference, profiled, read_arrays, read_reference
from model_store.pt2 import read_program
from model_store.registry import LoggedModel, TensorType
from monitoring.profile import Profile
from monitoring.rff import DIMENSIONS, MEMBER, Rff, digest
from tests.unit.handlers.archives import write
from tests.unit.model_store.exporting import exported

Arrays = dict[str, npt.NDArray[Any]]


class Total(torch.nn.Module):
    def forward(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (values * weights[:, None]).sum(1)


VALUES = TensorSpec(name="values", datatype="FP32", shape=(3,))
WEIGHTS = TensorSpec(name="weights", datatype="FP32", shape=())
TOTAL = TensorSpec(name="total", datatype="FP32", shape=())
SCHEMA = TensorsSchema(inputs=(VALUES, WEIGHTS), outputs=(TOTAL,))


@pytest.fixture(scope="module")
def total(tmp_path_factory: pytest.TempPathFactory) -> BaseHandler:
    directory = tmp_path_factory.mktemp("total")
    write(directory, Total(), (torch.ones(2, 3), torch.ones(2)), SCHEMA.to_json(), files={ENTRY: entry_file("tensors")})
    return open_handler(directory)


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def rows(count: int) -> Arrays:
    random = np.random.default_rng(count)
    return {name: random.random((count, *shape), np.float32) for name, shape in (("values", (3,)), ("weights", ()))}


def test_a_picture_model_has_the_profile_of_pictures_that_it_was_judged_by() -> None:
    trained = digits.train(Console(quiet=True), digits.Plan(epochs=2))
    members = describe(exported(trained), trained.schema, trained.golden, Origin(), trained.reference)
    profile = Profile.from_json(members["profile.json"])
    images, labels = digits.load()
    held = images[np.arange(len(labels)) % digits.HELD_OUT == 0]
    assert [feature.name for feature in profile.features] == ["brightness", "class", "confidence", "entropy"]
    assert (profile.rows, profile.classes) == (len(held), digits.CLASSES)
    assert profile.accuracy == trained.metrics["accuracy"]
    assert profile.rff == digest(members[MEMBER])
    whitened = Rff.from_bytes(members[MEMBER])(held.reshape(len(held), -1))
    assert whitened.shape == (len(held), DIMENSIONS)
    assert np.abs(whitened.mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("count", [MIN_ROWS - 1, MIN_ROWS])
def test_sample_inputs_of_a_logged_model_are_its_reference_where_they_are_many(tmp_path: Path, count: int) -> None:
    samples = rows(count)
    free = tuple({0: torch.export.Dim.AUTO} for _ in samples)
    program = torch.export.export(Total(), tuple(map(torch.from_numpy, samples.values())), dynamic_shapes=free)
    torch.export.save(program, tmp_path / "model.pt2")
    logged = LoggedModel(
        "m-1",
        inputs=tuple(TensorType(name, "float32", (-1, *array.shape[1:])) for name, array in samples.items()),
        outputs=(TensorType("total", "float32", (-1,)),),
        libraries={},
    )
    members = describe_logged(logged, tmp_path / "model.pt2", read_program(tmp_path / "model.pt2"), Origin())
    profile = Profile.from_json(members["profile.json"])
    names = ["values[0]", "values[1]", "values[2]", "weights", "total"]
    assert [feature.name for feature in profile.features] == (names if count == MIN_ROWS else [])
    assert profile.rows == (count if count == MIN_ROWS else 0)


def test_users_rows_make_the_profile_and_name_it(total: BaseHandler, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    save(path, rows(200))
    own = OwnParts.read(OwnFiles(reference=path))
    members = profiled(total, Reference(read_reference(total, own.reference), accuracy=0.5))
    profile = Profile.from_json(members["profile.json"])
    assert (profile.rows, profile.accuracy, len(profile.features)) == (200, 0.5, 5)
    assert set(profile.features[0].counts) == {20}
    assert own
    save(path, rows(201))
    assert OwnParts.read(OwnFiles(reference=path)).digest != own.digest


def test_what_is_kept_in_an_older_format_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnParts(handler=b"class Own: ...")
    before = own.digest
    assert OwnParts(handler=b"class Own: ...").digest == before
    monkeypatch.setattr(archive_members, "KEPT_FORMAT", archive_members.KEPT_FORMAT + 1)
    assert own.digest != before


def test_text_in_a_reference_is_what_clients_send(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", text=np.array(["ä", "bc"]))
    taken: list[Any] = []

    class Texts:
        def prepare(self, request: Any) -> list[Any]:
            taken.append(request.inputs[0])
            return []

    read_reference(Texts(), read_arrays(tmp_path / "rows.npz"))  # type: ignore[arg-type]
    (tensor,) = taken
    assert (tensor.name, tensor.datatype, tensor.shape, tensor.values) == ("text", "BYTES", (2,), ["ä".encode(), b"bc"])


def not_there(path: Path) -> None:
    pass


def cut(path: Path) -> None:
    save(path, rows(5))
    path.write_bytes(path.read_bytes()[:-40])


def pickled(path: Path) -> None:
    np.savez(path, values=np.array([{}], dtype=object))


def alone(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def empty(path: Path) -> None:
    np.savez(path, values=np.ones((0, 3)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (not_there, "cannot be read: .*No such file"),
        (cut, "cannot be read"),
        (pickled, "cannot be read: Object arrays cannot be loaded"),
        (alone, "cannot be read"),
        (empty, "values has no rows"),
    ],
)
def test_file_that_holds_no_rows_is_refused_in_words(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "rows.npz"
    spoil(path)
    with pytest.raises(ReferenceRefused, match=f"{words}.*numpy"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"values": np.ones((5, 3), np.float32)}, "the handler refuses it: inputs: missing weights"),
        ({**rows(5), "values": np.ones((5, 4), np.float32)}, "the handler refuses it: .*wrong shape"),
        ({**rows(5), "values": np.ones((5, 3), np.complex64)}, "values has the dtype complex64; allowed are bool"),
    ],
)
def test_rows_that_the_model_does_not_take_are_refused_in_words(total: BaseHandler, arrays: Arrays, words: str) -> None:
    with pytest.raises(ReferenceRefused, match=words):
        read_reference(total, arrays)


def test_rows_that_the_model_fails_on_are_refused(total: BaseHandler) -> None:
    with pytest.raises(ReferenceRefused, match="the model fails on it: "):
        profiled(total, Reference((np.ones((2, 9), np.float32),)))


def test_handler_that_answers_otherwise_is_found_out(total: BaseHandler) -> None:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel()}
        for name, array in rows(4).items()
    ]
    golden = golden_set(total, inputs)
    assert reproduces(total, golden)

    class Doubled(type(total)):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            return [2 * output for output in super().run(inputs)]

    doubled = Doubled()
    doubled.open(total.directory, "m", "1")
    assert not reproduces(doubled, golden)
