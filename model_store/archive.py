"""The archive (`.mar`): written deterministically, signed beside, and verified before anything opens it.

A node imports this module, so it imports neither mlflow nor torch.
"""

import base64
import hashlib
import json
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import ArchiveMissing, ArchiveRefused
from model_store.files import atomic_file, write_atomically
from model_store.signing import TrustedKeys, sign, verify

TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
IDENTITY = "shipway.json"
REQUIRED_MEMBERS = frozenset(
    {
        TORCHSERVE_MANIFEST,
        IDENTITY,
        "handler.py",
        "model-config.yaml",
        "program.json",
        "weights.safetensors",
        "runtime.json",
        "schema.json",
        "metadata.json",
        "profile.json",
        "golden.json",
    }
)
OPTIONAL_MEMBERS = frozenset({"rff.safetensors", "tokenizer.json", "compiled.pt2"})

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Model names go into paths, statistics and metric labels as they are."""

MAX_UNPACKED_BYTES = 16 * 2**30
_MAX_SIGNATURE_BYTES = 4096
_MAX_IDENTITY_BYTES = 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold


@dataclass(frozen=True)
class Manifest:
    """Where an archive comes from: the content of its `shipway.json`."""

    model: str
    version: int
    run_id: str
    git_commit: str
    data_digest: str
    libraries: Mapping[str, str]
    shipway: str

    def to_json(self) -> bytes:
        """`shipway.json`, the same bytes for the same manifest."""
        return json.dumps({**vars(self), "libraries": dict(self.libraries)}, indent=1, sort_keys=True).encode()


@dataclass(frozen=True)
class Signature:
    """A detached signature of model, version and digest: the content of `NAME.mar.sig`."""

    model: str
    version: int
    digest: str
    key: str
    signature: bytes

    def to_json(self) -> bytes:
        """`NAME.mar.sig`, the signature itself in base64."""
        return json.dumps({**vars(self), "signature": base64.b64encode(self.signature).decode()}, indent=1).encode()


def archive_name(model: str, version: int, digest: str) -> str:
    """File name of an archive: model, version and the first 12 digits of the digest."""
    return f"{model}-{version}-{digest.removeprefix('sha256:')[:12]}.mar"


def signature_path(archive: Path) -> Path:
    """Where the signature of `archive` lies: beside it, with `.sig` added to the name."""
    return archive.with_name(archive.name + ".sig")


def file_digest(path: Path) -> str:
    """`sha256:` and 64 hexadecimal digits of the file's content, read in pieces."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, members: Mapping[str, bytes]) -> str:
    """Write an archive, whole or not at all, and return its digest. The same members give the same bytes.

    Members are stored, not deflated: zlib's output differs between its builds, weights hardly shrink, and a stored
    member can be read in place.
    """
    with atomic_file(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(members):
                entry = zipfile.ZipInfo(name, date_time=_EPOCH)
                entry.create_system = 3  # Unix, on every system
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, members[name])
        file.seek(0)
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def pack(
    members: Mapping[str, bytes], model: str, version: int, archives_dir: Path, key_path: Path
) -> tuple[Path, str]:
    """Write and sign the archive with these members in `archives_dir`; returns its path and its digest.

    Raises KeyUnusable; the archive is there whole or not at all.
    """
    archives_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archives_dir, prefix=".packing-") as directory:
        # The name holds the digest, which is known only once the bytes are written.
        draft = Path(directory) / "draft.mar"
        digest = write(draft, members)
        signature = sign_archive(draft, model, version, key_path)
        archive = archives_dir / archive_name(model, version, digest)
        # The signature first: whoever sees the archive sees it signed.
        signature.replace(signature_path(archive))
        draft.replace(archive)
    return archive, digest


def sign_archive(path: Path, model: str, version: int, key_path: Path) -> Path:
    """Sign the archive at `path` as `version` of `model`; returns the path of the signature written beside it."""
    digest = file_digest(path)
    key, signature = sign(_signed_bytes(model, version, digest), key_path)
    target = signature_path(path)
    write_atomically(target, Signature(model, version, digest, key, signature).to_json())
    return target


def read_signature(archive: Path) -> Signature:
    """The signature beside `archive`, parsed but not verified; ArchiveMissing or ArchiveRefused otherwise."""
    path = signature_path(archive)
    if not path.is_file():
        raise ArchiveMissing(path)
    try:
        with path.open("rb") as file:
            fields = dict(json.loads(file.read(_MAX_SIGNATURE_BYTES)))
        return Signature(
            model=_text(fields, "model"),
            version=_integer(fields, "version"),
            digest=_text(fields, "digest"),
            key=_text(fields, "key"),
            signature=base64.b64decode(_text(fields, "signature"), validate=True),
        )
    except (ValueError, TypeError) as error:
        raise ArchiveRefused(
            archive, "its signature file is damaged", "JSON with model, version, digest, key and signature", str(error)
        ) from error


