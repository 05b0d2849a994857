"""How this machine itself asks the node: whom it trusts, and with which key. `shipway demo` is such a client."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from deploy.errors import EdgeFileInvalid, NotAnswered
from deploy.node import auth
from deploy.scopes import Scope
from deploy.settings import Settings
from model_store.files import write_atomically

CLIENT = "demo"
SCOPES: tuple[Scope, ...] = ("infer", "feedback")
"""A drill's users also say what really happened."""


@dataclass(frozen=True)
class Caller:
    """Where the node answers, and what it wants to be asked with."""

    url: str
    target: str
    """For gRPC: HOST:PORT."""
    certificate: Path | None
    """The node's own certificate, which is trusted and nothing else; None where it speaks plain HTTP."""
    header_file: Path | None
    """One line with the API key, as curl reads it; None where the node asks for none."""

    def headers(self) -> dict[str, str]:
        return dict([read_header(self.header_file)]) if self.header_file else {}

    def trusted(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self.certificate)) if self.certificate else None

    def channel(self) -> grpc.Channel:
        if self.certificate is None:
            return grpc.insecure_channel(self.target)
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self.certificate.read_bytes()))


def read_header(path: Path) -> tuple[str, str]:
    """Name and value of the one header in a file. Raises EdgeFileInvalid, which tells nothing of what was found."""
    name, found, value = path.read_text().strip().partition(":")
    if not found or not value.strip():
        raise EdgeFileInvalid(path, "it has no header; expected one line, `name: value`")
    return name.strip(), value.strip()


def caller(settings: Settings) -> Caller:
    """A caller of the node with these settings; it gets an API key of its own where the node wants one.

    Raises NotAnswered where it cannot have one, EdgeFileInvalid.
    """
    header_file = None
    if settings.authenticates:
        if settings.api_keys is None:
            raise NotAnswered(settings.http_url, "it takes tokens of an issuer alone; set SHIPWAY_API_KEYS too")
        header_file = _header_file(settings.api_keys, settings.state_dir / CLIENT / "api_key.header")
    return Caller(settings.http_url, settings.grpc_target, settings.tls_certificate, header_file)


def _header_file(api_keys: Path, path: Path) -> Path:
    found = auth.read_api_keys(api_keys) if api_keys.exists() else ()
    known = next((key for key in found if key.name == CLIENT), None)
    if known is None or not path.exists() or not set(SCOPES).issubset(known.scopes):
        if known:  # and nobody has it any more, or it opens too little
            auth.revoke_api_key(api_keys, CLIENT)
        key = auth.add_api_key(api_keys, CLIENT, SCOPES)
        write_atomically(path, f"x-api-key: {key}\n".encode(), mode=0o600)
    return path
