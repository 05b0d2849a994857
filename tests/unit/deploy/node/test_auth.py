"""API keys, tokens and scopes: the files, and what the real Envoy does with those who ask."""

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.errors import EdgeFileInvalid
from deploy.node import auth
from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.envoy import PROTOCOL_HEADER, to_json
from deploy.node.layout import make_layout
from deploy.scopes import SCOPES, Scope
from deploy.settings import Settings
from handlers.answer import CALL_HEADER
from handlers.protocol.messages import SERVICE, ModelInferRequest
from model_store.files import write_atomically
from tests.unit.deploy.node.conftest import DIGESTS, let_go
from tests.unit.deploy.node.real_edge import Answer
from tests.unit.deploy.node.secured_edge import (
    Issuer,
    SecuredEdge,
    directory,
    replace,
    secured_edge,
    wait_for,
    write_jwks,
)

LENGTHS = (1, 54, 55, 56, 63, 64, 65, 118, 119, 120, 128, 256)
"""Of keys, around the ends of SHA-256's blocks; 256 is the longest that is looked at."""
PREDICT = "/predictions/flights/1"
Role = Literal["none"] | Scope
ROLES: tuple[Role, ...] = ("none", *SCOPES)


# The files.


def test_a_made_key_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    key = auth.add_api_key(path, "alice", ["feedback", "infer"])
    other = auth.add_api_key(path, "bob", ["explain"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert key != other
    assert key not in path.read_text()
    alice, bob = auth.read_api_keys(path)
    assert (alice.name, alice.scopes, bob.scopes) == ("alice", ("infer", "feedback"), ("explain",))
    assert alice.sha256 == hashlib.sha256(key.encode()).hexdigest()


def test_a_revoked_key_is_gone_and_the_last_one_too(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for name in ("alice", "bob"):
        auth.add_api_key(path, name, ["infer"])
    auth.revoke_api_key(path, "alice")
    assert [key.name for key in auth.read_api_keys(path)] == ["bob"]
    with pytest.raises(EdgeFileInvalid, match="it has no key 'alice'; it has: bob"):
        auth.revoke_api_key(path, "alice")
    auth.revoke_api_key(path, "bob")
    assert auth.read_api_keys(path) == ()


@pytest.mark.parametrize("name", ["", "a b", "-a", 'a"', "a\n", "ä", "a" * 65])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EdgeFileInvalid, match="a key's name has letters, digits"):
        auth.add_api_key(tmp_path / "keys.json", name, ["infer"])
    assert not (tmp_path / "keys.json").exists()


def test_a_name_is_there_once(tmp_path: Path) -> None:
    auth.add_api_key(tmp_path / "keys.json", "alice", ["infer"])
    with pytest.raises(EdgeFileInvalid, match="it has a key 'alice' already"):
        auth.add_api_key(tmp_path / "keys.json", "alice", ["infer"])


def test_of_keys_that_are_made_at_once_none_is_lost(tmp_path: Path) -> None:
    path, names = tmp_path / "keys.json", [f"n{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: auth.add_api_key(path, name, ["infer"]), names))
    assert sorted(key.name for key in auth.read_api_keys(path)) == names


def entry(**changes: object) -> dict[str, object]:
    return {"name": "alice", "sha256": "0" * 64, "scopes": ["infer"], **changes}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("{}", "keys: Field required"),
        (json.dumps({"keys": [entry(sha256="sw_secret")]}), r"keys\.0\.sha256: String should match"),
        (json.dumps({"keys": [entry(key="sw_secret")]}), r"keys\.0\.key: Extra inputs are not permitted"),
        (json.dumps({"keys": [entry(scopes=[])]}), r"keys\.0\.scopes: Tuple should have at least 1 item"),
        (json.dumps({"keys": [entry(scopes=["admin"])]}), "Input should be 'infer', 'explain' or 'feedback'"),
        (json.dumps({"keys": [entry(name='"}} os.exit()')]}), r"keys\.0\.name: String should match"),
        (json.dumps({"keys": [entry(), entry(sha256="1" * 64)]}), "every name may be there once; found twice: alice"),
        (json.dumps({"keys": [entry(), entry(name="bob")]}), "every sha256 may be there once"),
    ],
)
def test_a_list_of_keys_that_is_not_right_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys.json"
    replace(path, text)
    with pytest.raises(EdgeFileInvalid, match=words) as caught:
        auth.read_api_keys(path)
    assert "sw_secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620])
def test_a_list_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.json"
    replace(path, json.dumps({"keys": []}), mode)
    with pytest.raises(EdgeFileInvalid, match=f"its mode is {mode:04o}, so others can read or change it"):
        auth.read_api_keys(path)


def test_a_secret_of_kubernetes_may_be_read_by_our_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    replace(path, json.dumps({"keys": []}), 0o640)
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)  # root's file, and we are not root
    assert auth.read_api_keys(path) == ()


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeFileInvalid, match=r"nowhere\.json is not usable: it cannot be read: No such file"):
        auth.read_api_keys(tmp_path / "nowhere.json")


