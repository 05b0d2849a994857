"""Versions for a drill: what a champion's archive is, under another name, and with one fault in it."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass

from handlers import faults
from model_store.archive import IDENTITY, TORCHSERVE_MANIFEST
from model_store.describing import opened
from model_store.entry import ENTRY
from model_store.errors import NotServable
from model_store.golden import GOLDEN, golden_set, inputs_of
from model_store.profiling import PROFILE
from monitoring.profile import Profile


@dataclass(frozen=True)
class Kind:
    """What is wrong with a version."""

    words: str
    fault: str = ""
    """The function of `handlers/faults.py`; empty for nothing."""
    other_answers: bool = False
    """Whether its golden outputs are not the champion's."""
    needs_classes: bool = False


_SHARE = f"{faults.SHARE:.0%} of the requests"
KINDS: Mapping[str, Kind] = {
    "good": Kind("answers as the champion does"),
    "slow": Kind(f"takes {faults.DELAY_SECONDS:g} s longer for every batch", "slow"),
    "erring": Kind(f"fails on {_SHARE}", "erring"),
    "refusing": Kind(f"refuses {_SHARE}, in which nothing is wrong", "refusing"),
    "resetting": Kind(f"closes the connection of {_SHARE}", "resetting"),
    "dying": Kind(f"ends its worker at {faults.DYING_SHARE:.0%} of the requests", "dying"),
    "leaking": Kind(f"keeps {faults.LEAK_BYTES / 2**20:g} MiB of every request", "leaking"),
    "changed": Kind("answers with another prior of the classes, or larger numbers", "changed", other_answers=True),
    "wrong": Kind("answers each row as the row before it should have been", "wrong", needs_classes=True),
}


def members_of_kind(champion: Mapping[str, bytes], kind: str, model: str, version: int) -> dict[str, bytes]:
    """Members of the archive of `version` of `model`, which is the champion's with the fault of this kind.

    Executes the champion's `handler.py`, so verify its archive first. Raises NotServable.
    """
    made = KINDS[kind]
    if made.needs_classes and not Profile.from_json(champion[PROFILE]).classes:
        raise NotServable(
            f"{kind}: what is wrong would not be found out, as the champion has no classes that labels could name"
        )
    members = {**champion, **_named(champion, model, version)}
    if made.fault:
        members[ENTRY] = _with_fault(champion[ENTRY], made.fault)
    if made.other_answers:
        with opened(members) as handler:
            members[GOLDEN] = golden_set(handler, inputs_of(champion[GOLDEN]))
    return members


def _named(champion: Mapping[str, bytes], model: str, version: int) -> dict[str, bytes]:
    """The members that say whose archive it is."""
    identity, torchserve, metadata = (
        json.loads(champion[name]) for name in (IDENTITY, TORCHSERVE_MANIFEST, "metadata.json")
    )
    identity |= {"model": model, "version": version}
    torchserve["model"] |= {"modelName": model, "modelVersion": str(version)}
    metadata |= {"name": model, "versions": [str(version)]}
    documents = {IDENTITY: identity, TORCHSERVE_MANIFEST: torchserve, "metadata.json": metadata}
    return {name: json.dumps(document, indent=1).encode() for name, document in documents.items()}


def _with_fault(entry: bytes, fault: str) -> bytes:
    """The entry file, whose one class is changed as soon as it is there."""
    (name,) = (node.name for node in ast.parse(entry).body if isinstance(node, ast.ClassDef))
    return entry + f"\n\nfrom handlers import faults\n\nfaults.{fault}({name})\n".encode()
