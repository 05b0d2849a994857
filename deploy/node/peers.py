"""Nodes that answer for each other: the edge of a stable pod sends the canary's share to the canary's pods.

A node listens for its peers at a port of its own, answers for its own version alone, checks the client's credentials
again, and forwards nothing. Whatever a peer's edge says itself is marked as refused, and counts as no answer: the edge
that asked has the fall-back give one, and the request counts as lost by the version that was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.node import envoy
from deploy.node.desired import DesiredVersion, Peer
from deploy.node.envoy import BUFFER_FILTER, Config, Edge, Own, cluster_name, set_header, typed
from handlers.answer import CALL_HEADER, GRPC, HTTP, REPLAY_HEADER, ROWS, SHADOW

PEER = "peer"
"""Name of the listener, its route and its statistics."""
DIGEST_HEADER, REFUSED_HEADER = "x-shipway-digest", "x-shipway-refused"
_CALL = rf"^[0-9]+\.[0-9]+(-[0-9a-f]+)+ ({HTTP}|{GRPC}|{ROWS}) [ -~]+$"
ASKED_PATH_HEADER = "x-envoy-original-path"
"""What the client asked for; Envoy drops a client's own."""
_UNLIMITED = 1 << 20
_NOBODY_PORT = 1


def path(model: str, version: int) -> str:
    return f"/{PEER}/{model}/{version}"


# The side that asks.


@dataclass(frozen=True)
class Asked:
    """A version that other nodes have."""

    model: str
    version: int
    digest: str
    peer: Peer
    mirrored: bool = False
    """Whether it gets copies of requests."""


def clusters(asked: Asked, edge: Edge) -> list[Config]:
    names = [cluster_name(asked.model, asked.version)]
    if asked.mirrored:
        names.append(names[0] + envoy.SHADOW)
    return [_cluster(name, asked, edge) for name in names]


def _cluster(name: str, asked: Asked, edge: Edge) -> Config:
    # Where DNS names nobody, or nobody who can be reached, a connection is refused at once, and that is asked again
    # elsewhere; "no healthy upstream" would be the client's answer.
    nobody = _endpoint("127.0.0.1", _NOBODY_PORT)
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED)
    secured = {"transport_socket": edge.guard.peer_socket} if edge.guard.peer_socket else {}
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STRICT_DNS",
        "dns_refresh_rate": "1s",
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "2s"},
        # A resolver that does not answer must hold up nothing.
        "wait_for_warm_on_init": False,
        "ignore_health_on_host_removal": True,
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        # With the handshake of TLS. So long some requests wait for a canary that helm has taken away, until the kubelet
        # says so.
        "connect_timeout": "0.5s",
        # The peer has its own limits, and says no by itself: an overflow here would be the client's answer.
        "circuit_breakers": {"thresholds": [limits]},
        "outlier_detection": _outliers(),
        "load_assignment": {
            "cluster_name": name,
            # One pod that answers is enough: nobody is asked only where there is none.
            "policy": {"overprovisioning_factor": _UNLIMITED},
            "endpoints": [
                {"priority": 0, "lb_endpoints": [_endpoint(asked.peer.host, asked.peer.port)]},
                {"priority": 1, "lb_endpoints": [nobody]},
            ],
        },
        "typed_extension_protocol_options": envoy.http1(_to_path(path(asked.model, asked.version))),
        **envoy.answers(asked.version, asked.digest),
        **secured,
    }


def _endpoint(host: str, port: int) -> Config:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}


def _outliers() -> Config:
    """Who takes no connection, or resets three in a row, is left alone for a second or two; of several never all.

    Whoever does so again at once is left alone for longer, which is forgotten one interval after the other.
    """
    never = ("consecutive_5xx", "consecutive_gateway_failure", "success_rate", "local_origin_success_rate")
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "interval": "2s",
        "base_ejection_time": "1s",
        "max_ejection_time": "10s",
        "max_ejection_percent": 50,
        **{f"enforcing_{name}": 0 for name in never},
    }


def _to_path(path: str) -> Config:
    """Behind the router, because a mirror, like a fall-back, goes to another path than its route's requests."""
    source = f"""
        function envoy_on_request(handle)
          local headers = handle:headers()
          headers:replace("{ASKED_PATH_HEADER}", headers:get(":path")) -- for the access log
          headers:replace(":path", "{path}")
        end
    """
    return typed("shipway.peer_path", "http.lua.v3.Lua", default_source_code={"inline_string": source})


def said_to_peers(version: DesiredVersion, edge: Edge) -> list[Config]:
    """Headers that a peer wants: which archive is meant, and the client's credentials."""
    said = {DIGEST_HEADER: version.digest, **edge.guard.credentials}
    return [set_header(name, value) for name, value in said.items()]


# The side that is asked.


def listeners(edge: Edge, removed: Sequence[str]) -> list[Config]:
    """The one for peers, where there is to be one. `removed`: headers that mean nothing to a worker."""
    return [_listener(edge, edge.own, removed)] if edge.own else []


def _listener(edge: Edge, own: Own, removed: Sequence[str]) -> Config:
    manager = {
        **envoy.manager(edge, PEER),
        "route_config": _routes(edge, own, removed),
        "http_filters": [
            *edge.guard.filters,
            typed(BUFFER_FILTER, "http.buffer.v3.Buffer", max_request_bytes=edge.max_body_bytes),
            envoy.router(),
        ],
        "local_reply_config": _refusals(),
    }
    return {
        **envoy.listener(edge, PEER, own.port, manager),
        # By this a draining node closes this listener, and leaves the other one open.
        "traffic_direction": "INBOUND",
    }


def _routes(edge: Edge, own: Own, removed: Sequence[str]) -> Config:
    target = path(own.model, own.version)
    wanted = {
        ":path": {"exact": target},
        ":method": {"exact": "POST"},
        DIGEST_HEADER: {"exact": own.digest},
        CALL_HEADER: {"safe_regex": {"regex": _CALL}},
        REPLAY_HEADER: {"safe_regex": {"regex": f"^({SHADOW})?$"}},
    }
    headers = [
        {"name": name, "string_match": match, "treat_missing_header_as_empty": True} for name, match in wanted.items()
    ]
    kept = (CALL_HEADER, REPLAY_HEADER)
    words = f"this node answers its peers for {own.model} version {own.version} {own.digest} alone, at POST {target}"
    return {
        "name": PEER,
        # The cluster is there once the version is ready.
        "validate_clusters": False,
        "virtual_hosts": [
            {
                "name": PEER,
                "domains": ["*"],
                "routes": [
                    {
                        "name": PEER,
                        "match": {"path": target, "headers": headers},
                        "route": {
                            "cluster": cluster_name(own.model, own.version) + envoy.PEER,
                            "timeout": f"{edge.timeout_seconds}s",
                        },
                        "request_headers_to_remove": [name for name in removed if name not in kept],
                    },
                    {
                        "name": PEER,
                        "match": {"prefix": "/"},
                        "direct_response": {"status": 404, "body": {"inline_string": words}},
                    },
                ],
            }
        ],
    }


def _refusals() -> Config:
    """Answers that are the edge's own: nobody there, too many, credentials that are not known here, another version."""
    at_least = {"default_value": 200, "runtime_key": "shipway.unused"}
    each = {"status_code_filter": {"comparison": {"op": "GE", "value": at_least}}}
    refused = {"filter": each, "headers_to_add": [set_header(REFUSED_HEADER, "true")]}
    return {"mappers": [refused], "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}
