"""The edge with TLS, API keys and tokens: who gets an answer, over every protocol, also while all of it is replaced."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from deploy import demo
from deploy.caller import caller
from deploy.node import auth, tls
from deploy.scopes import SCOPES, Scope
from deploy.settings import Settings
from handlers.protocol.messages import SERVICE, ModelInferRequest
from tests.integration.clients import post
from tests.integration.conftest import Lab, node, wait_until_ready
from tests.integration.test_protocols import INFER, close, inputs
from tests.unit.deploy.node.secured_edge import Issuer, replace, write_jwks
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]
PREDICT = "/predictions/flights"
REQUESTS, LOAD_SECONDS = 2000, 60.0


@dataclass(frozen=True)
class Secured:
    """A node that wants HTTPS and credentials, and what to ask it with."""

    lab: Lab
    settings: Settings
    issuer: Issuer
    keys: Mapping[Scope, str]
    log: Path

    @property
    def certificate(self) -> Path:
        assert self.settings.tls_certificate is not None
        return self.settings.tls_certificate

    @property
    def key(self) -> Path:
        assert self.settings.tls_key is not None
        return self.settings.tls_key

    @property
    def api_keys(self) -> Path:
        assert self.settings.api_keys is not None
        return self.settings.api_keys

    @property
    def jwks(self) -> Path:
        assert self.settings.jwt_jwks is not None
        return self.settings.jwt_jwks

    def client(self, *, http2: bool = False, roots: Path | None = None) -> httpx.Client:
        """Trusts the certificates in the file `roots`, by default the node's own."""
        trusted = ssl.create_default_context(cafile=str(roots or self.certificate))
        return httpx.Client(base_url=self.settings.http_url, http1=not http2, http2=http2, verify=trusted, timeout=30)

    def channel(self, roots: bytes | None = None) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(roots or self.certificate.read_bytes())
        return grpc.secure_channel(self.settings.grpc_target, credentials)

    def served(self) -> str:
        """The certificate that a new connection is shown."""
        return ssl.get_server_certificate((self.settings.client_host, self.settings.http_port), timeout=10)


@pytest.fixture(scope="module")
def secured(lab: Lab, free_ports: Ports) -> Iterator[Secured]:
    there = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    paths = {name: there / name for name in ("tls_certificate", "tls_key", "api_keys", "jwt_jwks")}
    tls.create_self_signed(paths["tls_certificate"], paths["tls_key"], ["127.0.0.1"])
    keys = {scope: auth.add_api_key(paths["api_keys"], scope, [scope]) for scope in SCOPES}
    issuer = Issuer()
    write_jwks(paths["jwt_jwks"], issuer)
    tokens = {"jwt_issuer": "https://issuer.example", "jwt_audience": "shipway"}
    with node(lab, free_ports(2), lab.alone(), **paths, **tokens) as running:
        wait_until_ready(running.settings, 1)
        yield Secured(lab, running.settings, issuer, keys, running.settings.state_dir / "node.log")
    shutil.rmtree(there)


def with_token(secured: Secured, **changes: object) -> dict[str, str]:
    return {"authorization": f"Bearer {secured.issuer.token(**changes)}"}


Credentials = Callable[[Secured], dict[str, str]]
RIGHT: dict[str, Credentials] = {
    "key": lambda s: {"x-api-key": s.keys["infer"]},
    "key as bearer": lambda s: {"authorization": f"Bearer {s.keys['infer']}"},
    "token": with_token,
    "token with scp": lambda s: with_token(s, scope=None, scp=["infer"]),
}
UNAUTHENTICATED: dict[str, Credentials] = {
    "missing": lambda _: {},
    "wrong key": lambda _: {"x-api-key": "sw_wrong"},
    "expired": lambda s: with_token(s, exp=int(time.time()) - 120),
    "other issuer": lambda s: with_token(s, iss="https://other.example"),
    "other audience": lambda s: with_token(s, aud="other"),
    "other signature": lambda _: {"authorization": f"Bearer {Issuer().token()}"},
    "spoofed": lambda _: {"x-shipway-protocol": "oip_grpc", "x-shipway-call": "forged", "x-shipway-version": "2"},
}
FORBIDDEN: dict[str, Credentials] = {
    "key for another scope": lambda s: {"x-api-key": s.keys["feedback"]},
    "token without scope": lambda s: with_token(s, scope="explain"),
}


