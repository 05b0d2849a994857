from pathlib import Path

import pytest

from deploy.errors import InvalidSettings
from deploy.settings import Settings, read_settings, variable


def test_directories_follow_the_state_directory(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert settings.run_dir == tmp_path / "run"
    assert settings.signing_key == tmp_path / "keys/signing.pem"
    assert settings.trust_dir == tmp_path / "trust"
    assert settings.archives_dir == tmp_path / "archives"
    assert settings.desired_file == tmp_path / "node/desired.json"


def test_relative_directories_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(run_dir=Path("a/../short"))
    assert settings.state_dir == tmp_path / ".shipway"
    assert settings.run_dir == tmp_path / "short"


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPWAY_MLFLOW_PORT", "5999")
    settings = read_settings()
    assert settings.mlflow_uri == "http://127.0.0.1:5999"
    assert settings.mlflow_is_local


def test_another_mlflow_is_not_ours() -> None:
    assert not Settings(mlflow_uri="http://mlflow.example:5000").mlflow_is_local


def test_another_prometheus_is_not_ours() -> None:
    assert Settings(prometheus_port=9999).prometheus_is_local
    assert not Settings(prometheus_url="https://prometheus.example").prometheus_is_local
    with pytest.raises(ValueError, match="prometheus_url"):
        Settings(prometheus_url="file:///etc/passwd")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().http_port = 1  # type: ignore[misc]


def test_unknown_variable_is_refused_with_the_allowed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPWAY_HTPP_PORT", "1")
    with pytest.raises(InvalidSettings, match=r"SHIPWAY_HTPP_PORT is not a setting\n  allowed are .*SHIPWAY_HTTP_PORT"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("http_port", "eighty", "SHIPWAY_HTTP_PORT=eighty: Input should be a valid integer"),
        ("http_port", "70000", "SHIPWAY_HTTP_PORT=70000: Input should be less than or equal to 65535"),
        (
            "http_port",
            "9090",
            "found SHIPWAY_ALERTMANAGER_PORT=9093, SHIPWAY_COURIER_PORT=8083, SHIPWAY_HTTP_PORT=9090",
        ),
        ("host", "example.org", "SHIPWAY_HOST=example.org: 'example.org' does not appear to be an IPv4"),
        (
            "tls_key",
            "key.pem",
            "SHIPWAY_TLS_CERTIFICATE, SHIPWAY_TLS_KEY go together; missing: SHIPWAY_TLS_CERTIFICATE",
        ),
        ("feedback_store", "mysql://u@h/d", "SHIPWAY_FEEDBACK_STORE must begin with postgresql://, or be left out"),
        ("feedback_keep_hours", "0", "SHIPWAY_FEEDBACK_KEEP_HOURS=0: Input should be greater than 0"),
        ("jwt_issuer", "me", "go together; missing: SHIPWAY_JWT_JWKS, SHIPWAY_JWT_AUDIENCE"),
        ("grafana_url", "grafana:3000", "SHIPWAY_GRAFANA_URL must be http:// or https:// and a host"),
        ("grafana_prometheus_url", "http://", "SHIPWAY_GRAFANA_PROMETHEUS_URL must be http:// or https:// and a host"),
        ("drain_seconds", "-1", "SHIPWAY_DRAIN_SECONDS=-1: Input should be greater than or equal to 0"),
    ],
)
def test_bad_value_is_one_problem_in_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(InvalidSettings) as caught:
        read_settings()
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("10.1.2.3", "http://10.1.2.3:8080"),
    ],
)
def test_urls_are_those_that_clients_here_can_use(host: str, url: str) -> None:
    assert Settings(host=host).http_url == url


def test_url_says_whether_the_node_speaks_tls() -> None:
    assert Settings(tls_certificate=Path("a"), tls_key=Path("b")).http_url == "https://127.0.0.1:8080"


def test_password_in_an_address_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPWAY_GRAFANA_URL", "http://admin:secret@grafana:3000")
    with pytest.raises(InvalidSettings, match="with no user or password") as caught:
        read_settings()
    assert "secret" not in str(caught.value)


TLS = {"tls_certificate": Path("a"), "tls_key": Path("b")}
KEYS = {"api_keys": Path("c")}
TOKENS = {"jwt_jwks": Path("d"), "jwt_issuer": "e", "jwt_audience": "f"}


@pytest.mark.parametrize(
    ("host", "given", "lacking"),
    [
        ("127.0.0.1", {}, ""),
        ("::1", {}, ""),
        ("0.0.0.0", {}, "TLS (SHIPWAY_TLS_CERTIFICATE, SHIPWAY_TLS_KEY) and authentication (SHIPWAY_API_KEYS"),
        ("10.1.2.3", TLS, "without authentication (SHIPWAY_API_KEYS"),
        ("::", KEYS | TOKENS, "without TLS (SHIPWAY_TLS_CERTIFICATE, SHIPWAY_TLS_KEY);"),
        ("0.0.0.0", TLS | KEYS, ""),
        ("0.0.0.0", TLS | TOKENS, ""),
        ("0.0.0.0", {"insecure": True}, ""),
    ],
)
def test_beyond_loopback_only_with_tls_and_authentication_or_when_told(
    host: str, given: dict[str, object], lacking: str
) -> None:
    settings = Settings.model_validate({"host": host, **given})
    if not lacking:
        settings.refuse_exposed()
        return
    with pytest.raises(InvalidSettings) as caught:
        settings.refuse_exposed()
    assert lacking in str(caught.value)
    assert "--insecure" in str(caught.value)


def test_metrics_stay_on_loopback_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPWAY_HOST", "0.0.0.0")
    assert read_settings().metrics_host == "127.0.0.1"
    monkeypatch.setenv("SHIPWAY_METRICS_HOST", "10.1.2.3")
    assert read_settings().metrics_url == "http://10.1.2.3:8082"


def test_empty_variable_leaves_off_what_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPWAY_API_KEYS", "")
    assert not read_settings().authenticates


def test_a_child_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parent = Settings(state_dir=tmp_path, http_port=1234, insecure=True, drain_seconds=1.5, api_keys=tmp_path / "keys")
    monkeypatch.setenv("SHIPWAY_JWT_ISSUER", "of the shell, and not the parent's")
    for name, value in parent.as_environment().items():
        monkeypatch.setenv(name, value)
    assert read_settings() == parent


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "postgres://me@host/db?password=secret"])
def test_password_in_a_url_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SHIPWAY_FEEDBACK_STORE", url)
    with pytest.raises(InvalidSettings, match=r"must hold no password: use \?passfile=FILE, or PGPASSWORD") as raised:
        read_settings()
    assert "secret" not in str(raised.value)


def test_feedback_is_kept_in_a_file_unless_nodes_share_a_server() -> None:
    assert Settings().feedback_store is None
    url = "postgresql://me@host/db?passfile=/run/secrets/pgpass"
    assert Settings(feedback_store=url).feedback_store == url