def rsa_key(bits: int) -> dict[str, str]:
    numbers = rsa.generate_private_key(65537, bits).public_key().public_numbers()
    n, e = (
        base64.urlsafe_b64encode(number.to_bytes(size)).decode().rstrip("=")
        for number, size in ((numbers.n, bits // 8), (numbers.e, 3))
    )
    return {"kty": "RSA", "n": n, "e": e}


def test_a_key_set_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    ed25519 = {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(b"\x01" * 32).decode()}
    replace(path, json.dumps({"keys": [Issuer().public, rsa_key(2048), ed25519]}), 0o644)
    assert auth.read_jwks(path) == path.read_text()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("{", "wanted is a JSON Web Key Set"),
        ([], "with at least one key"),
        ([5], r"keys\.0 is not a public key of type RSA, EC or OKP"),
        ([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}], r"keys\.0: "),
        ([{"kty": "RSA", "n": "AA"}], r"keys\.0 is not a public key"),
        ([Issuer().public, {"kty": "oct", "k": "c2VjcmV0"}], r"keys\.1: it can sign tokens"),
        ([{**Issuer().public, "d": "AA"}], r"keys\.0: it can sign tokens"),
        ([rsa_key(1024)], r"keys\.0: an RSA key needs 2048 bits; found 1024"),
    ],
)
def test_a_key_set_that_is_not_right_is_refused(tmp_path: Path, keys: Any, words: str) -> None:
    path = tmp_path / "jwks.json"
    replace(path, keys if isinstance(keys, str) else json.dumps({"keys": keys}))
    with pytest.raises(EdgeFileInvalid, match=words):
        auth.read_jwks(path)


# The real Envoy.


@dataclass(frozen=True)
class Asking:
    """One Envoy with keys and an issuer."""

    edge: SecuredEdge
    settings: Settings
    issuer: Issuer
    keys: Mapping[Scope, str]

    def ask(self, method: str, path: str, **headers: str) -> Answer:
        return self.edge.real.ask(method, path, b"{}", **headers)

    def as_(self, role: Role, method: str, path: str) -> Answer:
        return self.ask(method, path, **({"x_api_key": self.keys[role]} if role != "none" else {}))

    def call(self, method: str, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, str]:
        """Status and message of one gRPC call. What the server behind the edge answers means nothing."""
        request = ModelInferRequest(model_name="flights").SerializeToString()
        with grpc.insecure_channel(f"127.0.0.1:{self.settings.http_port}") as channel:
            unary: Any = channel.unary_unary(f"/{method}")
            try:
                unary(request, metadata=metadata, timeout=10)
            except grpc.RpcError as error:
                return error.code(), str(error.details())
        return grpc.StatusCode.OK, ""


