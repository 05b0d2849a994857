"""Authentication and scopes: two files of the user's, and the filters of Envoy that hold clients to them.

API keys are 256 random bits each; the file has their sha256 alone, so it opens nothing to whoever reads it. Tokens are
JWTs of one issuer, verified by Envoy with the issuer's public keys. `auth.lua` decides, and the access log says who.
"""

import base64
import binascii
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import EdgeFileInvalid
from deploy.node.envoy import CREDENTIALS, Config, typed, watched, watched_file
from deploy.node.user_files import read_private, read_text
from deploy.scopes import SCOPES, Scope
from handlers.errors import shown
from model_store.files import write_atomically

LUA_FILTER, TOKEN_FILTER, _MARK_FILTER = "shipway.auth", "shipway.tokens", "shipway.passed"
_LUA, _JWT = "http.lua.v3.Lua", "http.jwt_authn.v3.JwtAuthentication"
CLIENT_IN_LOG = f"%DYNAMIC_METADATA({LUA_FILTER}:client)%"
FORWARDED = {name: f"%DYNAMIC_METADATA({LUA_FILTER}:{name})%" for name in CREDENTIALS}
"""A client's credentials, where they are forwarded."""
_CLOCK_SKEW_SECONDS = 60
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_SMALLEST_RSA_BITS = 2048


class ApiKey(BaseModel):
    """One key: whose it is, its sha256, and what it allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]


class _ApiKeys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...]


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are taken, and for whom they must have been made."""

    jwks: Path
    issuer: str
    audience: str


def read_api_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in the file `path`; it may have none, when the last one was revoked. Raises EdgeFileInvalid."""
    text = read_private(path)
    try:
        keys = _ApiKeys.model_validate_json(text).keys
    except ValidationError as error:
        # The values are not shown: somebody may have written a key itself where its digest belongs.
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors()]
        raise EdgeFileInvalid(path, "; ".join(problems)) from None
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in keys]
        if repeated := sorted({value for value in values if values.count(value) > 1}):
            raise EdgeFileInvalid(path, f"every {what} may be there once; found twice: {', '.join(repeated)}")
    return keys


def add_api_key(path: Path, name: str, scopes: Sequence[Scope]) -> str:
    """A new key, whose digest is now in the file `path`, which is made if it is not there. Raises EdgeFileInvalid."""
    key = "sw_" + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    try:
        added = ApiKey(name=name, sha256=digest, scopes=tuple(scope for scope in SCOPES if scope in scopes))
    except ValidationError:
        allowed = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 64"
        raise EdgeFileInvalid(path, f"a key's name has {allowed}; found {shown(name)}") from None
    with _writing(path):
        keys = read_api_keys(path) if path.exists() else ()
        if any(each.name == name for each in keys):
            raise EdgeFileInvalid(path, f"it has a key {shown(name)} already; choose another name, or revoke that one")
        _write_api_keys(path, (*keys, added))
    return key


def revoke_api_key(path: Path, name: str) -> None:
    """Take the key `name` out of the file `path`. Raises EdgeFileInvalid."""
    with _writing(path):
        keys = read_api_keys(path)
        left = tuple(key for key in keys if key.name != name)
        if len(left) == len(keys):
            found = ", ".join(key.name for key in keys) or "none"
            raise EdgeFileInvalid(path, f"it has no key {shown(name)}; it has: {found}")
        _write_api_keys(path, left)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Alone with the file `path`, so that of two who change it at once neither undoes what the other did."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise EdgeFileInvalid(path, f"it cannot be written: {error.strerror}") from error


def _write_api_keys(path: Path, keys: tuple[ApiKey, ...]) -> None:
    write_atomically(path, _ApiKeys(keys=keys).model_dump_json(indent=2).encode() + b"\n", mode=0o600)


def read_jwks(path: Path) -> str:
    """The issuer's public keys (RFC 7517), as their file has them. Raises EdgeFileInvalid."""
    text = read_text(path)
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError):
        keys = None
    if not isinstance(keys, list) or not keys:
        raise EdgeFileInvalid(path, 'wanted is a JSON Web Key Set, {"keys": [...]} with at least one key')
    for number, key in enumerate(keys):
        try:
            _check_public(key)
        except (KeyError, TypeError, AttributeError, binascii.Error):
            raise EdgeFileInvalid(path, f"keys.{number} is not a public key of type RSA, EC or OKP") from None
        except ValueError as error:
            raise EdgeFileInvalid(path, f"keys.{number}: {error}") from None
    return text


