"""Envoy's routes, a file that Envoy watches: who answers which request, and what is said about it on the way.

A version's share is a fraction of the requests that reach its route, the next version's route takes its share of the
rest, and so on: unlike weighted clusters this lets every version have its own answer headers, with no script.

During a rollout such a route has more: a fall-back, which answers what the version lost, and copies for a version that
is only watched. Who pins a version gets that one or an error, and is not copied.

Every route to a version over HTTP is there twice: the second has the filters that unpack a request and pack an answer,
for those who send gzip or accept it, so that nobody else pays for them.
"""

from collections.abc import Sequence
from itertools import accumulate

from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.envoy import (
    BRIDGE_FILTER,
    BUFFER_FILTER,
    CONTROL_CLUSTER,
    CREDENTIALS,
    EDGE,
    FALL_BACK,
    GRPC_BUFFER_FILTER,
    GRPC_ERRORS_FILTER,
    GRPC_ROUTE_FILTER,
    GRPC_UNPACK_FILTER,
    GRPC_UNPACKED_FILTER,
    METADATA,
    PACK_FILTER,
    PREDICTION_ID,
    PROTOCOL_HEADER,
    UNPACK_FILTER,
    Config,
    Edge,
    cluster_name,
    over_grpc,
    set_header,
    watched_file,
)
from deploy.node.envoy import SHADOW as SHADOW_CLUSTER
from deploy.node.explainer import explainer_of
from deploy.node.peers import DIGEST_HEADER, REFUSED_HEADER, said_to_peers
from handlers.answer import CALL_HEADER, GRPC, HTTP, ID_CHARACTERS, REPLAY_HEADER, ROWS, SHADOW
from handlers.protocol.messages import HEALTH_SERVICE, SERVICE

# Never passed on from a client: our own headers, its credentials, and what means nothing behind the edge, for each
# costs the worker time. On the route itself, because a virtual host's removals come after a route's additions.
REMOVED = (
    *(CALL_HEADER, REPLAY_HEADER, PREDICTION_ID, "x-shipway-model", "x-shipway-version", DIGEST_HEADER),
    *CREDENTIALS,
    *("accept", "accept-encoding", "user-agent", "x-envoy-external-address", "x-forwarded-for", "x-forwarded-proto"),
)
_TRACE = ("traceparent", "tracestate")
"""Of W3C's trace context, carried through."""
EXPLANATIONS = "explanations"
FEEDBACK = "/feedback"
SERVED = ("/v2 (Open Inference Protocol)", "/predictions/NAME", f"/{EXPLANATIONS}/NAME", FEEDBACK)


