"""What the launcher answers itself: health, metadata, metrics, feedback, and words for what is not served.

Two servers: one behind Envoy on a unix socket, which speaks for the model names, and one on the node's own port for
those who watch it.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as package_version
from importlib.resources import files
from typing import Any, Protocol

import yaml
from aiohttp import web
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from deploy.errors import StoreUnavailable
from deploy.node import labels
from deploy.node.desired import Actual
from deploy.node.reconcile import Loaded, describe
from deploy.node.routes import FEEDBACK
from handlers.answer import GRPC_MESSAGE_HEADER, GRPC_STATUS_HEADER, grpc_message
from handlers.errors import InvalidRequest, UnsupportedContentType, shown
from handlers.protocol import messages

logger = logging.getLogger(__name__)

JSON, PROTOBUF = "application/json", "application/x-protobuf"
EXTENSIONS = ("binary_tensor_data",)
_ASKED = re.compile(
    r"/(?P<plain>predictions|explanations)/(?P<model>[^/]+)(/(?P<version>[^/]+))?/?"
    r"|/v2/models/(?P<name>[^/]+)(/versions/(?P<number>[^/]+))?/(?P<oip>infer|explain)/?"
)
"""The paths that routes take for the models in service."""
_OK, _INVALID, _NOT_FOUND, _UNIMPLEMENTED = 0, 3, 5, 12


class NodeView(Protocol):
    """What the control answers are made of."""

    def actual(self) -> Actual: ...

    def versions(self, model: str) -> dict[int, Loaded]:
        """Versions of `model` that are routed, the one with most weight first."""

    def models(self) -> dict[str, list[int]]: ...

    async def label(self, labels: Sequence[labels.Label | labels.Result]) -> list[labels.Result]:
        """What became of each. Raises StoreUnavailable."""


def watch_app(view: NodeView, metrics: Callable[[], Awaitable[bytes]]) -> web.Application:
    """/livez, /readyz, /actual and /metrics on the node's own port."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def readyz(_: web.Request) -> web.Response:
        actual = view.actual()
        lines = ["ready" if actual.ready else actual.reason, *(f"warning: {each}" for each in actual.warnings)]
        return web.Response(text="\n".join(lines) + "\n", status=200 if actual.ready else 503)

    async def actual(_: web.Request) -> web.Response:
        return web.Response(text=view.actual().model_dump_json(), content_type=JSON)

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/actual", actual)
    app.router.add_get("/metrics", scrape)
    return app


def protocol_app(view: NodeView, max_body_bytes: int) -> web.Application:
    """The Open Inference Protocol's health and metadata, over HTTP and over gRPC as Envoy's bridge writes it."""
    http, grpc = _Http(view), _Grpc(view)
    app = web.Application(client_max_size=max_body_bytes + 4096)
    told: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
        "/v2": http.server,
        "/v2/health/live": http.live,
        "/v2/health/ready": http.ready,
        "/v2/openapi.json": http.openapi,
        "/v2/proto": http.proto,
    }
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        told |= {prefix: http.metadata, f"{prefix}/ready": http.model_ready}
    for path, handler in told.items():
        app.router.add_get(path, handler)
        app.router.add_route("*", path, http.only_get)
    app.router.add_post(FEEDBACK, http.feedback)
    app.router.add_route("*", FEEDBACK, http.only_post)
    for service in (messages.SERVICE, messages.HEALTH_SERVICE):
        app.router.add_post(f"/{service}/{{method}}", grpc.call)
    app.router.add_route("*", "/{path:.*}", http.refuse)
    return app


def unknown(view: NodeView, model: str, version: str) -> str:
    """Words for a model or version that is not in service."""
    served = view.models()
    if version in map(str, served.get(model, ())):
        return f"version {shown(version)} of model {shown(model)} is on other nodes: here it answers predictions alone"
    if model in served:
        versions = ", ".join(map(str, served[model]))
        return f"version {shown(version)} of model {shown(model)} is not served here; served: {versions}"
    return f"model {shown(model)} is not served here; served: {', '.join(sorted(served)) or 'none yet'}"