def verify_archive(
    path: Path,
    model: str,
    version: int,
    digest: str,
    trusted: TrustedKeys,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
) -> Manifest:
    """Check that the file at `path` is exactly this version of this model, signed by a trusted key.

    The zip is opened only after the signature and the digest of the whole file hold; then its members and the
    identity inside are checked. Raises ArchiveMissing, or ArchiveRefused with what was expected and found.
    """
    if not path.is_file():
        raise ArchiveMissing(path)
    _check_signature(path, model, version, digest, trusted)
    found = file_digest(path)
    if found != digest:
        raise ArchiveRefused(path, "its content was altered or is incomplete", digest, found)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist(), max_unpacked_bytes)
            manifest = _read_manifest(path, _read_json(path, archive, IDENTITY))
            torchserve = _read_json(path, archive, TORCHSERVE_MANIFEST)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ArchiveRefused(path, "it is no readable archive", "a zip file", str(error)) from error
    _check_identity(path, f"model {model} version {version}", manifest, torchserve)
    return manifest


def read_member(path: Path, name: str) -> bytes:
    """One member of an archive. Verify the archive first. Raises KeyError for a name that it does not hold."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def read_members(path: Path) -> dict[str, bytes]:
    """All members of an archive, by name. Verify the archive first."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def unpack(path: Path) -> Path:
    """Unpack an archive beside itself, into a directory of its name without the ending. Verify the archive first."""
    directory = path.with_suffix("")
    shutil.rmtree(directory, ignore_errors=True)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)
    return directory


def _signed_bytes(model: str, version: int, digest: str) -> bytes:
    """What is signed. JSON, so that no model name can imitate another's fields; the first line names the purpose."""
    statement = json.dumps({"digest": digest, "model": model, "version": version}, sort_keys=True)
    return b"shipway archive v1\n" + statement.encode()


def _check_signature(path: Path, model: str, version: int, digest: str, trusted: TrustedKeys) -> None:
    signature = read_signature(path)
    claimed = {"model": signature.model, "version": signature.version, "digest": signature.digest}
    for field, expected in {"model": model, "version": version, "digest": digest}.items():
        if claimed[field] != expected:
            raise ArchiveRefused(path, f"it is signed for another {field}", str(expected), str(claimed[field]))
    public = trusted.get(signature.key)
    if public is None:
        keys = ", ".join(sorted(trusted)) or "none (no key is trusted, so every archive is refused)"
        raise ArchiveRefused(path, "it is signed with a key that is not trusted", f"one of {keys}", signature.key)
    if not verify(_signed_bytes(model, version, digest), signature.signature, public):
        raise ArchiveRefused(path, "its signature is wrong", f"one by key {signature.key}", "one that does not verify")


def _check_members(path: Path, entries: list[zipfile.ZipInfo], max_unpacked_bytes: int) -> None:
    names = [entry.filename for entry in entries]
    allowed = REQUIRED_MEMBERS | OPTIONAL_MEMBERS
    # Only known names pass, so absolute names and names with ".." need no rule of their own.
    unknown = sorted({repr(name) for name in names if name not in allowed})
    if unknown:
        raise ArchiveRefused(path, "it holds unknown members", f"only {', '.join(sorted(allowed))}", ", ".join(unknown))
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ArchiveRefused(path, "it holds members twice", "each once", ", ".join(twice))
    missing = sorted(REQUIRED_MEMBERS.difference(names))
    if missing:
        raise ArchiveRefused(path, "it lacks members", ", ".join(missing), ", ".join(sorted(names)) or "nothing")
    total = sum(entry.file_size for entry in entries)
    if total > max_unpacked_bytes:
        raise ArchiveRefused(path, "it unpacks to too much", f"at most {max_unpacked_bytes} bytes", f"{total} bytes")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ArchiveRefused(path, f"its member {entry.filename} is packed", "a stored member", "a compressed one")


def _read_json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > _MAX_IDENTITY_BYTES:
        raise ArchiveRefused(path, f"its {name} is too long", f"at most {_MAX_IDENTITY_BYTES} bytes", "more")
    try:
        fields = json.loads(archive.read(name))
    except ValueError as error:
        raise ArchiveRefused(path, f"its {name} is damaged", "JSON", str(error)) from error
    if not isinstance(fields, dict):
        raise ArchiveRefused(path, f"its {name} is damaged", "a JSON object", type(fields).__name__)
    return fields


def _read_manifest(path: Path, fields: dict[str, Any]) -> Manifest:
    try:
        return Manifest(
            model=_text(fields, "model"),
            version=_integer(fields, "version"),
            run_id=_text(fields, "run_id"),
            git_commit=_text(fields, "git_commit"),
            data_digest=_text(fields, "data_digest"),
            libraries={str(name): str(version) for name, version in dict(fields.get("libraries", ())).items()},
            shipway=_text(fields, "shipway"),
        )
    except (TypeError, ValueError) as error:
        raise ArchiveRefused(path, f"its {IDENTITY} is damaged", "all fields of a manifest", str(error)) from error


def _check_identity(path: Path, expected: str, manifest: Manifest, torchserve: dict[str, Any]) -> None:
    """Both names of the archive, ours and the one that TorchServe reads, must be the one that was asked for."""
    model = torchserve.get("model")
    model = model if isinstance(model, dict) else {}
    for name, found in {
        IDENTITY: f"model {manifest.model} version {manifest.version}",
        TORCHSERVE_MANIFEST: f"model {model.get('modelName')} version {model.get('modelVersion')}",
    }.items():
        if found != expected:
            raise ArchiveRefused(path, f"its {name} names another version", expected, found)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, not a string")
    return value


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int:  # not isinstance: true is no version
        raise TypeError(f"{name} is {value!r}, not an integer")
    return value