def _check_public(key: dict[str, Any]) -> None:
    """Raise unless this is a key that only verifies, and one that Envoy can use."""
    if "d" in key or key["kty"] == "oct":
        raise ValueError("it can sign tokens; wanted is the public part of a key pair")
    if key["kty"] == "RSA":
        public = rsa.RSAPublicNumbers(_number(key["e"]), _number(key["n"])).public_key()
        if public.key_size < _SMALLEST_RSA_BITS:
            raise ValueError(f"an RSA key needs {_SMALLEST_RSA_BITS} bits; found {public.key_size}")
    elif key["kty"] == "EC":
        ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), _CURVES[key["crv"]]).public_key()
    elif key["kty"] == "OKP" and key["crv"] == "Ed25519":
        ed25519.Ed25519PublicKey.from_public_bytes(_decoded(key["x"]))
    else:
        raise TypeError


def _number(text: str) -> int:
    return int.from_bytes(_decoded(text))


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode() + b"==")


# What Envoy is told.


def chain(directory: Path, *, takes_tokens: bool) -> tuple[Config, ...]:
    """The filters before all others: tokens are verified, `auth.lua` decides, and only what it has marked goes on.

    The first two are files in `directory` that Envoy watches.
    """
    mark = {
        "metadata_source": "DYNAMIC",
        "metadata_matcher": {"filter": LUA_FILTER, "path": [{"key": "passed"}], "value": {"bool_match": True}},
    }
    marked = {"permissions": [{"any": True}], "principals": [{"sourced_metadata": mark}]}
    return (
        *([_discovered(TOKEN_FILTER, _JWT, tokens_file(directory))] if takes_tokens else []),
        _discovered(LUA_FILTER, _LUA, decisions_file(directory)),
        typed(_MARK_FILTER, "http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"marked": marked}}),
    )


def tokens_file(directory: Path) -> Path:
    return directory / "tokens.json"


def decisions_file(directory: Path) -> Path:
    return directory / "decisions.json"


def tokens(issuer: Issuer) -> Config:
    """The file of the filter that verifies tokens. Raises EdgeFileInvalid."""
    provider = {
        "issuer": issuer.issuer,
        "audiences": [issuer.audience],
        "local_jwks": {"inline_string": read_jwks(issuer.jwks)},
        # Named, because the default also takes a token from the query, which logs keep.
        "from_headers": [{"name": "authorization", "value_prefix": f"{scheme} "} for scheme in ("Bearer", "bearer")],
        "forward": True,  # auth.lua still has to see that there was one, and removes it
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW_SECONDS,
        "payload_in_metadata": "claims",
        "failed_status_in_metadata": "failed",
        "jwt_cache_config": {"jwt_cache_size": 1000},
    }
    # Nothing is refused here: an API key may have been sent instead, and auth.lua has the words.
    requires = {"requires_any": {"requirements": [{"provider_name": "issuer"}, {"allow_missing_or_failed": {}}]}}
    rules = [{"match": {"prefix": "/"}, "requires": requires}]
    return _extension(TOKEN_FILTER, _JWT, providers={"issuer": provider}, rules=rules)


def decisions(api_keys: Path | None, *, takes_tokens: bool, forwards: bool) -> Config:
    """The file of the filter that decides; whether other nodes are told the credentials. Raises EdgeFileInvalid."""
    keys = read_api_keys(api_keys) if api_keys is not None else ()
    ways = ["an API key in x-api-key"] if api_keys is not None else []
    ways += ["a token in authorization: Bearer"] if takes_tokens else []
    clients = "".join(f"  {_client(key)},\n" for key in keys)
    head = f'local CLIENTS = {{\n{clients}}}\nlocal USE = "{" or ".join(ways)}"\n'
    head += f"local FORWARDS = {str(forwards).lower()}\n"
    source = head + files("deploy.node").joinpath("auth.lua").read_text()
    return _extension(LUA_FILTER, _LUA, default_source_code={"inline_string": source})


def _client(key: ApiKey) -> str:
    """One line of Lua. Names, scopes and digests are made of characters that mean nothing in it."""
    scopes = ", ".join(f"{scope} = true" for scope in key.scopes)
    words = ", ".join(f"0x{key.sha256[at : at + 8]}" for at in range(0, 64, 8))
    return f'{{name = "{key.name}", scopes = {{{scopes}}}, digest = {{{words}}}}}'


def _discovered(name: str, kind: str, path: Path) -> Config:
    discovery = {"config_source": watched(path), "type_urls": [f"type.googleapis.com/envoy.extensions.filters.{kind}"]}
    return {"name": name, "config_discovery": discovery}


def _extension(name: str, kind: str, **fields: object) -> Config:
    return watched_file(
        [{"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", **typed(name, kind, **fields)}]
    )