def unexplained(view: NodeView, model: str, version: str) -> tuple[int, str] | None:
    """Status and words where a version in service cannot be explained now."""
    explainer = next((e.explainer for e in view.actual().endpoints if e.model == model), None)
    if explainer is None:
        return 404, f"model {shown(model)} has no explainer here"
    if version not in ("", str(explainer.version)):
        return 404, f"version {version} of model {shown(model)} has no explainer here; version {explainer.version} has"
    if explainer.state != "READY":
        return 503, f"the explainer of model {shown(model)} version {explainer.version} is {explainer.state}"
    return None


class _Http:
    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._openapi = openapi()
        self._proto = files("handlers.protocol").joinpath(messages.PROTO).read_text()

    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(self._openapi)

    async def proto(self, _: web.Request) -> web.Response:
        return web.Response(text=self._proto)

    async def server(self, _: web.Request) -> web.Response:
        return web.json_response(_server())

    async def live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(self, _: web.Request) -> web.Response:
        ready = self._view.actual().ready
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def metadata(self, request: web.Request) -> web.Response:
        loaded = self._find(request)
        return web.json_response(_metadata(self._view, loaded)) if loaded else self._not_found(request)

    async def model_ready(self, request: web.Request) -> web.Response:
        loaded = self._find(request)
        if loaded is None:
            return self._not_found(request)
        ready = loaded.state == "READY"
        return web.json_response({"name": loaded.model, "ready": ready}, status=200 if ready else 503)

    async def only_get(self, request: web.Request) -> web.Response:
        return _not_allowed(request, "GET")

    async def feedback(self, request: web.Request) -> web.Response:
        if request.query_string:
            return _no_query(request)
        # A body without a type is taken for what is read here, as it is for predictions.
        if request.headers.get("content-type") and request.content_type != JSON:
            return _error(415, str(UnsupportedContentType(request.content_type, (JSON,))))
        try:
            results = await self._view.label(labels.read(await request.read()))
        except labels.TooManyLabels as error:
            return _error(413, str(error))
        except InvalidRequest as error:
            return _error(400, str(error))
        except StoreUnavailable as error:
            return _error(503, str(error))
        return web.json_response(labels.answer(results))

    async def only_post(self, request: web.Request) -> web.Response:
        return _not_allowed(request, "POST")

    async def refuse(self, request: web.Request) -> web.Response:
        """A path of ours that no route took: another model or version, another method, or nothing at all."""
        if request.query_string:
            return _no_query(request)
        if request.content_type == PROTOBUF:
            services = f"{messages.SERVICE} and {messages.HEALTH_SERVICE}"
            return _grpc_error(_UNIMPLEMENTED, f"no such service; there are {services}")
        named = _ASKED.fullmatch(request.path)
        if named is None:
            return _error(404, f"no such path: {request.path}")
        model, version = named["model"] or named["name"], named["version"] or named["number"] or ""
        if _select(self._view, model, version) is None:
            return _error(404, unknown(self._view, model, version))
        if (named["plain"] or named["oip"]).startswith("expl") and (refusal := unexplained(self._view, model, version)):
            return _error(*refusal)
        return _not_allowed(request, "POST")

    def _find(self, request: web.Request) -> Loaded | None:
        return _select(self._view, request.match_info["model"], request.match_info.get("version", ""))

    def _not_found(self, request: web.Request) -> web.Response:
        return _error(404, unknown(self._view, request.match_info["model"], request.match_info.get("version", "")))