@pytest.fixture(scope="module")
def asking(free_ports: Callable[[int], list[int]]) -> Iterator[Asking]:
    there = directory()
    api_keys, jwks, issuer = there / "keys.json", there / "jwks.json", Issuer()
    keys = {role: auth.add_api_key(api_keys, role, [role]) for role in SCOPES}
    # Keys of people's own making, of every length.
    found = json.loads(api_keys.read_text())
    for length in (*LENGTHS, LENGTHS[-1] + 1):
        found["keys"].append(entry(name=f"of-{length}", sha256=hashlib.sha256(own_key(length).encode()).hexdigest()))
    replace(api_keys, json.dumps(found))
    write_jwks(jwks, issuer)
    settings = Settings(
        state_dir=there,
        http_port=free_ports(1)[0],
        api_keys=api_keys,
        jwt_jwks=jwks,
        jwt_issuer="https://issuer.example",
        jwt_audience="shipway",
    )
    version = DesiredVersion(version=1, digest=DIGESTS[1], weight=100)
    with secured_edge(
        make_layout(there / "run"), settings, DesiredEndpoint(model="flights", versions=(version,))
    ) as edge:
        yield Asking(edge, settings, issuer, keys)
    let_go(there / "run")
    shutil.rmtree(there)


def own_key(length: int) -> str:
    return "".join(chr(33 + (7 * at + length) % 90) for at in range(length)).replace(",", "-")


@pytest.mark.parametrize("length", LENGTHS)
def test_a_key_is_known_by_its_sha256(asking: Asking, length: int) -> None:
    key = own_key(length)
    assert asking.ask("POST", PREDICT, x_api_key=key).status == 200
    changed = key[:-1] + ("x" if key[-1] != "x" else "y")
    assert asking.ask("POST", PREDICT, x_api_key=changed).status == 401


def test_a_key_that_is_too_long_is_not_looked_at(asking: Asking) -> None:
    assert asking.ask("POST", PREDICT, x_api_key=own_key(LENGTHS[-1] + 1)).status == 401


def test_a_key_may_come_as_a_bearer_token(asking: Asking) -> None:
    assert asking.ask("POST", PREDICT, authorization="Bearer " + asking.keys["infer"]).status == 200
    assert asking.ask("POST", PREDICT, authorization="bearer " + asking.keys["infer"]).status == 200


@pytest.mark.parametrize(
    ("headers", "words", "error"),
    [
        ({}, "credentials are needed; send an API key in x-api-key or a token in authorization: Bearer", ""),
        ({"authorization": "Basic YTpi"}, "credentials are needed", ""),
        ({"authorization": "Bearer"}, "credentials are needed", ""),
        ({"x_api_key": "wrong"}, "the API key is not one of those that this node knows", "invalid_token"),
        ({"x_api_key": ""}, "the API key is not one of those that this node knows", "invalid_token"),
        ({"authorization": "Bearer wrong"}, "the API key is not one of those", "invalid_token"),
        ({"authorization": "Bearer a.b.c"}, "the token is not accepted: Jwt", "invalid_token"),
        ({PROTOCOL_HEADER: "oip_grpc", "x_shipway_passed": "true"}, "credentials are needed", ""),
    ],
)
def test_without_right_credentials_nobody_is_let_in(
    asking: Asking, headers: dict[str, str], words: str, error: str
) -> None:
    answer = asking.ask("POST", PREDICT, **headers)
    assert answer.status == 401
    assert words in json.loads(answer.body)["error"]
    assert answer.headers["www-authenticate"] == 'Bearer realm="shipway"' + (f', error="{error}"' if error else "")
    assert "x-shipway-version" not in answer.headers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"scope": None, "scp": ["explain", "infer"]}, ""),
        ({"aud": ["other", "shipway"]}, ""),
        ({"sub": None}, ""),
        ({"exp": int(time.time()) - 120}, "Jwt is expired"),
        ({"nbf": int(time.time()) + 100_000}, "Jwt not yet valid"),
        ({"exp": None}, "Jwt"),
        ({"iss": "https://other.example"}, "Jwt issuer is not configured"),
        ({"aud": "other"}, "Audiences in Jwt are not allowed"),
        ({"aud": None}, "Audiences in Jwt are not allowed"),
    ],
)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_token_must_be_of_the_issuer_for_us_and_of_now(
    asking: Asking, scheme: str, changes: dict[str, object], words: str
) -> None:
    answer = asking.ask("POST", PREDICT, authorization=f"{scheme} {asking.issuer.token(**changes)}")
    assert answer.status == (401 if words else 200)
    assert not words or f"the token is not accepted: {words}" in json.loads(answer.body)["error"]


