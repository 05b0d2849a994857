"""Envoy's configuration: a bootstrap that never changes, and two files that Envoy watches, clusters and routes.

One cluster per version, named MODEL/VERSION; statistics and access log carry that name. The order of changes keeps
every request answered: a cluster exists before a route names it and goes after the last route has let go of it.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.layout import Layout
from handlers.answer import CONTENT_TYPE_HEADER, GRPC, HTTP, PROTOCOL_HEADER, REPLAY_HEADER, ROWS, START_HEADER
from handlers.protocol.messages import SERVICE

Config = dict[str, Any]

CONTROL_CLUSTER = "control"
EDGE = "edge"
"""Name of the listener, its routes and its statistics."""

_GRPC_ROUTE, _GRPC_ERRORS = "shipway.grpc_route", "shipway.grpc_errors"
_BRIDGE = "envoy.filters.http.grpc_http1_reverse_bridge"
_BUFFER, _ROUTER = "envoy.filters.http.buffer", "envoy.filters.http.router"
_FRAME_BYTES = 5  # before each gRPC message
_PREDICTION_ID = "x-shipway-prediction-id"

# Never passed on from a client: our own headers, and those that make TorchServe mix explanations into a batch.
_CLIENT_HEADERS_REMOVED = (
    *(PROTOCOL_HEADER, CONTENT_TYPE_HEADER, START_HEADER, REPLAY_HEADER, _PREDICTION_ID),
    *("explain", "describe", "accept", "accept-encoding", "x-forwarded-proto"),
)


@dataclass(frozen=True)
class Edge:
    """What the edge is told at start."""

    host: str
    port: int
    max_body_bytes: int
    timeout_seconds: float
    access_log: Path
    threads: int


def bootstrap(edge: Edge, layout: Layout) -> Config:
    """The static part: admin socket, listener, filters, and the cluster that is the launcher."""
    return {
        "admin": {"address": {"pipe": {"path": str(layout.admin_socket), "mode": 0o600}}},
        "node": {"id": "shipway", "cluster": "shipway"},
        "dynamic_resources": {"cds_config": _watched(layout.clusters_file)},
        "static_resources": {
            "listeners": [_listener(edge, layout)],
            "clusters": [_cluster(CONTROL_CLUSTER, layout.control_socket, max_requests=64)],
        },
    }


def cluster_name(model: str, version: int) -> str:
    return f"{model}/{version}"


def clusters(versions: Iterable[tuple[str, int]], layout: Layout) -> Config:
    """The file of clusters: one for each version that TorchServe has ready."""
    return _resources(
        [
            {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                **_cluster(
                    cluster_name(model, version),
                    layout.inference_socket,
                    max_requests=4096,
                    filters=[_lua("shipway.version", "version.lua", {"PATH": f"/predictions/{model}/{version}"})],
                ),
            }
            for model, version in versions
        ]
    )


def routes(endpoints: Sequence[DesiredEndpoint], edge: Edge, token: str) -> Config:
    """The file of routes. Every version named here must have its cluster. `token` opens TorchServe's inference API."""
    virtual_host = {
        "name": EDGE,
        "domains": ["*"],
        "routes": [
            *(route for endpoint in endpoints for route in _endpoint_routes(endpoint, edge, token)),
            *_control_routes(edge),
        ],
    }
    return _resources(
        [
            {
                "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                "name": EDGE,
                "virtual_hosts": [virtual_host],
            }
        ]
    )


def to_json(config: Config) -> bytes:
    return json.dumps(config, indent=1).encode()


def _resources(resources: list[Config]) -> Config:
    """A watched file; its version is its content's hash, which Envoy's configuration dump repeats once it is active."""
    return {"version_info": hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:16], "resources": resources}


def _watched(path: Path) -> Config:
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}


def _endpoint_routes(endpoint: DesiredEndpoint, edge: Edge, token: str) -> list[Config]:
    """All ways to ask one model: three protocols, each for the weighted versions and for each version by itself."""
    split = _split(endpoint)
    found = []
    for protocol in (HTTP, ROWS, GRPC):
        for version in endpoint.versions:
            pinned = {"cluster": cluster_name(endpoint.model, version.version)}
            answer = _provenance(endpoint.model, version)
            found.append(
                _predict(_match(protocol, endpoint.model, version.version), pinned, protocol, edge, token, answer)
            )
        found.append(_predict(_match(protocol, endpoint.model, None), split, protocol, edge, token, []))
    return found


def _split(endpoint: DesiredEndpoint) -> Config:
    weighted = [
        {
            "name": cluster_name(endpoint.model, version.version),
            "weight": version.weight,
            "response_headers_to_add": _provenance(endpoint.model, version),
        }
        for version in endpoint.versions
        if version.weight > 0
    ]
    return {"weighted_clusters": {"clusters": weighted}}


