"""Envoy's bootstrap, which never changes, and its clusters, a file that Envoy watches. Its routes are in `routes.py`.

One cluster per version, named MODEL/VERSION; statistics and access log carry that name. A version that gets copies of
requests has a second one for them, so that they are never counted as requests of users. The order of changes keeps
every request answered: a cluster exists before a route names it and goes after the last route has let go of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from deploy.node.layout import Layout
from handlers.answer import GRPC
from monitoring.names import LATENCY_BUCKETS_SECONDS

Config = dict[str, Any]

CONTROL_CLUSTER = "control"
EDGE = "edge"
"""Name of the listener, its routes and its statistics."""

GRPC_ROUTE_FILTER, GRPC_ERRORS_FILTER = "shipway.grpc_route", "shipway.grpc_errors"
GRPC_UNPACKED_FILTER = "shipway.grpc_unpacked"
GRPC_UNPACK_FILTER, UNPACK_FILTER, PACK_FILTER = "shipway.grpc_unpack", "shipway.unpack", "shipway.pack"
BRIDGE_FILTER = "envoy.filters.http.grpc_http1_reverse_bridge"
GRPC_BUFFER_FILTER, BUFFER_FILTER, _ROUTER = "shipway.grpc_buffer", "shipway.buffer", "envoy.filters.http.router"
_FRAME_BYTES = 5  # before each gRPC message
_READ_BYTES = 1 << 16
"""What is read of a connection at once, and unpacked at once: to a thousand times as much by what is meant to hurt."""
_GZIP_RATIO = 1032
"""The most that gzip can say with one byte."""
_GRPC_RATIO = 100
"""A packed message is in the memory whole, so it is unpacked to so many times its size at most."""
_GRPC_PACKED_SHARE = 8
"""And it may have this share of the largest body at most."""
_SMALLEST_PACKED_BYTES = 4096
METADATA = "shipway"
"""What a cluster says of its version stands under this name."""
SHADOW, PEER, FALL_BACK = "/shadow", "/peer", "/fall-back"
"""What the name of a cluster ends with that gets copies, or answers other nodes, or what those did not."""
CREDENTIALS = ("authorization", "x-api-key")
"""The headers that have a client's."""
PREDICTION_ID = "x-shipway-prediction-id"

PROTOCOL_HEADER = "x-shipway-protocol"
"""Set by grpc_route.lua on every gRPC call, before anything else can answer it."""


@dataclass(frozen=True)
class Guard:
    """What TLS and authentication put around the edge; nothing where they are off, so that they cost nothing."""

    transport_socket: Config | None = None
    peer_socket: Config | None = None
    """Towards other nodes."""
    credentials: Mapping[str, str] = field(default_factory=dict)
    """Headers with which a client's credentials are told to other nodes; they reach no worker."""
    filters: tuple[Config, ...] = ()
    """Before all others."""
    log_fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """What a node answers other nodes for, and where."""

    port: int
    model: str
    version: int
    digest: str


@dataclass(frozen=True)
class Edge:
    """What the edge is told at start."""

    host: str
    port: int
    max_body_bytes: int
    timeout_seconds: float
    access_log: Path
    threads: int
    guard: Guard = field(default_factory=Guard)
    own: Own | None = None


def bootstrap(edge: Edge, layout: Layout, listeners: Iterable[Config] = ()) -> Config:
    """The static part: admin socket, listeners, filters, and the cluster that is the launcher."""
    return {
        "admin": {"address": {"pipe": {"path": str(layout.admin_socket), "mode": 0o600}}},
        # A scrape sees histograms as they are, not as they were up to five seconds ago.
        "stats_flush_on_admin": True,
        "stats_config": {"histogram_bucket_settings": [_latency_buckets()]},
        "node": {"id": "shipway", "cluster": "shipway"},
        "dynamic_resources": {"cds_config": watched(layout.clusters_file)},
        "static_resources": {
            "listeners": [listener(edge, EDGE, edge.port, _edge_manager(edge, layout)), *listeners],
            "clusters": [_cluster(CONTROL_CLUSTER, [layout.control_socket], max_requests=64)],
        },
    }


def _latency_buckets() -> Config:
    """Envoy's unit is the millisecond."""
    return {"match": {"suffix": ".upstream_rq_time"}, "buckets": [1000 * edge for edge in LATENCY_BUCKETS_SECONDS]}


def cluster_name(model: str, version: int) -> str:
    return f"{model}/{version}"


@dataclass(frozen=True)
class Upstream:
    """One version that is ready."""

    model: str
    version: int
    digest: str
    workers: Sequence[Path]
    """Where its workers listen."""
    queue_size: int
    """How many requests may wait for them."""
    mirrored: bool = False
    """Whether it gets copies of requests."""
    peered: bool = False
    """Whether it answers for other nodes, whose edges count the requests."""
    falls_in: bool = False
    """Whether it answers what another node did not, which was told the client's credentials."""