def test_a_token_that_others_have_signed_or_nobody_is_refused(asking: Asking) -> None:
    right = asking.issuer.token()
    head, claims, signature = right.split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    more = base64.urlsafe_b64encode(json.dumps({"scope": "infer explain"}).encode()).decode().rstrip("=")
    for forged in (
        Issuer().token(),
        Issuer(key_id="2").token(),
        f"{unsigned}.{claims}.",
        f"{head}.{more}.{signature}",
        right[:-8] + "AAAAAAAA",
    ):
        assert asking.ask("POST", PREDICT, authorization=f"Bearer {forged}").status == 401


def test_a_token_that_was_right_expires(asking: Asking) -> None:
    # Envoy remembers tokens that it has verified. Clocks may differ by a minute.
    token = asking.issuer.token(exp=int(time.time()) - 57)

    def status() -> int:
        return asking.ask("POST", PREDICT, authorization=f"Bearer {token}").status

    assert [status(), status()] == [200, 200]
    wait_for(lambda: status() == 401)


def test_a_token_in_the_query_is_none_and_is_not_logged(asking: Asking) -> None:
    token = asking.issuer.token()
    answer = asking.ask("POST", f"{PREDICT}?access_token={token}")
    assert answer.status == 401
    log_line(asking, answer)
    assert token not in asking.edge.real.edge.access_log.read_text()


@pytest.mark.parametrize("scope", [None, "", "admin", 5, {"infer": True}, ["Infer"], "infer.all"])
def test_a_token_without_the_scope_is_forbidden(asking: Asking, scope: object) -> None:
    answer = asking.ask("POST", PREDICT, authorization=f"Bearer {asking.issuer.token(scope=scope)}")
    assert answer.status == 403
    assert "the scope infer is needed" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/v2/health/live", "none"),
        ("GET", "/v2/health/ready", "none"),
        ("GET", "/v2", "infer"),
        ("GET", "/v2/models/flights", "infer"),
        ("GET", "/v2/models/flights/ready", "infer"),
        ("GET", "/v2/health/ready/../../models/flights", "infer"),
        ("POST", "/predictions/flights", "infer"),
        ("POST", "/predictions/flights/1", "infer"),
        ("POST", "/v2/models/flights/infer", "infer"),
        ("POST", "/v2/models/flights/versions/1/infer", "infer"),
        ("POST", "/predictions/explain", "infer"),
        ("POST", "/predictions/feedback", "infer"),
        ("POST", "/explanations/flights", "explain"),
        ("POST", "/explanations/flights/1", "explain"),
        ("POST", "/v2/models/flights/explain", "explain"),
        ("POST", "/v2/models/flights/versions/1/explain", "explain"),
        ("POST", "/explanations/../predictions/flights", "infer"),
        ("POST", "/feedback", "feedback"),
        ("POST", "/nowhere", "infer"),
    ],
)
def test_every_path_needs_its_scope(asking: Asking, method: str, path: str, needed: str) -> None:
    for role in ROLES:
        answer = asking.as_(role, method, path)
        if needed in ("none", role):
            assert answer.status in (200, 404), (role, answer)  # 404 where no route is
        elif role == "none":
            assert answer.status == 401
        else:
            assert answer.status == 403
            words = f"the scope {needed} is needed; these credentials have: {role}"
            assert json.loads(answer.body)["error"] == words
            challenge = f'Bearer realm="shipway", error="insufficient_scope", scope="{needed}"'
            assert answer.headers["www-authenticate"] == challenge


def test_credentials_stay_at_the_edge(asking: Asking) -> None:
    token = asking.issuer.token()
    for path in (PREDICT, "/v2/models/flights", "/v2/health/live"):
        for headers in (
            {"x_api_key": asking.keys["infer"]},
            {"authorization": f"Bearer {token}"},
            {"x_api_key": asking.keys["infer"], "authorization": "Basic YTpi"},
        ):
            seen = asking.ask("GET" if path != PREDICT else "POST", path, **headers).seen["headers"]
            assert "x-api-key" not in seen
            assert not {asking.keys["infer"], token, "YTpi"} & {part for each in seen.values() for part in each.split()}


