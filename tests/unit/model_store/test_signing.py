"""Keys: never overwritten, never readable by others, named by what they are."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from model_store.errors import KeyExists, KeyUnusable
from model_store.signing import create_key, load_trusted, sign, verify


def test_what_one_key_signs_its_public_half_verifies(tmp_path: Path) -> None:
    name = create_key(tmp_path / "keys" / "signing.pem", tmp_path / "trust")
    key, signature = sign(b"statement", tmp_path / "keys" / "signing.pem")
    trusted = load_trusted(tmp_path / "trust")
    assert key == name
    assert list(trusted) == [name]
    assert verify(b"statement", signature, trusted[name])
    assert not verify(b"Statement", signature, trusted[name])
    assert not verify(b"statement", signature[:-1] + bytes([signature[-1] ^ 1]), trusted[name])


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    private = tmp_path / "keys" / "signing.pem"
    create_key(private, tmp_path / "trust")
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    private.chmod(0o640)
    with pytest.raises(KeyUnusable, match="its mode is 0640"):
        sign(b"", private)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private = tmp_path / "signing.pem"
    create_key(private, tmp_path / "trust")
    before = private.read_bytes()
    with pytest.raises(KeyExists, match="never overwritten"):
        create_key(private, tmp_path / "trust")
    assert private.read_bytes() == before
    assert len(load_trusted(tmp_path / "trust")) == 1


def test_several_keys_are_trusted_at_once_and_none_without_a_directory(tmp_path: Path) -> None:
    names = {create_key(tmp_path / f"{index}.pem", tmp_path / "trust") for index in range(3)}
    assert set(load_trusted(tmp_path / "trust")) == names
    assert load_trusted(tmp_path / "nowhere") == {}


def test_a_trusted_key_under_another_name_is_refused(tmp_path: Path) -> None:
    name = create_key(tmp_path / "signing.pem", tmp_path)
    (tmp_path / "signing.pem").unlink()
    (tmp_path / f"{name}.pem").rename(tmp_path / "0123456789abcdef.pem")
    with pytest.raises(KeyUnusable, match=f"it holds the key {name}"):
        load_trusted(tmp_path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0123456789abcdef.pem").write_bytes(content)
    with pytest.raises(KeyUnusable, match="Ed25519 public key in PEM"):
        load_trusted(tmp_path)


def test_a_private_key_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="shipway keys create"):
        sign(b"", tmp_path / "none.pem")
    other = tmp_path / "other.pem"
    other.touch(mode=0o600)
    other.write_bytes(X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyUnusable, match="it holds a X25519PrivateKey"):
        sign(b"", other)


def test_keys_in_a_text_are_trusted_beside_those_of_the_directory(tmp_path: Path) -> None:
    names = [create_key(tmp_path / f"{each}.pem", tmp_path / each) for each in ("a", "b", "c")]
    first, second = ((tmp_path / each / f"{name}.pem").read_text() for each, name in zip("ab", names, strict=False))
    assert sorted(load_trusted(tmp_path / "c", f"{first}\n  \n{second}")) == sorted(names)
    assert list(load_trusted(tmp_path / "none")) == []
    for text, words in {
        "key": "beside 0 keys it has 'key'",
        f"{first} and": "beside 1 keys it has 'and'",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----": "the key in SHIPWAY_TRUSTED_KEYS cannot be used",
        (tmp_path / "a.pem").read_text(): "wanted an Ed25519 public key",
    }.items():
        with pytest.raises(KeyUnusable, match=words):
            load_trusted(tmp_path / "none", text)
