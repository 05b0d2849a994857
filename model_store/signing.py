"""Ed25519 keys: one private key signs, a directory of public keys is trusted.

A key's name is its *key id*: the first 16 hexadecimal digits of the sha256 of the raw 32-byte public key.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from model_store.errors import KeyExists, KeyUnusable
from model_store.files import write_atomically

TrustedKeys = Mapping[str, Ed25519PublicKey]

_WANTED = "an Ed25519 public key in PEM (SubjectPublicKeyInfo)"
_PEM = re.compile(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----", re.DOTALL)


def key_id(public: Ed25519PublicKey) -> str:
    """First 16 hexadecimal digits of the sha256 of the raw public key."""
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def create_key(private: Path, trust_dir: Path) -> str:
    """Make a key pair: `private` (mode 0600) signs, `trust_dir/<key id>.pem` verifies. Returns the key id.

    Raises KeyExists rather than overwrite `private`.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        # O_EXCL: of two people making a key at once, one is refused instead of losing theirs.
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyExists(private) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    public = key.public_key()
    name = key_id(public)
    write_atomically(
        trust_dir / f"{name}.pem", public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644
    )
    return name


def load_trusted(trust_dir: Path, keys: str = "") -> dict[str, Ed25519PublicKey]:
    """The public keys in `trust_dir`, by key id, and those in the text `keys`, which is PEM; none where neither is.

    Raises KeyUnusable for a `.pem` file that is not an Ed25519 public key under its own key id, and for a text that has
    something else than such keys in it.
    """
    trusted = {key_id(public): public for public in _keys_in(keys)}
    for path in sorted(trust_dir.glob("*.pem")):
        public = _load_public(path, _read_key(path))
        name = key_id(public)
        if path.stem != name:
            raise KeyUnusable(path, f"it holds the key {name}", f"the file name {name}.pem")
        trusted[name] = public
    return trusted


def sign(payload: bytes, private: Path) -> tuple[str, bytes]:
    """Sign `payload` with the key in the file `private`; returns the key id and the 64-byte signature."""
    key = _load_private(private)
    return key_id(key.public_key()), key.sign(payload)


def verify(payload: bytes, signature: bytes, public: Ed25519PublicKey) -> bool:
    """Whether `signature` over `payload` was made with the private half of `public`."""
    try:
        public.verify(signature, payload)
    except InvalidSignature:
        return False
    return True


def _keys_in(text: str) -> list[Ed25519PublicKey]:
    """Each key of a text that holds one after another."""
    place = "SHIPWAY_TRUSTED_KEYS"
    found = _PEM.findall(text)
    if between := _PEM.sub("", text).strip():
        raise KeyUnusable(place, f"beside {len(found)} keys it has {between[:40]!r}", _WANTED)
    return [_load_public(place, each.encode()) for each in found]


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(path, str(error), _WANTED) from error


def _load_public(place: Path | str, pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise KeyUnusable(place, str(error), _WANTED) from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable(place, f"it holds a {type(key).__name__}", _WANTED)
    return key


def _load_private(path: Path) -> Ed25519PrivateKey:
    wanted = "an unencrypted Ed25519 private key in PEM (PKCS8) of mode 0600; make one with: shipway keys create"
    try:
        mode = path.stat().st_mode & 0o777
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise KeyUnusable(path, str(error), wanted) from error
    if mode & 0o077:
        raise KeyUnusable(path, f"its mode is {mode:04o}, so others can read it", wanted)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(path, f"it holds a {type(key).__name__}", wanted)
    return key