def _match(protocol: str, model: str, version: int | None) -> Config:
    if protocol == GRPC:
        pinned = {"present_match": False} if version is None else {"string_match": {"exact": str(version)}}
        headers = [
            {"name": "x-shipway-model", "string_match": {"exact": model}},
            {"name": "x-shipway-version", **pinned},
        ]
        return {"path": f"/{SERVICE}/ModelInfer", "headers": headers}
    if protocol == ROWS:
        path = f"/predictions/{model}" + ("" if version is None else f"/{version}")
    else:
        path = f"/v2/models/{model}" + ("" if version is None else f"/versions/{version}") + "/infer"
    return {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "POST"}}]}


def _predict(match: Config, target: Config, protocol: str, edge: Edge, token: str, answer: list[Config]) -> Config:
    return {
        "match": match,
        "route": {
            **target,
            "timeout": f"{edge.timeout_seconds}s",
            # A prediction is pure, and TorchServe resets only what it has not begun: it hangs up after its own errors.
            "retry_policy": {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 1},
        },
        # On the route itself: the virtual host's removals come after a route's additions.
        "request_headers_to_remove": list(_CLIENT_HEADERS_REMOVED),
        "request_headers_to_add": [
            _set(PROTOCOL_HEADER, protocol),
            _set(CONTENT_TYPE_HEADER, "%REQ(content-type)%"),
            # TorchServe parses some content types itself, and the worker others; this one they leave alone.
            _set("content-type", "application/octet-stream"),
            _set(START_HEADER, "%START_TIME(%s.%6f)%"),
            _set(_PREDICTION_ID, "%UNIQUE_ID%"),
            _set("authorization", f"Bearer {token}"),
        ],
        "response_headers_to_add": [*answer, _set(_PREDICTION_ID, f"%REQ({_PREDICTION_ID})%")],
        **({} if protocol == GRPC else _without_grpc(edge)),
    }


def _provenance(model: str, version: DesiredVersion) -> list[Config]:
    return [
        _set("x-shipway-model", model),
        _set("x-shipway-version", str(version.version)),
        _set("x-shipway-digest", version.digest),
    ]


def _control_routes(edge: Edge) -> list[Config]:
    """What the launcher answers: health, metadata, and words for whatever names no model or version of this node."""
    control = {"cluster": CONTROL_CLUSTER, "timeout": "5s"}
    http_prefixes = ("/v2", "/predictions/", "/explanations/")
    refusal = {
        "status": 404,
        "body": {"inline_string": "no such path; this node serves /v2 (Open Inference Protocol) and /predictions/NAME"},
    }
    return [
        {"match": {"prefix": f"/{SERVICE}/"}, "route": control},
        *({"match": {"prefix": prefix}, "route": control, **_without_grpc(edge)} for prefix in http_prefixes),
        # Twice: the bridge changes the content type and has the route chosen again.
        {"match": {"prefix": "/", "grpc": {}}, "route": control},
        {"match": {"prefix": "/", "headers": [_over_grpc()]}, "route": control},
        {"match": {"prefix": "/"}, "direct_response": refusal, **_without_grpc(edge)},
    ]


def _without_grpc(edge: Edge) -> Config:
    """Per-route switches that take the gRPC filters, and the room for gRPC's frame, out of an HTTP request's way."""
    lua_off = {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute", "disabled": True}
    bridge = "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfigPerRoute"
    return {
        "typed_per_filter_config": {
            _GRPC_ROUTE: lua_off,
            _GRPC_ERRORS: lua_off,
            _BRIDGE: {"@type": f"type.googleapis.com/{bridge}", "disabled": True},
            _BUFFER: {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
                "buffer": {"max_request_bytes": edge.max_body_bytes},
            },
        }
    }


def _set(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _cluster(name: str, socket: Path, max_requests: int, filters: Sequence[Config] = ()) -> Config:
    """HTTP/1.1 over a unix socket."""
    codec = _typed("envoy.filters.http.upstream_codec", "http.upstream_codec.v3.UpstreamCodec")
    protocol: Config = {"explicit_http_config": {"http_protocol_options": {}}}
    if filters:
        protocol["http_filters"] = [*filters, codec]
    address = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    limits = {"max_connections": max_requests, "max_pending_requests": max_requests, "max_requests": max_requests}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{**limits, "max_retries": max_requests}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [address]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                **protocol,
            }
        },
    }


