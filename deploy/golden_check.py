"""Whether versions in service answer their golden sets as they did at registration, asked as clients ask.

A node replays the golden set when it loads a version; this asks through everything that stands before it, and the
answer must name the version. `helm test` runs it.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import numpy.typing as npt

from deploy.errors import GoldenFailed
from deploy.node.golden import GoldenSet, compare
from deploy.planning.requests import golden_requests
from handlers.captured import CapturedRequest
from handlers.protocol import oip_json
from handlers.protocol.messages import SERVICE, ModelInferRequest, ModelInferResponse
from handlers.tensors import from_raw, to_raw
from model_store.archive import archive_name, file_digest, read_member
from model_store.errors import ArchiveMissing, ArchiveRefused

WITHIN_SECONDS = 60.0
"""For one answer."""
_SHOWN_CHARACTERS = 300
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Outputs = Mapping[str, npt.NDArray[np.float64]]
"""Of one row."""


@dataclass(frozen=True)
class Served:
    """What is asked for its golden set."""

    model: str
    version: int
    digest: str


@dataclass(frozen=True)
class Service:
    """Where it is asked, and as whom."""

    url: str
    certificate: Path | None
    """It, or whoever has signed it, is trusted and nothing else; None: whom this machine trusts."""
    server_name: str | None
    """What the certificate must be for; None: the host of the URL."""
    headers: Mapping[str, str]

    @property
    def is_encrypted(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    @property
    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.is_encrypted else 80)

    def connection(self) -> HTTPConnection:
        """Connected, and encrypted where it must be. Raises OSError."""
        connection = HTTPConnection(*self._address, timeout=WITHIN_SECONDS)
        connection.connect()
        if self.is_encrypted:
            context = ssl.create_default_context(cafile=self.certificate)
            # The certificate may be trusted by itself, without whoever has signed it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            name = self.server_name or self._address[0]
            connection.sock = context.wrap_socket(connection.sock, server_hostname=name)
        return connection

    def channel(self) -> grpc.Channel:
        target = "{}:{}".format(*self._address)
        if not self.is_encrypted:
            return grpc.insecure_channel(target, options=_UNLIMITED)
        name = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        roots = self.certificate.read_bytes() if self.certificate else None
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options=[*_UNLIMITED, *name])


def check(archives_dir: Path, served: Served, service: Service) -> Iterator[tuple[str, str]]:
    """Each protocol, and in which way its answers are wrong: empty where they are right.

    Raises ArchiveMissing, ArchiveRefused where the golden set cannot be had, GoldenFailed where it is none.
    """
    text = _golden_json(archives_dir, served)
    golden, requests = GoldenSet.from_json(text), golden_requests(text, served.version)
    protocols: dict[str, Callable[[Served, Service, Sequence[CapturedRequest]], list[Outputs]]] = {
        "HTTP": _over_http,
        "gRPC": _over_grpc,
    }
    for protocol, ask in protocols.items():
        try:
            answers = ask(served, service, requests)
            names = [name for name, _ in golden.outputs]
            compare(golden, {name: np.concatenate([one.get(name, np.empty(0)) for one in answers]) for name in names})
        except GoldenFailed as error:
            yield protocol, str(error)
        else:
            yield protocol, ""


def _golden_json(archives_dir: Path, served: Served) -> bytes:
    archive = archives_dir / archive_name(served.model, served.version, served.digest)
    if not archive.is_file():
        raise ArchiveMissing(archive)
    if (found := file_digest(archive)) != served.digest:
        raise ArchiveRefused(archive, "it has another digest", served.digest, found)
    return read_member(archive, "golden.json")


def _over_http(served: Served, service: Service, requests: Sequence[CapturedRequest]) -> list[Outputs]:
    path = f"/v2/models/{served.model}/versions/{served.version}/infer"
    found: list[Outputs] = []
    for row, request in enumerate(requests):
        headers = {**service.headers, "content-type": "application/octet-stream"}
        headers[oip_json.HEADER_LENGTH] = str(request.header_length)
        try:
            with closing(service.connection()) as connection:
                connection.request("POST", path, request.body, headers)
                response = connection.getresponse()
                answer = response.read()
        except (OSError, HTTPException) as error:
            raise GoldenFailed(f"row {row}: no answer from {service.url}: {error!r}") from error
        if response.status != 200:
            raise GoldenFailed(f"row {row}: answered {response.status}: {_shown(answer)}")
        _check_who(row, served, dict(response.getheaders()))
        outputs = oip_json.parse_object(memoryview(answer)).get("outputs", [])
        found.append({one["name"]: _numbers(one["data"]) for one in outputs if one["datatype"] != "BYTES"})
    return found


def _over_grpc(served: Served, service: Service, requests: Sequence[CapturedRequest]) -> list[Outputs]:
    metadata = tuple((name.lower(), value) for name, value in service.headers.items())
    found: list[Outputs] = []
    with service.channel() as channel:
        infer = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )
        for row, request in enumerate(requests):
            try:
                answer, call = infer.with_call(_message(served, request), metadata=metadata, timeout=WITHIN_SECONDS)
            except grpc.RpcError as error:
                raise GoldenFailed(f"row {row}: answered {error.code().name}: {error.details()}") from error
            _check_who(row, served, {name: str(value) for name, value in call.initial_metadata()})
            found.append(
                {
                    one.name: _numbers(from_raw(one.name, one.datatype, tuple(one.shape), memoryview(raw)).values)
                    for one, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
                    if one.datatype != "BYTES"
                }
            )
    return found


def _message(served: Served, request: CapturedRequest) -> ModelInferRequest:
    inputs = oip_json.decode(memoryview(request.body), str(request.header_length)).inputs
    message = ModelInferRequest(model_name=served.model, model_version=str(served.version))
    for tensor in inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(to_raw(tensor))
    return message


def _check_who(row: int, served: Served, headers: Mapping[str, str]) -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    for header, want in (("x-shipway-version", str(served.version)), ("x-shipway-digest", served.digest)):
        if lower.get(header) != want:
            raise GoldenFailed(f"row {row}: answered by another: {header} is {lower.get(header)}; expected {want}")


def _numbers(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64).ravel()


def _shown(answer: bytes) -> str:
    return answer[:_SHOWN_CHARACTERS].decode(errors="replace").strip()