def test_labels_need_a_scope_of_their_own(secured: Secured) -> None:
    label = {"prediction_id": "1795000000.250000-0b6c9d1e-8f2a-4c3d", "label": "late"}
    with secured.client() as client:
        for headers, status in (
            ({"x-api-key": secured.keys["feedback"]}, 200),
            (with_token(secured, scope="infer feedback"), 200),
            ({"x-api-key": secured.keys["infer"]}, 403),
            (with_token(secured, scope="infer explain"), 403),
            ({}, 401),
        ):
            answer = client.post("/feedback", json=label, headers=headers)
            assert answer.status_code == status
            assert answer.json().get("unknown") == (1 if status == 200 else None)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_over_https(secured: Secured, http2: bool) -> None:
    with secured.client(http2=http2) as client:

        def ask(credentials: Credentials) -> httpx.Response:
            return client.post(INFER, json=secured.lab.golden["request"], headers=credentials(secured))

        for name, credentials in RIGHT.items():
            answer = ask(credentials)
            assert answer.status_code == 200, name
            assert close(secured.lab, answer.json()["outputs"][0]["data"])
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            assert answer.headers["x-shipway-version"] == "1"
        for name, credentials in UNAUTHENTICATED.items():
            answer = ask(credentials)
            assert answer.status_code == 401, name
            assert answer.headers["www-authenticate"].startswith('Bearer realm="shipway"')
            assert "x-api-key" in answer.json()["error"]
            assert "x-shipway-version" not in answer.headers
        for name, credentials in FORBIDDEN.items():
            answer = ask(credentials)
            assert answer.status_code == 403, name
            assert answer.json()["error"].startswith("the scope infer is needed; these credentials have: ")
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/flights").status_code == 401
        assert client.get("/v2/models/flights", headers=RIGHT["key"](secured)).json()["versions"] == ["1"]


def test_over_grpc_with_the_public_client(secured: Secured) -> None:
    certificate = str(secured.certificate)
    with triton_grpc.InferenceServerClient(
        secured.settings.grpc_target, ssl=True, root_certificates=certificate
    ) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        tensors = inputs(secured.lab, triton_grpc)
        for name, credentials in RIGHT.items():
            answer = client.infer("flights", tensors, headers=credentials(secured))
            assert close(secured.lab, answer.as_numpy("probability")), name
        for refused, status in ((UNAUTHENTICATED, "UNAUTHENTICATED"), (FORBIDDEN, "PERMISSION_DENIED")):
            for name, credentials in refused.items():
                with pytest.raises(triton_grpc.InferenceServerException) as caught:
                    client.infer("flights", tensors, headers=credentials(secured))
                assert caught.value.status() == f"StatusCode.{status}", name
                words = "send an API key" if status == "UNAUTHENTICATED" else "the scope infer is needed"
                assert words in caught.value.message()
        assert client.get_model_metadata("flights", headers=RIGHT["token"](secured)).name == "flights"