class _Grpc:
    """Unary calls out of their gRPC frame: protobuf in, protobuf out, the status in headers that the edge reads."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        oip, health = messages.SERVICE, messages.HEALTH_SERVICE
        self._methods: dict[str, Callable[[bytes], web.Response]] = {
            f"{oip}/ServerLive": lambda _: _protobuf(messages.ServerLiveResponse(live=True)),
            f"{oip}/ServerReady": lambda _: _protobuf(messages.ServerReadyResponse(ready=view.actual().ready)),
            f"{oip}/ServerMetadata": lambda _: _protobuf(ParseDict(_server(), messages.ServerMetadataResponse())),
            f"{oip}/ModelReady": self._model_ready,
            f"{oip}/ModelMetadata": self._model_metadata,
            f"{oip}/ModelInfer": self._infer,
            f"{health}/Check": self._check,
        }

    async def call(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/")
        method = self._methods.get(path)
        if method is None:
            return _grpc_error(_UNIMPLEMENTED, f"no such method; there are {', '.join(self._methods)}")
        try:
            return method(await request.read())
        except DecodeError:
            return _grpc_error(_INVALID, f"body: not the request message of {path}")

    def _check(self, body: bytes) -> web.Response:
        """The health check that is gRPC's own, of the node as a whole or of one model."""
        service = messages.HealthCheckRequest.FromString(body).service
        if service in ("", messages.SERVICE):
            serving = self._view.actual().ready
        elif loaded := _select(self._view, service, ""):
            serving = loaded.state == "READY"
        else:
            return _grpc_error(_NOT_FOUND, unknown(self._view, service, ""))
        return _protobuf(messages.HealthCheckResponse(status="SERVING" if serving else "NOT_SERVING"))

    def _model_ready(self, body: bytes) -> web.Response:
        asked = messages.ModelReadyRequest.FromString(body)
        loaded = _select(self._view, asked.name, asked.version)
        if loaded is None:
            return _grpc_error(_NOT_FOUND, unknown(self._view, asked.name, asked.version))
        return _protobuf(messages.ModelReadyResponse(ready=loaded.state == "READY"))

    def _model_metadata(self, body: bytes) -> web.Response:
        asked = messages.ModelMetadataRequest.FromString(body)
        loaded = _select(self._view, asked.name, asked.version)
        if loaded is None:
            return _grpc_error(_NOT_FOUND, unknown(self._view, asked.name, asked.version))
        return _protobuf(ParseDict(_metadata(self._view, loaded), messages.ModelMetadataResponse()))

    def _infer(self, body: bytes) -> web.Response:
        """No route took this request: say why not."""
        asked = messages.ModelInferRequest.FromString(body)
        if not asked.model_name:
            return _grpc_error(_INVALID, "model_name: the name of a model is needed")
        if _select(self._view, asked.model_name, asked.model_version) is None:
            return _grpc_error(_NOT_FOUND, unknown(self._view, asked.model_name, asked.model_version))
        return _grpc_error(
            _INVALID, "model_name and model_version must be the first fields of the message: the node routes by them"
        )


def _select(view: NodeView, model: str, version: str) -> Loaded | None:
    versions = view.versions(model)
    if not version:
        return next(iter(versions.values()), None)
    # Compared as text, as the routes do it: int() also takes "01", and raises for thousands of digits.
    return next((loaded for number, loaded in versions.items() if str(number) == version), None)


def openapi() -> dict[str, Any]:
    """The description of the HTTP surface, as OpenAPI 3.1."""
    document: dict[str, Any] = yaml.safe_load(files("deploy.node").joinpath("openapi.yaml").read_text())
    document["info"]["version"] = package_version("shipway")
    return document


def _server() -> dict[str, Any]:
    return {"name": "shipway", "version": package_version("shipway"), "extensions": list(EXTENSIONS)}


def _metadata(view: NodeView, loaded: Loaded) -> dict[str, Any]:
    return {**describe(loaded), "versions": [str(version) for version in view.models()[loaded.model]]}


def _error(status: int, words: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": words}, status=status, headers=headers)


def _no_query(request: web.Request) -> web.Response:
    return _error(400, f"query: nothing here takes one; found {shown(request.query_string)}")


def _not_allowed(request: web.Request, method: str) -> web.Response:
    return _error(405, f"{request.method} is not allowed here; allowed: {method}", {"allow": method})


def _protobuf(message: Any) -> web.Response:
    return web.Response(body=message.SerializeToString(), content_type=PROTOBUF)


def _grpc_error(status: int, words: str) -> web.Response:
    headers = {GRPC_STATUS_HEADER: str(status), GRPC_MESSAGE_HEADER: grpc_message(words)}
    return web.Response(body=b"", content_type=PROTOBUF, headers=headers)
