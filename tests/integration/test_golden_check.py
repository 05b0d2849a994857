"""`shipway golden` at a real node, open and closed."""

from collections.abc import Callable
from pathlib import Path

from deploy.golden_check import Served, Service, check
from deploy.node import auth, tls
from tests.integration.conftest import Lab, node, wait_until_ready

Ports = Callable[[int], list[int]]
RIGHT = {"HTTP": "", "gRPC": ""}


def test_both_versions_give_their_golden_outputs(lab: Lab) -> None:
    service = Service(lab.settings.http_url, None, None, {})
    for packaged in (lab.first, lab.second):
        served = Served("flights", packaged.version, packaged.digest)
        assert dict(check(lab.settings.archives_dir, served, service)) == RIGHT


def test_a_closed_node_is_asked_with_its_certificate_and_a_key(lab: Lab, free_ports: Ports, tmp_path: Path) -> None:
    certificate, key, api_keys = (tmp_path / name for name in ("tls.crt", "tls.key", "api_keys.json"))
    tls.create_self_signed(certificate, key, ["flights.team.svc"])
    secret = auth.add_api_key(api_keys, "test", ["infer"])
    served = Served("flights", lab.first.version, lab.first.digest)
    files = {"tls_certificate": certificate, "tls_key": key, "api_keys": api_keys}
    with node(lab, free_ports(2), lab.alone(), **files) as running:
        wait_until_ready(running.settings, 1)
        url, archives = running.settings.http_url, lab.settings.archives_dir

        allowed = Service(url, certificate, "flights.team.svc", {"x-api-key": secret})
        assert dict(check(archives, served, allowed)) == RIGHT

        stranger = dict(check(archives, served, Service(url, certificate, "flights.team.svc", {})))
        assert stranger["HTTP"].startswith("row 0: answered 401")
        assert stranger["gRPC"].startswith("row 0: answered UNAUTHENTICATED")

        elsewhere = dict(check(archives, served, Service(url, certificate, None, {"x-api-key": secret})))
        assert "certificate" in elsewhere["HTTP"].lower()
        assert "UNAVAILABLE" in elsewhere["gRPC"]