def test_nobody_asks_in_plain_text(secured: Secured) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://{secured.settings.grpc_target}{PREDICT}", json=secured.lab.row())
    with grpc.insecure_channel(secured.settings.grpc_target) as channel:
        live: Any = channel.unary_unary(f"/{SERVICE}/ServerLive")
        with pytest.raises(grpc.RpcError) as caught:
            live(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_headers_of_ours_from_outside_change_nothing(secured: Secured) -> None:
    forged = {
        "x-shipway-model": "other",
        "x-shipway-version": "2",
        "x-shipway-prediction-id": "forged",
        "x-shipway-call": "oip_grpc 1 forged",
        "x-shipway-protocol": "oip_grpc",
        "x-shipway-grpc-status": "0",
    }
    with secured.client() as client:
        answer = client.post(PREDICT, json=secured.lab.row(), headers={**forged, **RIGHT["key"](secured)})
    assert answer.status_code == 200
    assert (answer.headers["x-shipway-model"], answer.headers["x-shipway-version"]) == ("flights", "1")
    assert "forged" not in str(answer.headers)
    assert np.isclose(answer.json()["probability"], secured.lab.expected()[0], rtol=1e-5)


class Load:
    """Three clients that go on asking with the same credentials, reconnecting every few requests."""

    def __init__(self, secured: Secured, roots: Path) -> None:
        self._secured, self._roots = secured, roots
        self._deadline = time.monotonic() + LOAD_SECONDS
        self._stop = threading.Event()
        self.seen: Counter[str] = Counter()
        """Answers by status, requests without one by their error."""
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(make,)) for make in (self._http1, self._http2, self._grpc)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered(self, more: int) -> Callable[[], bool]:
        wanted = self.seen.total() + more
        return lambda: self.seen.total() >= wanted

    def _ask(self, client: Callable[[int], list[str]]) -> None:
        for _ in range(REQUESTS // 20):
            if self._stop.is_set() or time.monotonic() > self._deadline:
                return
            try:
                found = client(20)
            except (httpx.HTTPError, grpc.RpcError, OSError) as error:
                found = [repr(error)]
            with self._lock:
                self.seen.update(found)

    def _http1(self, requests: int) -> list[str]:
        return self._over_http(requests, http2=False)

    def _http2(self, requests: int) -> list[str]:
        return self._over_http(requests, http2=True)

    def _over_http(self, requests: int, *, http2: bool) -> list[str]:
        with self._secured.client(http2=http2, roots=self._roots) as client:
            row, headers = self._secured.lab.row(), RIGHT["key"](self._secured)
            return [str(client.post(PREDICT, json=row, headers=headers).status_code) for _ in range(requests)]

    def _grpc(self, requests: int) -> list[str]:
        request = ModelInferRequest(model_name="flights")
        for tensor in self._secured.lab.golden["request"]["inputs"]:
            one = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=[1])
            if tensor["datatype"] == "BYTES":
                one.contents.bytes_contents.append(tensor["data"][0].encode())
            else:
                one.contents.fp32_contents.append(np.nan if tensor["data"][0] is None else tensor["data"][0])
        metadata = tuple(RIGHT["key"](self._secured).items())
        with self._secured.channel(self._roots.read_bytes()) as channel:
            infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            for _ in range(requests):
                infer(request.SerializeToString(), metadata=metadata, timeout=30)
        return ["200"] * requests


def test_all_of_it_is_replaced_under_load_without_a_lost_request(secured: Secured, tmp_path: Path) -> None:
    pairs = []
    for number in range(3):
        pairs.append((tmp_path / f"{number}.crt", tmp_path / f"{number}.key"))
        tls.create_self_signed(*pairs[-1], ["127.0.0.1"])
    roots = tmp_path / "roots.pem"
    roots.write_text("".join(path.read_text() for path in (secured.certificate, *(crt for crt, _ in pairs))))
    row = secured.lab.row()
    with Load(secured, roots) as load, secured.client(roots=roots) as client:
        wait_for(load.answered(60), 30)

        def wait_for_status(wanted: int, **credentials: str) -> None:
            headers = {name.replace("_", "-"): value for name, value in credentials.items()}
            wait_for(lambda: client.post(PREDICT, json=row, headers=headers).status_code == wanted, 20)

        for number, (certificate, key) in enumerate(pairs):
            replace(secured.certificate, certificate.read_text(), 0o644)
            replace(secured.key, key.read_text())
            wait_for(lambda: secured.served() == secured.certificate.read_text(), 20)
            new = auth.add_api_key(secured.api_keys, f"new-{number}", ["infer"])
            wait_for_status(200, x_api_key=new)
            auth.revoke_api_key(secured.api_keys, f"new-{number}")
            wait_for_status(401, x_api_key=new)
            issuer = Issuer(f"new-{number}")
            write_jwks(secured.jwks, secured.issuer, issuer)
            wait_for_status(200, authorization=f"Bearer {issuer.token()}")
        wait_for(load.answered(60), 30)
    assert set(load.seen) == {"200"}, load.seen
    assert load.seen.total() > 120


