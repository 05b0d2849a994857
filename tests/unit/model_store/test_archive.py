"""Archives: the same members are the same bytes, and anything but the right file is refused before it is opened."""

import base64
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from model_store.archive import (
    IDENTITY,
    REQUIRED_MEMBERS,
    TORCHSERVE_MANIFEST,
    Manifest,
    archive_name,
    file_digest,
    read_member,
    read_signature,
    sign_archive,
    signature_path,
    unpack,
    verify_archive,
    write,
)
from model_store.errors import ArchiveMissing, ArchiveRefused
from model_store.signing import TrustedKeys, create_key, load_trusted

MANIFEST = Manifest("flights", 3, "run", "commit", "sha256:data", {"torch": "2.13.0"}, "0.1.0")


def members(manifest: Manifest = MANIFEST, torchserve_version: str = "3") -> dict[str, bytes]:
    content = {name: name.encode() for name in REQUIRED_MEMBERS}
    content[IDENTITY] = manifest.to_json()
    content[TORCHSERVE_MANIFEST] = json.dumps(
        {"model": {"modelName": "flights", "modelVersion": torchserve_version}}
    ).encode()
    return content


@dataclass(frozen=True)
class Packed:
    """An archive, the key that signs it, and whom a node trusts."""

    path: Path
    digest: str
    key: Path
    trusted: TrustedKeys

    def verify(self, **changed: object) -> Manifest:
        asked = {"model": "flights", "version": 3, "digest": self.digest, "trusted": self.trusted, **changed}
        return verify_archive(self.path, **asked)  # type: ignore[arg-type]


Pack = Callable[[dict[str, bytes]], Packed]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    key = tmp_path / "keys" / "signing.pem"
    create_key(key, tmp_path / "trust")

    def make(content: dict[str, bytes]) -> Packed:
        path = tmp_path / "flights.mar"
        digest = write(path, content)
        sign_archive(path, "flights", 3, key)
        return Packed(path, digest, key, load_trusted(tmp_path / "trust"))

    return make


def test_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    content = members()
    first = write(tmp_path / "a.mar", content)
    before = os.umask(0o077)
    try:
        second = write(tmp_path / "b.mar", dict(reversed(content.items())))
    finally:
        os.umask(before)
    assert first == second == file_digest(tmp_path / "a.mar")
    assert (tmp_path / "a.mar").read_bytes() == (tmp_path / "b.mar").read_bytes()
    assert (tmp_path / "b.mar").stat().st_mode & 0o777 == 0o644


