"""TLS at the edge: the user's certificate and key, and what Envoy is told of them."""

import base64
import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from deploy.errors import EdgeFileInvalid
from deploy.node.envoy import Config, watched, watched_file
from deploy.node.user_files import read_private, read_text
from model_store.files import write_atomically

_NAME, TRUST = "server", "peers"
"""Names of Envoy's secrets: what we show, and what others have to show us."""
DAYS = 30
_SMALLEST_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def pair(certificate: Path, key: Path) -> Config:
    """The file of the certificate with its chain, and of the key. Raises EdgeFileInvalid if no client could use it."""
    chain_pem, key_pem = read_text(certificate), read_private(key)
    leaf = _leaf(certificate, chain_pem)
    try:
        private = load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EdgeFileInvalid(key, "wanted is an unencrypted private key in PEM") from None
    allowed = isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _SMALLEST_RSA_BITS
    allowed |= isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES
    if not allowed:
        wanted = f"RSA from {_SMALLEST_RSA_BITS} bits on, or ECDSA with one of {', '.join(_CURVES)}"
        raise EdgeFileInvalid(key, f"its kind is not one that clients and Envoy take; wanted is {wanted}")
    own, certified = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (private.public_key(), leaf.public_key())
    )
    if own != certified:
        raise EdgeFileInvalid(key, f"it does not belong to the certificate in {certificate}")
    secret = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": _NAME,
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain_pem},
            "private_key": {"inline_string": key_pem},
        },
    }
    return watched_file([secret])


def _leaf(path: Path, pem: str) -> x509.Certificate:
    try:
        leaf = x509.load_pem_x509_certificates(pem.encode())[0]
        leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise EdgeFileInvalid(path, "wanted is a certificate in PEM, the server's own first") from None
    now = dt.datetime.now(dt.UTC)
    if now > leaf.not_valid_after_utc:
        raise EdgeFileInvalid(path, f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < leaf.not_valid_before_utc:
        raise EdgeFileInvalid(
            path, f"the certificate is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )
    return leaf


def secret_file(directory: Path) -> Path:
    return directory / "certificate.json"


def transport_socket(directory: Path) -> Config:
    """TLS 1.2 or later for HTTP/2 and HTTP/1.1, with the certificate in a file in `directory` that Envoy watches."""
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [{"name": _NAME, "sds_config": watched(secret_file(directory))}],
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common}}


class Trust:
    """Whom other nodes of the same release must be: they show the certificate that this node shows.

    Where the file `ca.crt` lies beside the certificate, as in a Secret of cert-manager's, they may show any that was
    issued by it for one of the same names. Without it, or without a name, they must have the key of this node's
    certificate, or of the one that this node had before, for those of a release do not get a new one all at once.
    """

    def __init__(self, certificate: Path) -> None:
        self._certificate = certificate
        self._keys: list[str] = []

    def read(self) -> Config:
        """The file of it. Raises EdgeFileInvalid."""
        leaf = _leaf(self._certificate, read_text(self._certificate))
        issuer = authority(self._certificate)
        issued = _issued(leaf, read_text(issuer)) if issuer.exists() else None
        context = issued or self._pinned(leaf)
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        return watched_file([{"@type": kind, "name": TRUST, "validation_context": context}])

    def _pinned(self, leaf: x509.Certificate) -> Config:
        public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key = base64.b64encode(hashlib.sha256(public).digest()).decode()
        self._keys = [key, *(before for before in self._keys if before != key)][:2]
        return {"verify_certificate_spki": self._keys}


def _issued(leaf: x509.Certificate, issuer_pem: str) -> Config | None:
    """None where there is no issuer, or no name: then any certificate would do."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    kinds: dict[str, Sequence[object]] = {
        "DNS": names.get_values_for_type(x509.DNSName),
        "IP_ADDRESS": names.get_values_for_type(x509.IPAddress),
    }
    matchers = [
        {"san_type": kind, "matcher": {"exact": str(value)}} for kind, values in kinds.items() for value in values
    ]
    if not issuer_pem.strip() or not matchers:
        return None
    return {"trusted_ca": {"inline_string": issuer_pem}, "match_typed_subject_alt_names": matchers}


def authority(certificate: Path) -> Path:
    """Where the certificate of its issuer lies, if it does."""
    return certificate.with_name("ca.crt")


def trust_file(directory: Path) -> Path:
    return directory / "trust.json"


def peer_socket(directory: Path) -> Config:
    """TLS towards other nodes, held to a file in `directory` that Envoy watches."""
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        "validation_context_sds_secret_config": {"name": TRUST, "sds_config": watched(trust_file(directory))},
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common}}


def create_self_signed(certificate: Path, key: Path, names: Sequence[str]) -> None:
    """Make a pair for trying out, valid for `DAYS` days for these DNS names and addresses; replaces an older one.

    Raises EdgeFileInvalid.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))  # a client's clock may be behind
        .not_valid_after(now + dt.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # By these a client that trusts several of the same name finds the right one.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    signed = builder.sign(private, hashes.SHA256())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, data, mode in ((key, pem, 0o600), (certificate, signed.public_bytes(Encoding.PEM), 0o644)):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, data, mode)
        except OSError as error:
            raise EdgeFileInvalid(path, f"it cannot be written: {error.strerror}") from error


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