def test_the_demo_asks_over_https_with_a_key_of_its_own(secured: Secured) -> None:
    asking = caller(secured.settings)
    assert asking.headers() == caller(secured.settings).headers()
    with secured.client() as client:
        wait_for(lambda: client.get("/v2/models/flights", headers=asking.headers()).status_code == 200, 20)
    request = secured.lab.golden["request"]
    for answer in (
        demo._ask_open_inference(asking, request),
        demo._ask_rows(asking, [secured.lab.row()]),
        demo._ask_grpc(asking, {"inputs": [{**t, "shape": [1], "data": t["data"][:1]} for t in request["inputs"]]}),
    ):
        assert np.isclose(answer.probability, secured.lab.expected()[0], rtol=1e-5)
    file = secured.settings.state_dir / "request.json"
    file.write_text(json.dumps(request))
    printed = demo._curl(asking, [secured.lab.row()], file) + "\n" + demo._grpc_by_python(asking, file)
    printed = printed.replace(".venv/bin/python", sys.executable)
    paste = ["bash", "-euo", "pipefail", "-c", printed]
    pasted = subprocess.run(paste, capture_output=True, text=True, timeout=60, check=False)
    assert pasted.returncode == 0, pasted.stderr
    assert pasted.stdout.count("HTTP/2 200") == 2
    assert 'name: "probability"' in pasted.stdout


def readyz(secured: Secured) -> str:
    status, _, body = post(secured.settings.metrics_port, "/readyz", None, method="GET")
    assert status == 200
    return body.decode()


@pytest.mark.parametrize("name", ["key", "api_keys", "jwks"])
def test_a_broken_file_leaves_the_old_one_in_force_and_is_shown(secured: Secured, name: str) -> None:
    path: Path = getattr(secured, name)
    right, mode, served = path.read_text(), path.stat().st_mode & 0o777, secured.served()
    replace(path, right[: len(right) // 2], mode)
    wait_for(lambda: f"there before stays in force: {path} is not usable: " in readyz(secured), 20)
    assert secured.served() == served
    with secured.client() as client:
        for credentials in RIGHT.values():
            assert client.post(PREDICT, json=secured.lab.row(), headers=credentials(secured)).status_code == 200
    assert f"{path} is not usable" in secured.log.read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "status", "--json"],
        env={**os.environ, **secured.settings.as_environment()},
        capture_output=True,
        check=True,
        timeout=60,
    )
    (warning,) = json.loads(shown.stdout)["warnings"]
    assert str(path) in warning
    replace(path, right, mode)
    wait_for(lambda: readyz(secured) == "ready\n", 20)


def test_no_credentials_are_in_any_log(secured: Secured) -> None:
    with secured.client() as client:
        token = with_token(secured)
        answer = client.post(PREDICT, json=secured.lab.row(), headers=token)
        client.post(PREDICT, json=secured.lab.row(), headers={"x-api-key": "sw_wrong-and-secret"})
        client.post(f"{PREDICT}?api_key=sw_wrong-and-secret", json=secured.lab.row())
    access = secured.settings.logs_dir / "access.log"
    request_id = answer.headers["x-request-id"]
    line = wait_for(lambda: [line for line in access.read_text().splitlines() if request_id in line], 20)[0]
    assert json.loads(line)["caller"] == "token:carol"
    wait_for(lambda: "/predictions" in access.read_text().splitlines()[-1], 20)
    private = secured.key.read_text().splitlines()[1]
    secrets = [*secured.keys.values(), token["authorization"].split()[1], "sw_wrong-and-secret", private]
    logs = [secured.log, *secured.settings.logs_dir.rglob("*.log*")]
    assert len(logs) > 3
    for log in logs:
        assert not [secret for secret in secrets if secret in log.read_text(errors="replace")], log