def test_another_byte_gives_another_digest_and_name(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mar", members())
    second = write(tmp_path / "b.mar", {**members(), "golden.json": b"{}"})
    assert first != second
    assert archive_name("flights", 3, first) == f"flights-3-{first[7:19]}.mar"
    assert archive_name("flights", 3, first) != archive_name("flights", 3, second)


def test_a_good_archive_gives_its_manifest_and_members(pack: Pack) -> None:
    packed = pack(members())
    assert packed.verify() == MANIFEST
    assert read_member(packed.path, "handler.py") == b"handler.py"


def never(*_: object, **__: object) -> None:
    raise AssertionError("the zip was opened before its digest and signature were checked")


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening any zip fails the test."""
    monkeypatch.setattr(zipfile.ZipFile, "__init__", never)


def refused(packed: Packed, **changed: object) -> ArchiveRefused:
    with pytest.raises(ArchiveRefused) as caught:
        packed.verify(**changed)
    assert caught.value.expected in str(caught.value)
    assert caught.value.found in str(caught.value)
    return caught.value


@pytest.mark.parametrize("position", [0, 200, -1])
def test_an_altered_archive_is_refused_unopened(pack: Pack, position: int, request: pytest.FixtureRequest) -> None:
    packed = pack(members())
    content = bytearray(packed.path.read_bytes())
    content[position] ^= 1
    packed.path.write_bytes(content)
    request.getfixturevalue("unopened")
    error = refused(packed)
    assert error.what == "its content was altered or is incomplete"
    assert (error.expected, error.found) == (packed.digest, file_digest(packed.path))


def test_a_half_written_archive_is_refused_unopened(pack: Pack, request: pytest.FixtureRequest) -> None:
    packed = pack(members())
    content = packed.path.read_bytes()
    packed.path.write_bytes(content[: len(content) // 2])
    request.getfixturevalue("unopened")
    assert refused(packed).found == file_digest(packed.path)


@pytest.mark.usefixtures("unopened")
def test_missing_archive_or_signature(tmp_path: Path) -> None:
    path = tmp_path / "flights.mar"
    with pytest.raises(ArchiveMissing, match=r"flights\.mar"):
        verify_archive(path, "flights", 3, "sha256:0", {})
    path.write_bytes(b"unsigned")
    with pytest.raises(ArchiveMissing, match=r"flights\.mar\.sig"):
        verify_archive(path, "flights", 3, file_digest(path), {})


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"model": "trains"}, "it is signed for another model"),
        ({"version": 4}, "it is signed for another version"),
        ({"digest": "sha256:" + "0" * 64}, "it is signed for another digest"),
        ({"trusted": {}}, "it is signed with a key that is not trusted"),
    ],
)
def test_an_archive_of_another_identity_or_signer_is_refused_unopened(
    pack: Pack, asked: dict[str, object], what: str, request: pytest.FixtureRequest
) -> None:
    packed = pack(members())
    request.getfixturevalue("unopened")
    assert refused(packed, **asked).what == what


def test_a_signature_of_another_key_is_refused_unopened(
    pack: Pack, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    packed = pack(members())
    create_key(tmp_path / "stranger.pem", tmp_path / "strangers")
    sign_archive(packed.path, "flights", 3, tmp_path / "stranger.pem")
    request.getfixturevalue("unopened")
    assert refused(packed).what == "it is signed with a key that is not trusted"
    # A stranger who claims a trusted key's name gains nothing.
    forged = replace(read_signature(packed.path), key=next(iter(packed.trusted)))
    signature_path(packed.path).write_bytes(forged.to_json())
    assert refused(packed).what == "its signature is wrong"


def test_a_signature_cannot_be_moved_to_another_version(pack: Pack, request: pytest.FixtureRequest) -> None:
    packed = pack(members())
    moved = replace(read_signature(packed.path), version=4)
    signature_path(packed.path).write_bytes(moved.to_json())
    request.getfixturevalue("unopened")
    assert refused(packed, version=4).what == "its signature is wrong"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": "flights", "version": true, "digest": "", "key": "", "signature": ""}',
        b'{"model": "flights", "version": 3, "digest": "", "key": "", "signature": "*"}',
        b"\xff\xfe",
        base64.b64encode(os.urandom(100_000)),
    ],
)
@pytest.mark.usefixtures("unopened")
def test_a_damaged_signature_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flights.mar"
    path.write_bytes(b"anything")
    signature_path(path).write_bytes(content)
    with pytest.raises(ArchiveRefused, match="its signature file is damaged"):
        verify_archive(path, "flights", 3, file_digest(path), {})


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "extra.py", "handler.py/", "handlers/tabular.py"])
def test_an_unknown_member_is_refused_even_when_signed(pack: Pack, name: str) -> None:
    error = refused(pack({**members(), name: b""}))
    assert error.what == "it holds unknown members"
    assert repr(name) in error.found


def test_a_missing_member_is_refused(pack: Pack) -> None:
    content = members()
    del content["golden.json"]
    error = refused(pack(content))
    assert (error.what, error.expected) == ("it lacks members", "golden.json")


def test_an_archive_that_unpacks_to_too_much_is_refused(pack: Pack) -> None:
    packed = pack({**members(), "weights.safetensors": bytes(10_000)})
    assert refused(packed, max_unpacked_bytes=10_000).what == "it unpacks to too much"


def test_a_member_held_twice_is_refused(pack: Pack) -> None:
    packed = pack(members())
    with zipfile.ZipFile(packed.path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("handler.py", b"another")
    sign_archive(packed.path, "flights", 3, packed.key)
    error = refused(packed, digest=file_digest(packed.path))
    assert (error.what, error.found) == ("it holds members twice", "handler.py")


def test_a_compressed_member_is_refused(pack: Pack) -> None:
    packed = pack(members())
    with zipfile.ZipFile(packed.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members().items():
            archive.writestr(name, content * 100)
    sign_archive(packed.path, "flights", 3, packed.key)
    assert refused(packed, digest=file_digest(packed.path)).found == "a compressed one"


def test_signed_bytes_that_are_no_zip_are_refused(pack: Pack) -> None:
    packed = pack(members())
    packed.path.write_bytes(b"not a zip")
    sign_archive(packed.path, "flights", 3, packed.key)
    assert refused(packed, digest=file_digest(packed.path)).what == "it is no readable archive"


@pytest.mark.parametrize(
    ("content", "member"),
    [
        (members(replace(MANIFEST, version=4)), IDENTITY),
        (members(replace(MANIFEST, model="trains")), IDENTITY),
        (members(torchserve_version="4"), TORCHSERVE_MANIFEST),
        ({**members(), TORCHSERVE_MANIFEST: b'{"model": "flights"}'}, TORCHSERVE_MANIFEST),
    ],
)
def test_both_identities_inside_must_be_the_one_asked_for(pack: Pack, content: dict[str, bytes], member: str) -> None:
    error = refused(pack(content))
    assert error.what == f"its {member} names another version"
    assert error.expected == "model flights version 3"


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"model": 3}', b" " * 2**20 + b"{}"])
def test_a_damaged_identity_is_refused(pack: Pack, text: bytes) -> None:
    assert refused(pack({**members(), IDENTITY: text})).what.startswith("its shipway.json is")


def test_unpacked_archive_holds_its_members_and_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "flights-1-0123456789ab.mar"
    write(path, {"handler.py": b"first", "MAR-INF/MANIFEST.json": b"{}"})
    (path.with_suffix("")).mkdir()
    (path.with_suffix("") / "left.txt").write_text("of an earlier one")
    directory = unpack(path)
    found = {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}
    assert found == {"handler.py": b"first", "MAR-INF/MANIFEST.json": b"{}"}
