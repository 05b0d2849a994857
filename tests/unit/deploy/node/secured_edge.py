"""A real edge with TLS and authentication, whose files a test replaces; and the credentials to ask it with."""

import asyncio
import base64
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from deploy.node.admin import Admin
from deploy.node.desired import DesiredEndpoint
from deploy.node.envoy import Edge, Own
from deploy.node.layout import Layout
from deploy.node.security import Security, security
from deploy.settings import Settings
from tests import waiting
from tests.unit.deploy.node.real_edge import RealEdge, real_edge

ISSUER, AUDIENCE = "https://issuer.example", "shipway"
TAKEN_UP_WITHIN_SECONDS = 20.0


class Issuer:
    """Signs tokens with ES256 (RFC 7518, 3.4)."""

    def __init__(self, key_id: str = "1") -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        self._key_id = key_id

    @property
    def public(self) -> dict[str, str]:
        """One member of a JWKS."""
        numbers = self._private.public_key().public_numbers()
        x, y = (_text(number.to_bytes(32)) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self._key_id, "x": x, "y": y}

    def token(self, **changes: object) -> str:
        """A token that is right but for `changes` of its claims; None leaves a claim out."""
        claims: dict[str, object] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "carol", "exp": int(time.time()) + 600}
        claims |= {"scope": "feedback infer"} | changes
        head = {"alg": "ES256", "typ": "JWT", "kid": self._key_id}
        kept = {name: value for name, value in claims.items() if value is not None}
        signed = ".".join(_text(json.dumps(part).encode()) for part in (head, kept))
        r, s = decode_dss_signature(self._private.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(r.to_bytes(32) + s.to_bytes(32))}"


def write_jwks(path: Path, *issuers: Issuer) -> None:
    replace(path, json.dumps({"keys": [issuer.public for issuer in issuers]}))


def replace(path: Path, text: str, mode: int = 0o600) -> None:
    """As careful people do it: written beside it, then renamed."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.chmod(mode)
    beside.replace(path)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


T = TypeVar("T")


@dataclass(frozen=True)
class SecuredEdge:
    real: RealEdge
    security: Security
    published: list[tuple[str, ...]]

    def problem(self) -> str:
        """The first problem, once there is one."""
        return wait_for(self.security.problems)[0]

    def no_problem(self) -> None:
        wait_for(lambda: not self.security.problems())


def wait_for(condition: Callable[[], T]) -> T:
    """The first true value, as soon as a replaced file must be taken up."""
    return waiting.wait_for(condition, TAKEN_UP_WITHIN_SECONDS)


@contextmanager
def secured_edge(
    layout: Layout, settings: Settings, endpoint: DesiredEndpoint, own: Own | None = None
) -> Iterator[SecuredEdge]:
    """Envoy, and in a thread what the launcher does for it."""
    published: list[tuple[str, ...]] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> tuple[Security, Admin]:
        admin = Admin(layout.admin_socket)
        return security(settings, layout.envoy, admin, lambda: published.append(guarded.problems())), admin

    guarded, admin = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    guarded.start()
    log, guard = settings.state_dir / "access.log", guarded.guard
    edge = Edge("127.0.0.1", settings.http_port, 1 << 20, 5.0, log, threads=1, guard=guard, own=own)
    try:
        with real_edge(layout, edge, [endpoint]) as real:
            watching = asyncio.run_coroutine_threadsafe(guarded.watch(), loop)
            yield SecuredEdge(real, guarded, published)
            watching.cancel()
    finally:
        asyncio.run_coroutine_threadsafe(admin.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
