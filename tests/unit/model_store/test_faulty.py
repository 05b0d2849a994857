"""Versions for a drill: a node takes each for what it says it is, and answers as its golden set says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from handlers import faults
from handlers.runtime_plan import RUNTIME, RuntimePlan
from model_store.archive import IDENTITY, TORCHSERVE_MANIFEST, Manifest, pack, read_members, verify_archive
from model_store.describing import Origin, describe, opened
from model_store.entry import ENTRY, entry_file
from model_store.errors import NotServable
from model_store.faulty import KINDS, members_of_kind
from model_store.golden import GOLDEN, reproduces, request
from model_store.pt2 import read_program
from model_store.signing import create_key, load_trusted
from tests.unit.handlers.tiny import GOOD, SCHEMA, Tiny, tensors

OWN = b"""
from handlers.tabular import TabularHandler

class Mine(TabularHandler):
    def run(self, inputs):
        return [output / 2 for output in super().run(inputs)]
"""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Members of the archive of version 7 of `flights`, which has classes."""
    directory = tmp_path_factory.mktemp("champion")
    rows = torch.export.Dim("rows", min=1)
    example = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64))
    torch.export.save(
        torch.export.export(Tiny(), example, dynamic_shapes=({0: rows}, {0: rows})), directory / "model.pt2"
    )
    program = read_program(directory / "model.pt2")
    schema = json.loads(SCHEMA.to_json())
    schema["outputs"][0]["classes"] = ["on time", "late"]
    described = describe(program, json.dumps(schema).encode(), tensors(*GOOD), Origin())
    described.pop("origin.json")
    torchserve = {"model": {"modelName": "flights", "modelVersion": "7", "handler": ENTRY}}
    return {
        **described,
        **program.members,
        TORCHSERVE_MANIFEST: json.dumps(torchserve).encode(),
        IDENTITY: Manifest("flights", 7, "run", "commit", "data", {}, "0.1.0").to_json(),
        ENTRY: entry_file("table"),
        RUNTIME: RuntimePlan(threads=1).to_json(),
        "model-config.yaml": b"minWorkers: 1\n",
        "metadata.json": json.dumps({"name": "flights", "versions": ["7"]}).encode(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_whole_archive_that_reproduces_its_golden_set(
    champion: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    key, trust = tmp_path / "key.pem", tmp_path / "trust"
    create_key(key, trust)
    archive, digest = pack(members_of_kind(champion, kind, "flights-drill", 2), "flights-drill", 2, tmp_path, key)
    manifest = verify_archive(archive, "flights-drill", 2, digest, load_trusted(trust))
    assert manifest.git_commit == "commit"
    members = read_members(archive)
    assert json.loads(members["metadata.json"]) == {"name": "flights-drill", "versions": ["2"]}
    with opened(members) as handler:
        assert reproduces(handler, members[GOLDEN])
        assert reproduces(handler, champion[GOLDEN]) is not KINDS[kind].other_answers


def test_the_same_kind_gives_the_same_bytes(champion: dict[str, bytes]) -> None:
    made = members_of_kind(champion, "changed", "flights-drill", 2)
    assert made == members_of_kind(champion, "changed", "flights-drill", 2)
    assert made != members_of_kind(champion, "changed", "flights-drill", 3)


def test_a_handler_of_the_users_own_becomes_bad_too(champion: dict[str, bytes]) -> None:
    good, asked = {**champion, ENTRY: OWN}, request(tensors(*GOOD))
    with opened(good) as handler:
        halves = np.array(handler.predict(asked)[0].values)
    with opened(members_of_kind(good, "changed", "flights-drill", 2)) as handler:
        moved = np.array(handler.predict(asked)[0].values)
        np.testing.assert_allclose(moved / (1 - moved), faults.ODDS * halves / (1 - halves), rtol=1e-4)


def test_a_version_without_classes_has_none_to_mistake(champion: dict[str, bytes]) -> None:
    profile = {**json.loads(champion["profile.json"]), "classes": []}
    with pytest.raises(NotServable, match="the champion has no classes that labels could name"):
        members_of_kind({**champion, "profile.json": json.dumps(profile).encode()}, "wrong", "flights-drill", 2)


def test_every_fault_is_one_of_handlers_and_an_entry_file_has_one_class(champion: dict[str, bytes]) -> None:
    assert all(callable(getattr(faults, kind.fault)) for kind in KINDS.values() if kind.fault)
    source = members_of_kind(champion, "slow", "flights-drill", 2)[ENTRY].decode()
    counted = "import inspect, sys; own = [c for _, c in inspect.getmembers(sys.modules['__main__'], inspect.isclass)"
    counted += " if c.__module__ == '__main__']; print(len(own))"
    answer = subprocess.run([sys.executable, "-c", f"{source}\n{counted}"], capture_output=True, text=True, check=True)
    assert answer.stdout == "1\n"  # as TorchServe looks for it