def routes(endpoints: Sequence[DesiredEndpoint], edge: Edge) -> Config:
    """The file of routes. Every version named here must have its cluster."""
    virtual_host = {
        "name": EDGE,
        "domains": ["*"],
        "routes": [
            *(
                route
                for packed in (False, True)
                for e in endpoints
                for route in _endpoint_routes(e, edge, packed=packed)
            ),
            *_control_routes(),
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


def _endpoint_routes(endpoint: DesiredEndpoint, edge: Edge, *, packed: bool) -> list[Config]:
    """All ways to ask one model: three protocols, each for every version by itself and for those that share traffic.

    Over gRPC it is the call's first route that unpacks, which is none of these.
    """
    model = endpoint.model
    sharing = [version for version in endpoint.versions if version.weight > 0]
    shares = list(zip(sharing, accumulate(version.weight for version in sharing), strict=True))
    predicting = []
    for protocol in (HTTP, ROWS) if packed else (HTTP, ROWS, GRPC):
        for version in endpoint.versions:
            match = _match(protocol, model, version.version, packed=packed)
            predicting.append(_predict(match, model, version, protocol, edge, packed=packed))
        for version, percent in shares:
            match = _share(_match(protocol, model, None, packed=packed), percent)
            route = _predict(match, model, version, protocol, edge, packed=packed)
            predicting.append(_in_rollout(route, endpoint, version, edge))
    explained = [version for version in endpoint.versions if version.version == endpoint.explainer]
    return [*predicting, *(route for version in explained for route in _explain(model, version, edge, packed=packed))]


def _explain(model: str, version: DesiredVersion, edge: Edge, *, packed: bool) -> list[Config]:
    """The same requests as for predictions, at other paths, answered by the version's explainer."""
    found = []
    for protocol in (HTTP, ROWS):
        for pinned in (version.version, None):
            match = _over_http_to(_path(protocol, model, pinned, explain=True), packed=packed)
            route = _predict(match, model, version, protocol, edge, packed=packed)
            cluster = cluster_name(explainer_of(model), version.version)
            found.append({**route, "name": EXPLANATIONS, "route": {**route["route"], "cluster": cluster}})
    return found


def _share(match: Config, percent: int) -> Config:
    """One number is drawn for a request and compared with each route's percent, so they add up in their order."""
    fraction = {"default_value": {"numerator": percent, "denominator": "HUNDRED"}, "runtime_key": "shipway.unused"}
    return {**match, "runtime_fraction": fraction}


def _in_rollout(route: Config, endpoint: DesiredEndpoint, version: DesiredVersion, edge: Edge) -> Config:
    """What the requests of everybody get beside: somebody who answers what this version loses, and copies."""
    if endpoint.fallback not in (None, version.version):
        fall_back = cluster_name(endpoint.model, endpoint.fallback)
        told = version.peer is not None and edge.guard.credentials
        name = cluster_name(endpoint.model, version.version)
        route = _falling_back(route, name, fall_back + FALL_BACK if told else fall_back)
    if endpoint.mirror and endpoint.mirror.version != version.version:
        copied = next(each for each in endpoint.versions if each.version == endpoint.mirror.version)
        copies = _copies(endpoint.model, copied, endpoint.mirror.percent, edge)
        route = {**route, "route": {**route["route"], "request_mirror_policies": [copies]}}
    return route


def _falling_back(route: Config, name: str, fall_back: str) -> Config:
    """The first try is the version's, and all others are the fall-back's: it counts and answers under its own name."""
    kind = "type.googleapis.com/envoy.extensions.router.cluster_specifiers.priority_group.v3"
    # Twice, as what a worker of the fall-back loses is asked once more, as always.
    tries = [name, fall_back, fall_back]
    groups = [
        {"name": str(number), "clusters": [{"cluster_name": name, "weight": 1}]} for number, name in enumerate(tries)
    ]
    specifier = {"@type": f"{kind}.PriorityGroupClusterSpecifier", "priority_groups": groups}
    action = {name: value for name, value in route["route"].items() if name != "cluster"}
    action["inline_cluster_specifier_plugin"] = {"extension": {"name": "fall-back", "typed_config": specifier}}
    action["retry_policy"] = {
        **action["retry_policy"],
        "num_retries": len(tries) - 1,
        "refresh_cluster_on_retry": True,
        "retry_back_off": {"base_interval": "0.001s"},  # there is nothing to wait for
    }
    answered = [
        set_header(f"x-shipway-{each}", f"%CLUSTER_METADATA({METADATA}:{each})%") for each in ("version", "digest")
    ]
    said = {each["header"]["key"]: each for each in (*route["response_headers_to_add"], *answered)}
    # Its statistics are those of this route alone, where a retry is a request that this version lost.
    return {
        **route,
        "route": action,
        "response_headers_to_add": list(said.values()),
        "stat_prefix": name,
    }


def _copies(model: str, version: DesiredVersion, percent: int, edge: Edge) -> Config:
    # One number is drawn for a request: its last two digits have chosen the version, and these are the two before them.
    fraction = {"numerator": 100 * percent, "denominator": "TEN_THOUSAND"}
    added = [set_header(REPLAY_HEADER, SHADOW), *(said_to_peers(version, edge) if version.peer else [])]
    return {
        "cluster": cluster_name(model, version.version) + SHADOW_CLUSTER,
        "runtime_fraction": {"default_value": fraction, "runtime_key": "shipway.unused"},
        "request_headers_mutations": [{"append": each} for each in added],
    }


_NOT_PACKED = (
    {"name": "content-encoding", "present_match": False},
    {
        "name": "accept-encoding",
        "string_match": {"contains": "gzip"},
        "invert_match": True,
        "treat_missing_header_as_empty": True,  # else a missing header matches neither way
    },
)


def _match(protocol: str, model: str, version: int | None, *, packed: bool) -> Config:
    if protocol == GRPC:
        pinned = {"present_match": False} if version is None else {"string_match": {"exact": str(version)}}
        headers = [
            {"name": "x-shipway-model", "string_match": {"exact": model}},
            {"name": "x-shipway-version", **pinned},
        ]
        return {"path": f"/{SERVICE}/ModelInfer", "headers": headers}
    return _over_http_to(_path(protocol, model, version), packed=packed)


def _path(protocol: str, model: str, version: int | None, *, explain: bool = False) -> str:
    if protocol == ROWS:
        return f"/{EXPLANATIONS if explain else 'predictions'}/{model}" + ("" if version is None else f"/{version}")
    pinned = "" if version is None else f"/versions/{version}"
    return f"/v2/models/{model}{pinned}/{'explain' if explain else 'infer'}"


def _over_http_to(path: str, *, packed: bool) -> Config:
    # The header has the query in it, and nothing here takes one.
    exactly = {":path": path, ":method": "POST"}
    headers = [{"name": name, "string_match": {"exact": value}} for name, value in exactly.items()]
    return {"path": path, "headers": headers if packed else [*headers, *_NOT_PACKED]}


def _predict(match: Config, model: str, version: DesiredVersion, protocol: str, edge: Edge, *, packed: bool) -> Config:
    limits = f"{edge.timeout_seconds:g}" + (" %REQ(grpc-timeout)%" if protocol == GRPC else "")
    retried = "connect-failure,refused-stream,reset"
    refused = {
        "retry_on": f"{retried},retriable-headers",
        "retriable_headers": [{"name": REFUSED_HEADER, "present_match": True}],
    }
    return {
        "name": protocol,  # for the access log
        "match": match,
        "request_body_buffer_limit": edge.max_body_bytes,  # so much is kept for a second try
        "route": {
            "cluster": cluster_name(model, version.version),
            "timeout": f"{edge.timeout_seconds}s",
            # A prediction is pure. A worker that dies leaves its socket to the next one, who is asked once more.
            # So does a peer that refuses, and there may be others.
            "retry_policy": {"retry_on": retried, **(refused if version.peer else {}), "num_retries": 1},
        },
        # Over gRPC the edge's own mark must stay, for answers of Envoy's own are told by it.
        "request_headers_to_remove": [*REMOVED, *([] if protocol == GRPC else [PROTOCOL_HEADER])],
        "request_headers_to_add": [
            set_header(CALL_HEADER, f"%START_TIME(%s.%6f)%-%UNIQUE_ID% {protocol} {limits}"),
            *(said_to_peers(version, edge) if version.peer else []),
        ],
        "response_headers_to_remove": [REFUSED_HEADER] if version.peer else [],
        "response_headers_to_add": [
            set_header("x-shipway-model", model),
            set_header("x-shipway-version", str(version.version)),
            set_header("x-shipway-digest", version.digest),
            set_header(PREDICTION_ID, f"%REQ({CALL_HEADER}):{ID_CHARACTERS}%"),  # every %UNIQUE_ID% is another one
            # Only in the answers of those who sent them.
            *(set_header(name, f"%REQ({name})%") for name in _TRACE),
        ],
        "typed_per_filter_config": _over_grpc() if protocol == GRPC else _over_http(packed=packed),
    }


def _control_routes() -> list[Config]:
    """What the launcher answers: health, metadata, feedback, and words for whatever this node does not serve."""
    control = {"cluster": CONTROL_CLUSTER, "timeout": "5s"}
    http_prefixes = ("/v2", "/predictions/", "/explanations/")
    plain = {"typed_per_filter_config": _over_http(packed=False)}
    refusal = {
        "status": 404,
        "body": {"inline_string": f"no such path; this node serves {', '.join(SERVED)}"},
    }
    gzip = {"name": "grpc-encoding", "string_match": {"exact": "gzip"}}
    grpc = {"typed_per_filter_config": _over_grpc()}
    grpc_packed = {"typed_per_filter_config": _over_grpc(packed=True)}
    return [
        *_streaming_routes(),
        {"match": {"prefix": "/", "grpc": {}, "headers": [gzip]}, "route": control, **grpc_packed},
        {"match": {"prefix": f"/{SERVICE}/"}, "route": control, **grpc},
        *({"match": {"prefix": prefix}, "route": control, **plain} for prefix in http_prefixes),
        {"match": _over_http_to(FEEDBACK, packed=False), "route": control, **plain},
        {"match": {"path": FEEDBACK}, "route": control, "typed_per_filter_config": _over_http(packed=True)},
        # Twice: the bridge changes the content type and has the route chosen again.
        {"match": {"prefix": "/", "grpc": {}}, "route": control, **grpc},
        {"match": {"prefix": "/", "headers": [over_grpc()]}, "route": control, **grpc},
        {"match": {"prefix": "/"}, "direct_response": refusal, **plain},
    ]


def _streaming_routes() -> list[Config]:
    """Refused at once: the launcher hears of a call when its last message has come, and a stream may never end."""
    instead = {
        f"{SERVICE}/ModelStreamInfer": "ModelInfer",
        f"{HEALTH_SERVICE}/Watch": "Check",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "the file at /v2/proto",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "the file at /v2/proto",
    }
    return [
        {
            "match": {"path": f"/{path}"},
            "direct_response": {
                "status": 404,  # which gRPC calls UNIMPLEMENTED
                "body": {"inline_string": f"{path} is a streaming call, and this node answers none; use {words}"},
            },
            "typed_per_filter_config": {GRPC_ROUTE_FILTER: _ON},
        }
        for path, words in instead.items()
    ]


_ON = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}


def _over_http(*, packed: bool) -> Config:
    """The filters of a request over HTTP; those that unpack and pack only for who needs them."""
    return dict.fromkeys((BUFFER_FILTER, UNPACK_FILTER, PACK_FILTER) if packed else (BUFFER_FILTER,), _ON)


def _over_grpc(*, packed: bool = False) -> Config:
    """The filters of a call over gRPC. Its first route decides, and that is one of the launcher's."""
    plain = (GRPC_BUFFER_FILTER, GRPC_ROUTE_FILTER, BRIDGE_FILTER, GRPC_ERRORS_FILTER)
    # The second buffer says how long the unpacked message is.
    return dict.fromkeys((*plain, *((GRPC_UNPACK_FILTER, GRPC_UNPACKED_FILTER, BUFFER_FILTER) if packed else ())), _ON)
