"""TLS and authentication of one node: the user's files are checked and written for Envoy, again whenever one changes.

A file that is replaced by one that is not right leaves what was there before in force. The node says so in its log, in
/readyz and in `shipway status`; only at its start does it refuse to run.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from deploy.errors import EdgeFileInvalid
from deploy.node import auth, tls
from deploy.node.admin import Admin
from deploy.node.envoy import Config, Guard, to_json
from deploy.node.user_files import identity
from deploy.settings import Settings
from model_store.files import write_atomically

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
ACTIVE_WITHIN_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass
class _Source:
    """Files of the user's, and the one that Envoy gets for them."""

    what: str
    inputs: tuple[Path, ...]
    read: Callable[[], Config]
    target: Path
    in_force: Callable[[], Awaitable[str]]
    """The version of it that Envoy uses; empty while it uses none."""
    required: bool = True
    """Whether Envoy uses one at all times."""
    seen: Sequence[object] = ()
    doubted: Sequence[object] = ()
    written: str = ""
    problem: str = ""

    def identities(self) -> list[tuple[int, int] | None]:
        return [identity(path) for path in self.inputs]

    def write(self, config: Config) -> None:
        write_atomically(self.target, to_json(config), 0o600)
        self.written = config["version_info"]


@dataclass
class Security:
    """`guard` is for Envoy's bootstrap. `publish` is called whenever the problems have changed."""

    guard: Guard
    publish: Callable[[], None]
    _sources: list[_Source] = field(default_factory=list)

    def start(self) -> None:
        """Write Envoy's files for the first time. Raises EdgeFileInvalid."""
        for source in self._sources:
            source.seen = source.identities()
            source.write(source.read())

    async def watch(self) -> None:
        """Hold Envoy's files to the user's, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for source in self._sources:
                before = source.problem
                await self._look(source)
                if source.problem != before:
                    self.publish()

    def problems(self) -> tuple[str, ...]:
        """What of the user's files is not in force, and why."""
        return tuple(source.problem for source in self._sources if source.problem)

    async def _look(self, source: _Source) -> None:
        now = source.identities()
        if now == source.seen:
            return
        try:
            config = await asyncio.to_thread(source.read)
            source.write(config)
        except EdgeFileInvalid as error:
            if now != source.doubted:
                source.doubted = now  # it may be half written, or one half of a pair: look again
                return
            source.seen = now
            source.problem = f"{source.what} that was there before stays in force: {error}"
            logger.error("%s", source.problem)
        except OSError as error:  # a full disk, say: tried again until it works
            source.problem = f"{source.what} that was there before stays in force: {error}"
            logger.error("%s", source.problem)
        else:
            source.seen = now
            taken = await self._taken(source)
            source.problem = "" if taken else f"Envoy did not take {source.what}; logs/envoy.log says why"
            if taken:
                logger.info("%s of %s is in force", source.what, ", ".join(map(str, source.inputs)))
            else:
                logger.error("%s", source.problem)

    async def _taken(self, source: _Source) -> bool:
        deadline = time.monotonic() + ACTIVE_WITHIN_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # Envoy is too busy to say
                found = await source.in_force()
                if found == source.written or not (found or source.required):
                    return True
            await asyncio.sleep(_POLL_SECONDS)
        return False


def security(settings: Settings, directory: Path, admin: Admin, publish: Callable[[], None]) -> Security:
    """What these settings ask for. Envoy's files go into `directory`."""
    sources, forwards = [], settings.routing_dir is not None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        certificate, key = settings.tls_certificate, settings.tls_key
        sources.append(
            _Source(
                what="the TLS certificate",
                inputs=(certificate, key),
                read=lambda: tls.pair(certificate, key),
                target=tls.secret_file(directory),
                in_force=admin.active_secret,
            )
        )
        if forwards:
            sources.append(
                _Source(
                    what="the certificate of other nodes",
                    inputs=(certificate, tls.authority(certificate)),
                    read=tls.Trust(certificate).read,
                    target=tls.trust_file(directory),
                    in_force=admin.active_trust,
                    required=False,
                )
            )
    issuer = _issuer(settings)
    if issuer is not None:
        sources.append(
            _Source(
                what="the issuer's key set",
                inputs=(issuer.jwks,),
                read=lambda: auth.tokens(issuer),
                target=auth.tokens_file(directory),
                in_force=lambda: admin.active_filter(auth.TOKEN_FILTER),
            )
        )
    if settings.authenticates:
        api_keys = settings.api_keys
        sources.append(
            _Source(
                what="the list of API keys",
                inputs=() if api_keys is None else (api_keys,),
                read=lambda: auth.decisions(api_keys, takes_tokens=issuer is not None, forwards=forwards),
                target=auth.decisions_file(directory),
                in_force=lambda: admin.active_filter(auth.LUA_FILTER),
            )
        )
    guard = Guard(
        transport_socket=tls.transport_socket(directory) if settings.has_tls else None,
        peer_socket=tls.peer_socket(directory) if settings.has_tls and forwards else None,
        credentials=auth.FORWARDED if settings.authenticates and forwards else {},
        filters=auth.chain(directory, takes_tokens=issuer is not None) if settings.authenticates else (),
        log_fields={"caller": auth.CLIENT_IN_LOG} if settings.authenticates else {},
    )
    return Security(guard, publish, sources)


def _issuer(settings: Settings) -> auth.Issuer | None:
    if settings.jwt_jwks is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        return None
    return auth.Issuer(settings.jwt_jwks, settings.jwt_issuer, settings.jwt_audience)