def _listener(edge: Edge, layout: Layout) -> Config:
    manager = {
        "@type": (
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": EDGE,
        "codec_type": "AUTO",
        "rds": {"route_config_name": EDGE, "config_source": _watched(layout.routes_file)},
        "http_filters": _filters(edge),
        "local_reply_config": _local_replies(edge),
        "access_log": [_access_log(edge.access_log)],
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "use_remote_address": True,
        # Nobody is internal: a client's x-envoy-* headers (its own timeouts, retries) are dropped.
        "internal_address_config": {"cidr_ranges": []},
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_name": "shipway",
        "request_headers_timeout": "10s",
        "request_timeout": f"{edge.timeout_seconds}s",
        "stream_idle_timeout": f"{edge.timeout_seconds}s",
        # From the first GOAWAY, which names no stream, to the last, after which the client has stopped opening any.
        "drain_timeout": "1s",
        "http2_protocol_options": {"max_concurrent_streams": 1024},
    }
    return {
        "name": EDGE,
        "address": {"socket_address": {"address": edge.host, "port_value": edge.port}},
        "per_connection_buffer_limit_bytes": edge.max_body_bytes + _FRAME_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _filters(edge: Edge) -> list[Config]:
    bridge = {"content_type": "application/x-protobuf", "withhold_grpc_frames": True}
    return [
        _lua(_GRPC_ROUTE, "grpc_route.lua"),
        _typed(_BUFFER, "http.buffer.v3.Buffer", max_request_bytes=edge.max_body_bytes + _FRAME_BYTES),
        _typed(_BRIDGE, "http.grpc_http1_reverse_bridge.v3.FilterConfig", **bridge),
        _lua(_GRPC_ERRORS, "grpc_errors.lua"),
        _typed(_ROUTER, "http.router.v3.Router", suppress_envoy_headers=True),
    ]


def _typed(name: str, kind: str, **fields: object) -> Config:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.filters.{kind}", **fields}}


def _lua(name: str, file: str, values: Mapping[str, str] | None = None) -> Config:
    source = files("deploy.node").joinpath(file).read_text()
    source = re.sub(r"@([A-Z]+)@", lambda match: (values or {})[match[1]], source)
    return _typed(name, "http.lua.v3.Lua", default_source_code={"inline_string": source})


def _local_replies(edge: Edge) -> Config:
    """Envoy's own answers in our words: JSON for HTTP, and for gRPC the right status with the words as its message."""
    body = f"the request body is larger than {edge.max_body_bytes} bytes, the most that this node takes"
    too_large: Config = {"status_code_filter": {"comparison": {"op": "EQ", "value": _runtime_value(413)}}}
    cases: list[tuple[Config, int, str]] = [
        (too_large, 8, body),
        (_flags("UT"), 4, f"no answer within {edge.timeout_seconds:g} s, the node's limit for one request"),
        (_flags("UF", "UC", "UH", "UO", "URX"), 14, "the model's workers cannot be reached; try again"),
    ]
    mappers = []
    for condition, grpc_status, words in cases:
        over_grpc = {
            "and_filter": {
                "filters": [
                    condition,
                    {"header_filter": {"header": _over_grpc()}},
                ]
            }
        }
        mappers.append(
            {
                "filter": over_grpc,
                "body_format_override": {"text_format_source": {"inline_string": words}},
                "headers_to_add": [_set("grpc-status", str(grpc_status))],
            }
        )
        mappers.append({"filter": condition, "body_format_override": {"json_format": {"error": words}}})
    plain = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    mappers.append({"filter": {"header_filter": {"header": _over_grpc()}}, "body_format_override": plain})
    return {"mappers": mappers, "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}


def _over_grpc() -> Config:
    """Matches what grpc_route.lua has marked."""
    return {"name": PROTOCOL_HEADER, "string_match": {"exact": GRPC}}


def _flags(*flags: str) -> Config:
    return {"response_flag_filter": {"flags": list(flags)}}


def _runtime_value(value: int) -> Config:
    return {"default_value": value, "runtime_key": "shipway.unused"}


def _access_log(path: Path) -> Config:
    return {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
                    "http": "%PROTOCOL%",
                    "protocol": f"%REQ({PROTOCOL_HEADER})%",
                    "status": "%RESPONSE_CODE%",
                    "grpc_status": "%GRPC_STATUS_NUMBER%",
                    "flags": "%RESPONSE_FLAGS%",
                    "version": "%UPSTREAM_CLUSTER%",
                    "duration_ms": "%DURATION%",
                    "received_bytes": "%BYTES_RECEIVED%",
                    "sent_bytes": "%BYTES_SENT%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    "prediction_id": f"%REQ({_PREDICTION_ID})%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                }
            },
        },
    }