def test_forged_headers_of_ours_open_nothing_and_go_nowhere(asking: Asking) -> None:
    forged = dict.fromkeys((CALL_HEADER, PROTOCOL_HEADER, "x-shipway-version", "x-shipway-auth"), "forged")
    assert asking.ask("POST", PREDICT, **forged).status == 401
    answer = asking.ask("POST", PREDICT, x_api_key=asking.keys["infer"], **forged)
    assert answer.status == 200
    assert answer.headers["x-shipway-version"] == "1"
    seen = {name for name, value in answer.seen["headers"].items() if value == "forged"}
    assert seen <= {"x-shipway-auth"}  # a name that means nothing


def log_line(asking: Asking, answer: Answer) -> dict[str, Any]:
    log, request_id = asking.edge.real.edge.access_log, answer.headers["x-request-id"]
    lines: list[str] = wait_for(lambda: [line for line in log.read_text().splitlines() if request_id in line])
    found: dict[str, Any] = json.loads(lines[0])
    return found


def test_the_access_log_says_who_and_never_how(asking: Asking) -> None:
    token = asking.issuer.token(sub='carol"\n{}')
    for headers, caller in (
        ({"x_api_key": asking.keys["infer"]}, "key:infer"),
        ({"x_api_key": asking.keys["explain"]}, "key:explain"),  # 403
        ({"authorization": f"Bearer {token}"}, 'token:carol"\n{}'),
        ({"authorization": f"Bearer {asking.issuer.token(sub='x' * 1000)}"}, "token:" + "x" * 128),
        ({"x_api_key": "wrong-and-secret"}, None),
        ({}, None),
    ):
        assert log_line(asking, asking.ask("POST", PREDICT, **headers))["caller"] == caller
    text = asking.edge.real.edge.access_log.read_text()
    assert not [secret for secret in (*asking.keys.values(), token, "wrong-and-secret") if secret in text]


def test_grpc_has_its_own_statuses_for_it(asking: Asking) -> None:
    infer = f"{SERVICE}/ModelInfer"
    key = {role: ("x-api-key", asking.keys[role]) for role in SCOPES}
    status = grpc.StatusCode
    for credentials, code, words in (
        ((), status.UNAUTHENTICATED, "credentials are needed; send an API key"),
        ((("authorization", "Bearer wrong"),), status.UNAUTHENTICATED, "the API key is not one of those"),
        (
            (("authorization", f"Bearer {asking.issuer.token(exp=1)}"),),
            status.UNAUTHENTICATED,
            "the token is not accepted: Jwt is expired",
        ),
        ((key["explain"],), status.PERMISSION_DENIED, "the scope infer is needed; these credentials have: explain"),
    ):
        found, details = asking.call(infer, *credentials)
        assert found is code
        assert details.startswith(words)
    assert asking.call(f"{SERVICE}/ModelReady")[0] is status.UNAUTHENTICATED
    # These come through.
    for code, _ in (
        asking.call(infer, key["infer"]),
        asking.call(f"{SERVICE}/ServerLive"),
        asking.call(f"{SERVICE}/ServerReady"),
        asking.call("grpc.health.v1.Health/Check"),
    ):
        assert code not in (status.UNAUTHENTICATED, status.PERMISSION_DENIED)


def test_an_error_in_the_script_lets_nobody_in(asking: Asking) -> None:
    """Last in this file: it breaks the edge, and mends it."""
    file = auth.decisions_file(asking.edge.real.layout.envoy)
    right = json.loads(file.read_bytes())
    wrong = json.loads(file.read_bytes())
    source = wrong["resources"][0]["typed_config"]["default_source_code"]
    source["inline_string"] = 'function envoy_on_request(handle) error("a fault of ours") end'
    wrong["version_info"] = "wrong"
    write_atomically(file, to_json(wrong))
    wait_for(lambda: asking.as_("infer", "POST", PREDICT).status == 403)
    write_atomically(file, to_json(right))
    wait_for(lambda: asking.as_("infer", "POST", PREDICT).status == 200)