def clusters(upstreams: Iterable[Upstream], others: Iterable[Config] = ()) -> Config:
    """The file of clusters."""
    return watched_file([*(cluster for upstream in upstreams for cluster in _clusters(upstream)), *others])


def _clusters(upstream: Upstream) -> list[Config]:
    name = cluster_name(upstream.model, upstream.version)
    forget = [{"remove": each} for each in CREDENTIALS]
    forgetting = typed(
        "shipway.forget", "http.header_mutation.v3.HeaderMutation", mutations={"request_mutations": forget}
    )
    more: list[tuple[bool, Config]] = [
        (True, {"name": name}),
        (upstream.mirrored, {"name": f"{name}{SHADOW}"}),
        (upstream.peered, {"name": f"{name}{PEER}"}),
        (
            upstream.falls_in,
            {
                "name": f"{name}{FALL_BACK}",
                "alt_stat_name": name,
                "typed_extension_protocol_options": http1(forgetting),
            },
        ),
    ]
    return [
        {
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            **_cluster(name, upstream.workers, upstream.queue_size),
            **answers(upstream.version, upstream.digest),
            **differing,
        }
        for wanted, differing in more
        if wanted
    ]


def answers(version: int, digest: str) -> Config:
    """A cluster's own word on who it is, for the answers of a route that learns only in the end who answered."""
    return {"metadata": {"filter_metadata": {METADATA: {"version": str(version), "digest": digest}}}}


def to_json(config: Config) -> bytes:
    return json.dumps(config, indent=1).encode()


def watched_file(resources: list[Config]) -> Config:
    """A watched file; its version is its content's hash, which Envoy's configuration dump repeats once it is active."""
    return {"version_info": hashlib.sha256(json.dumps(resources).encode()).hexdigest()[:16], "resources": resources}


def watched(path: Path) -> Config:
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}


def _cluster(name: str, sockets: Sequence[Path], max_requests: int) -> Config:
    """HTTP/1.1 over unix sockets; the one with the fewest open requests is asked."""
    addresses = [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}} for socket in sockets]
    limits = {"max_connections": max_requests, "max_pending_requests": max_requests, "max_requests": max_requests}
    return {
        "name": name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{**limits, "max_retries": max_requests}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": addresses}]},
        "typed_extension_protocol_options": http1(),
    }


def http1(*filters: Config) -> Config:
    """How a cluster is spoken to: over HTTP/1.1, through these filters, which come after the route's."""
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options: Config = {"@type": f"type.googleapis.com/{name}", "explicit_http_config": {"http_protocol_options": {}}}
    if filters:
        codec = typed("envoy.filters.http.upstream_codec", "http.upstream_codec.v3.UpstreamCodec")
        options["http_filters"] = [*filters, codec]
    return {name: options}


def set_header(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _edge_manager(edge: Edge, layout: Layout) -> Config:
    return {
        **manager(edge, EDGE),
        "rds": {"route_config_name": EDGE, "config_source": watched(layout.routes_file)},
        "http_filters": _filters(edge),
        "local_reply_config": _local_replies(edge),
    }


def manager(edge: Edge, name: str) -> Config:
    """What all listeners have in common, but for their routes, filters, and own answers."""
    return {
        "@type": (
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": name,
        "codec_type": "AUTO",
        "access_log": [_access_log(edge)],
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "use_remote_address": True,
        "skip_xff_append": True,
        # Nobody is internal, so a client's x-envoy-* headers (its own timeouts, retries) are dropped. An empty list
        # would mean the default, loopback and private networks; this address belongs to no client.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
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


def listener(edge: Edge, name: str, port: int, manager: Config) -> Config:
    secured = {"transport_socket": edge.guard.transport_socket} if edge.guard.transport_socket else {}
    return {
        "name": name,
        "address": {"socket_address": {"address": edge.host, "port_value": port}},
        "per_connection_buffer_limit_bytes": _READ_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}], **secured}],
    }


def _filters(edge: Edge) -> list[Config]:
    """In the order in which a request meets them. Each costs a twentieth of Envoy's time, so its route says which."""
    bridge = {"content_type": "application/x-protobuf", "withhold_grpc_frames": True}
    limits = f"local MAX_BODY_BYTES, MAX_RATIO = {edge.max_body_bytes}, {_GRPC_RATIO}\n"
    limits += f"local MAX_PACKED_BYTES = {edge.max_body_bytes // _GRPC_PACKED_SHARE}\n"
    buffer = "http.buffer.v3.Buffer"
    by_route = (
        typed(GRPC_BUFFER_FILTER, buffer, max_request_bytes=edge.max_body_bytes + _FRAME_BYTES),
        _lua(GRPC_ROUTE_FILTER, limits, _script("grpc_head.lua"), _script("grpc_route.lua")),
        typed(BRIDGE_FILTER, "http.grpc_http1_reverse_bridge.v3.FilterConfig", **bridge),
        _unpack(GRPC_UNPACK_FILTER, _GRPC_RATIO),
        _lua(GRPC_UNPACKED_FILTER, _script("grpc_head.lua"), _script("grpc_unpacked.lua")),
        _unpack(UNPACK_FILTER, _GZIP_RATIO),
        typed(BUFFER_FILTER, buffer, max_request_bytes=edge.max_body_bytes),
        _pack(),
        _lua(GRPC_ERRORS_FILTER, _script("grpc_errors.lua")),
    )
    return [*edge.guard.filters, *({**each, "disabled": True} for each in by_route), router()]


