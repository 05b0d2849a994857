"""Envoy's routes, a file that Envoy watches: who answers which request, and what is said about it on the way.

A version's share is a fraction of the requests that reach its route, the next version's route takes its share of the
rest, and so on: unlike weighted clusters this lets every version have its own path at TorchServe, with no script.
"""

from collections.abc import Sequence
from itertools import accumulate

from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.envoy import (
    BRIDGE_FILTER,
    BUFFER_FILTER,
    CONTROL_CLUSTER,
    EDGE,
    GRPC_ERRORS_FILTER,
    GRPC_ROUTE_FILTER,
    PREDICTION_ID,
    PROTOCOL_HEADER,
    Config,
    Edge,
    cluster_name,
    over_grpc,
    set_header,
    watched_file,
)
from handlers.answer import CALL_HEADER, GRPC, HTTP, REPLAY_HEADER, ROWS
from handlers.protocol.messages import SERVICE

# Never passed on from a client: our own headers, its credentials, and what means nothing behind the edge, for each
# costs the worker time. On the route itself, because a virtual host's removals come after a route's additions.
_REMOVED = (
    *(CALL_HEADER, REPLAY_HEADER, PREDICTION_ID, "x-shipway-model", "x-shipway-version", "x-shipway-digest"),
    *("authorization", "x-api-key"),
    *("accept", "accept-encoding", "user-agent", "x-envoy-external-address", "x-forwarded-for", "x-forwarded-proto"),
)


def routes(endpoints: Sequence[DesiredEndpoint], edge: Edge) -> Config:
    """The file of routes. Every version named here must have its cluster."""
    virtual_host = {
        "name": EDGE,
        "domains": ["*"],
        "routes": [
            *(route for endpoint in endpoints for route in _endpoint_routes(endpoint, edge)),
            *_control_routes(edge),
        ],
    }
    return watched_file(
        [
            {
                "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                "name": EDGE,
                "virtual_hosts": [virtual_host],
            }
        ]
    )


def _endpoint_routes(endpoint: DesiredEndpoint, edge: Edge) -> list[Config]:
    """All ways to ask one model: three protocols, each for every version by itself and for those that share traffic."""
    model = endpoint.model
    sharing = [version for version in endpoint.versions if version.weight > 0]
    shares = list(zip(sharing, accumulate(version.weight for version in sharing), strict=True))
    return [
        _predict(match, model, version, protocol, edge)
        for protocol in (HTTP, ROWS, GRPC)
        for match, version in (
            *((_match(protocol, model, version.version), version) for version in endpoint.versions),
            *((_share(_match(protocol, model, None), percent), version) for version, percent in shares),
        )
    ]


def _share(match: Config, percent: int) -> Config:
    """One number is drawn for a request and compared with each route's percent, so they add up in their order."""
    fraction = {"default_value": {"numerator": percent, "denominator": "HUNDRED"}, "runtime_key": "shipway.unused"}
    return {**match, "runtime_fraction": fraction}


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
    # The header has the query in it: a client's query must not come near TorchServe, and nothing here takes one.
    exactly = {":method": "POST", ":path": path}
    headers = [{"name": name, "string_match": {"exact": value}} for name, value in exactly.items()]
    return {"path": path, "headers": headers}


def _predict(match: Config, model: str, version: DesiredVersion, protocol: str, edge: Edge) -> Config:
    return {
        "name": protocol,  # for the access log
        "match": match,
        "route": {
            "cluster": cluster_name(model, version.version),
            "timeout": f"{edge.timeout_seconds}s",
            # A prediction is pure. A worker that dies leaves its socket to the next one, who is asked once more.
            "retry_policy": {"retry_on": "connect-failure,refused-stream,reset", "num_retries": 1},
        },
        # Over gRPC the edge's own mark must stay, for answers of Envoy's own are told by it.
        "request_headers_to_remove": [*_REMOVED, *([] if protocol == GRPC else [PROTOCOL_HEADER])],
        "request_headers_to_add": [
            set_header(CALL_HEADER, f"{protocol} %START_TIME(%s.%6f)%"),
        ],
        "response_headers_to_add": [
            set_header("x-shipway-model", model),
            set_header("x-shipway-version", str(version.version)),
            set_header("x-shipway-digest", version.digest),
            set_header(PREDICTION_ID, "%UNIQUE_ID%"),
        ],
        **({} if protocol == GRPC else {"typed_per_filter_config": _without_grpc(edge)}),
    }


def _control_routes(edge: Edge) -> list[Config]:
    """What the launcher answers: health, metadata, and words for whatever names no model or version of this node."""
    control = {"cluster": CONTROL_CLUSTER, "timeout": "5s"}
    http_prefixes = ("/v2", "/predictions/", "/explanations/")
    plain = {"typed_per_filter_config": _without_grpc(edge)}
    refusal = {
        "status": 404,
        "body": {"inline_string": "no such path; this node serves /v2 (Open Inference Protocol) and /predictions/NAME"},
    }
    return [
        {"match": {"prefix": f"/{SERVICE}/"}, "route": control},
        *({"match": {"prefix": prefix}, "route": control, **plain} for prefix in http_prefixes),
        # Twice: the bridge changes the content type and has the route chosen again.
        {"match": {"prefix": "/", "grpc": {}}, "route": control},
        {"match": {"prefix": "/", "headers": [over_grpc()]}, "route": control},
        {"match": {"prefix": "/"}, "direct_response": refusal, **plain},
    ]


def _without_grpc(edge: Edge) -> Config:
    """Per-route switches that take the gRPC filters, and the room for gRPC's frame, out of an HTTP request's way."""
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    return {
        GRPC_ROUTE_FILTER: off,
        GRPC_ERRORS_FILTER: off,
        BRIDGE_FILTER: off,
        BUFFER_FILTER: {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": edge.max_body_bytes},
        },
    }
