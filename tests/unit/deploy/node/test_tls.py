"""Certificates: which pairs are refused before Envoy sees them, and the one for trying out."""

import datetime as dt
import ipaddress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from deploy.errors import EdgeFileInvalid
from deploy.node import tls
from tests.unit.deploy.node.secured_edge import replace

NAMES = ["node.example", "127.0.0.1"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    tls.create_self_signed(certificate, key, NAMES)
    return certificate, key


def test_a_self_signed_pair_is_right_for_its_names(pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    assert key.stat().st_mode & 0o777 == 0o600
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert made.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=29)
    (secret,) = tls.pair(*pair)["resources"]
    assert secret["tls_certificate"]["private_key"] == {"inline_string": key.read_text()}


def test_a_pair_of_two_pairs_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tls.create_self_signed(tmp_path / "other.crt", tmp_path / "other.key", NAMES)
    with pytest.raises(EdgeFileInvalid, match=r"other\.key is not usable: it does not belong to the certificate in"):
        tls.pair(pair[0], tmp_path / "other.key")


@pytest.mark.parametrize(
    ("which", "text", "words"),
    [
        (0, "", "wanted is a certificate in PEM"),
        (0, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "wanted is a certificate in PEM"),
        (1, "", "wanted is an unencrypted private key in PEM"),
        (1, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "wanted is an unencrypted private key"),
    ],
)
def test_what_is_no_pair_is_refused(pair: tuple[Path, Path], which: int, text: str, words: str) -> None:
    replace(pair[which], text)
    with pytest.raises(EdgeFileInvalid, match=words):
        tls.pair(*pair)


@pytest.mark.parametrize(
    "private",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 1024)],  # noqa: S505 - that is the point
)
def test_a_kind_of_key_that_envoy_does_not_take_is_refused(
    pair: tuple[Path, Path], private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
) -> None:
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace(pair[1], pem.decode())
    with pytest.raises(EdgeFileInvalid, match="wanted is RSA from 2048 bits on, or ECDSA with one of secp256r1"):
        tls.pair(*pair)


def test_a_key_that_others_can_read_is_refused(pair: tuple[Path, Path]) -> None:
    pair[1].chmod(0o644)
    with pytest.raises(EdgeFileInvalid, match="its mode is 0644"):
        tls.pair(*pair)


@pytest.mark.parametrize(
    ("days", "words"), [(-tls.DAYS - 1, "the certificate expired on "), (3, "is valid only from ")]
)
def test_a_certificate_of_another_time_is_refused(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    then = SimpleNamespace(now=lambda tz: dt.datetime.now(tz) + dt.timedelta(days=days))
    with monkeypatch.context() as patch:
        patch.setattr(tls, "dt", SimpleNamespace(datetime=then, timedelta=dt.timedelta, UTC=dt.UTC))
        tls.create_self_signed(*pair, NAMES)
    with pytest.raises(EdgeFileInvalid, match=words):
        tls.pair(*pair)


def test_peers_are_held_to_the_issuer_where_there_is_one_and_names_can_be_held_against_it(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def trusted() -> dict[str, Any]:
        (secret,) = tls.Trust(pair[0]).read()["resources"]
        return dict(secret["validation_context"])

    assert trusted().keys() == {"verify_certificate_spki"}
    issuer = tmp_path / "ca.crt"
    issuer.write_text("")
    assert trusted().keys() == {"verify_certificate_spki"}
    tls.create_self_signed(issuer, tmp_path / "ca.key", ["authority"])
    assert trusted() == {
        "trusted_ca": {"inline_string": issuer.read_text()},
        "match_typed_subject_alt_names": [
            {"san_type": "DNS", "matcher": {"exact": "node.example"}},
            {"san_type": "IP_ADDRESS", "matcher": {"exact": "127.0.0.1"}},
        ],
    }
    _without_names(*pair)
    assert trusted().keys() == {"verify_certificate_spki"}


def _without_names(certificate: Path, key: Path) -> None:
    """A certificate of the same key that names no host."""
    private = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