def router() -> Config:
    return typed(_ROUTER, "http.router.v3.Router", suppress_envoy_headers=True)


def _unpack(name: str, ratio: int) -> Config:
    kind = "type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip"
    never = {"default_value": False, "runtime_key": "shipway.unused"}
    return typed(
        name,
        "http.decompressor.v3.Decompressor",
        decompressor_library={"name": "gzip", "typed_config": {"@type": kind, "max_inflate_ratio": ratio}},
        request_direction_config={"advertise_accept_encoding": False},
        response_direction_config={"common_config": {"enabled": never}},
    )


def _pack() -> Config:
    """Only what Envoy takes for text, JSON among it: raw tensors hardly become smaller."""
    kind = "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip"
    worth = {"min_content_length": _SMALLEST_PACKED_BYTES}
    return typed(
        PACK_FILTER,
        "http.compressor.v3.Compressor",
        compressor_library={"name": "gzip", "typed_config": {"@type": kind, "compression_level": "BEST_SPEED"}},
        response_direction_config={"common_config": worth},
    )


def typed(name: str, kind: str, **fields: object) -> Config:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.filters.{kind}", **fields}}


def _lua(name: str, *parts: str) -> Config:
    return typed(name, "http.lua.v3.Lua", default_source_code={"inline_string": "".join(parts)})


def _script(file: str) -> str:
    return files("deploy.node").joinpath(file).read_text()


def _local_replies(edge: Edge) -> Config:
    """Envoy's own answers in our words: JSON for HTTP, and for gRPC the right status with the words as its message."""
    body = f"the request body is larger than {edge.max_body_bytes} bytes, the most that this node takes"
    cases: list[tuple[Config, int, str]] = [
        (_status(413), 8, body),
        (_status(400), 3, "the edge cannot read this request: %RESPONSE_CODE_DETAILS%"),
        (_flags("UT"), 4, f"no answer within {edge.timeout_seconds:g} s, the node's limit for one request"),
        (_flags("UO"), 14, "too many requests wait for this model; try again later"),
        (_flags("UF", "UC", "UH", "URX"), 14, "the model's worker ended while it had this request; try again"),
    ]
    mappers = []
    for condition, grpc_status, words in cases:
        mappers.append(
            {
                "filter": {"and_filter": {"filters": [condition, _grpc_call()]}},
                "body_format_override": {"text_format_source": {"inline_string": words}},
                "headers_to_add": [set_header("grpc-status", str(grpc_status))],
            }
        )
        mappers.append({"filter": condition, "body_format_override": {"json_format": {"error": words}}})
    plain = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    mappers.append({"filter": _grpc_call(), "body_format_override": plain})
    return {"mappers": mappers, "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}


def _grpc_call() -> Config:
    """By grpc_route.lua's mark, or before that by what the client says; the bridge changes the content type."""
    said = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    return {"or_filter": {"filters": [{"header_filter": {"header": header}} for header in (over_grpc(), said)]}}


def over_grpc() -> Config:
    """Matches what grpc_route.lua has marked."""
    return {"name": PROTOCOL_HEADER, "string_match": {"exact": GRPC}}


def _flags(*flags: str) -> Config:
    return {"response_flag_filter": {"flags": list(flags)}}


def _status(code: int) -> Config:
    value = {"default_value": code, "runtime_key": "shipway.unused"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _access_log(edge: Edge) -> Config:
    return {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(edge.access_log),
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "method": "%REQ(:METHOD)%",
                    # Without its query, where somebody may have written a key.
                    "path": "%PATH(NQ:ORIG_OR_PATH)%",
                    "http": "%PROTOCOL%",
                    "protocol": "%ROUTE_NAME%",
                    "status": "%RESPONSE_CODE%",
                    "grpc_status": "%GRPC_STATUS_NUMBER%",
                    "flags": "%RESPONSE_FLAGS%",
                    "version": "%UPSTREAM_CLUSTER%",
                    "duration_ms": "%DURATION%",
                    "received_bytes": "%BYTES_RECEIVED%",
                    "sent_bytes": "%BYTES_SENT%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                    "prediction_id": f"%RESP({PREDICTION_ID})%",
                    "traceparent": "%REQ(TRACEPARENT)%",
                    "tracestate": "%REQ(TRACESTATE)%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    **edge.guard.log_fields,
                }
            },
        },
    }
