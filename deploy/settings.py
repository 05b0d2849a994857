"""The one object that holds every setting, read at the edges (command line, launcher) and passed down in parts."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from deploy.errors import InvalidSettings

PREFIX = "SHIPWAY_"

Port = Annotated[int, Field(ge=1, le=65535)]


def _below(directory: str, *parts: str) -> dict[str, Any]:
    """Arguments of a Field whose default lies below another setting's directory, with the words to document it."""
    return {
        "default_factory": lambda data: data[directory].joinpath(*parts),
        "json_schema_extra": {"default_in_words": "/".join([f"<{directory}>", *parts])},
    }


def _off() -> dict[str, Any]:
    """Arguments of a Field that is off unless it is set."""
    return {"default": None, "json_schema_extra": {"default_in_words": "none"}}


class StrictEnvironment(EnvSettingsSource):
    """The environment, refusing SHIPWAY_* variables that no setting has: a typing error must not pass in silence."""

    def __call__(self) -> dict[str, Any]:
        allowed = sorted(variable(name) for name in self.settings_cls.model_fields)
        unknown = sorted(name.upper() for name in self.env_vars if name.upper().startswith(PREFIX))
        problems = [f"{name} is not a setting" for name in unknown if name not in allowed]
        if problems:
            raise InvalidSettings([*problems, "allowed are " + ", ".join(allowed)])
        return super().__call__()


class Settings(BaseSettings):
    """Every setting, read from SHIPWAY_* variables or given as arguments (which win). Directories become absolute."""

    # An empty variable switches off what is off by default.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True, env_parse_none_str=""
    )

    state_dir: Path = Field(
        default=Path(".shipway"),
        description="Everything that Shipway keeps: archives, keys, databases, logs, sockets.",
    )
    host: str = Field(
        default="127.0.0.1",
        description=(
            "The IP address where the node listens; beyond loopback it wants TLS and authentication, or `insecure`."
        ),
    )
    http_port: Port = Field(default=8080, description="The node's port for HTTP/1.1, HTTP/2 and gRPC.")
    metrics_host: str = Field(
        default="127.0.0.1",
        description="The IP address of the metrics port: plain HTTP to whoever reaches it, with names and numbers.",
    )
    metrics_port: Port = Field(default=8082, description="The node's port for /livez, /readyz, /actual and /metrics.")
    peer_port: Port | None = Field(
        **_off(),
        description=(
            "The node's port for the edges of other nodes, which ask there for the version that it `serves`; with the "
            "TLS and the authentication of the other ports."
        ),
    )
    mlflow_port: Port = Field(default=5000, description="The port of the MLflow server that `shipway up` starts.")
    prometheus_port: Port = Field(default=9090, description="The port of the Prometheus that `shipway up` starts.")
    alertmanager_port: Port = Field(default=9093, description="The port of the Alertmanager that `shipway up` starts.")
    courier_port: Port = Field(
        default=8083,
        description="The port on loopback where `shipway courier` takes Alertmanager's alerts.",
    )
    mlflow_uri: str = Field(
        default_factory=lambda data: f"http://127.0.0.1:{data['mlflow_port']}",
        json_schema_extra={"default_in_words": "http://127.0.0.1:<mlflow_port>"},
        description="The MLflow tracking server to use; `shipway up` starts one only where this is left as it is.",
    )
    prometheus_url: str = Field(
        default_factory=lambda data: f"http://127.0.0.1:{data['prometheus_port']}",
        json_schema_extra={"default_in_words": "http://127.0.0.1:<prometheus_port>"},
        pattern=r"^https?://",
        description="The Prometheus that is asked; `shipway up` starts one only where this is left as it is.",
    )
    run_dir: Path = Field(
        **_below("state_dir", "run"),
        description="Unix sockets, mode 0700; make it short, because a socket's path is limited to 107 bytes.",
    )
    signing_key: Path = Field(
        **_below("state_dir", "keys", "signing.pem"), description="The private Ed25519 key that signs archives."
    )
    trust_dir: Path = Field(
        **_below("state_dir", "trust"), description="The public keys whose signatures the node accepts, one file each."
    )
    trusted_keys: str | None = Field(
        **_off(),
        description="Public keys in PEM, one after another, trusted by the node and by `fetch` beside `trust_dir`.",
    )
    routing_dir: Path | None = Field(
        **_off(),
        description=(
            "Where `release/routing.json` says which other version, on which nodes, gets a share of the requests for "
            "the one that this node `serves`, and `rollout/routing.json` how much of them. A replaced file is taken up."
        ),
    )
    archives_dir: Path = Field(
        **_below("state_dir", "archives"), description="Where archives and their signatures are written and looked for."
    )
    serves: str | None = Field(
        **_off(),
        description=(
            'The one version that the node serves, whatever else is asked for, in JSON: `{"model": "flights", '
            '"version": 7, "digest": "sha256:…"}`; optional are `explain` (true) and `handler` (`workers`, '
            "`batchSize`, `responseTimeoutSeconds`, `maxQueue`, where not as packaged)."
        ),
    )
    tls_certificate: Path | None = Field(
        **_off(),
        description="The certificate and its chain in PEM; the node speaks HTTPS. A replaced file is taken up.",
    )
    tls_key: Path | None = Field(
        **_off(), description="The private key of `tls_certificate` in PEM, mode 0600. A replaced file is taken up."
    )
    api_keys: Path | None = Field(
        **_off(),
        description="The list of API keys, which then are asked for (`shipway keys api`). A replaced file is taken up.",
    )
    jwt_jwks: Path | None = Field(
        **_off(),
        description="The public keys (JWKS) of the issuer whose JWTs are accepted. A replaced file is taken up.",
    )
    jwt_issuer: str | None = Field(**_off(), description="The issuer (`iss`) that a JWT must have.")
    jwt_audience: str | None = Field(**_off(), description="The audience (`aud`) that a JWT must be for.")
    monitoring_config: Path | None = Field(
        **_off(),
        description="A YAML file with objectives and thresholds other than the defaults (see monitoring/config.py).",
    )
    rollout_config: Path | None = Field(
        **_off(),
        description="A YAML file with steps and limits of rollouts other than the defaults (deploy/rollout/README.md).",
    )
    helm_release: str | None = Field(
        **_off(),
        pattern=r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$",
        description="The Helm release whose versions are rolled out, instead of those of the node of this machine.",
    )
    helm_namespace: str | None = Field(
        **_off(),
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="The namespace of `helm_release`; without it that of the current context.",
    )
    helm_chart: Path | None = Field(**_off(), description="The chart of `helm_release`; without it the one shipped.")
    helm: str = Field(default="helm", description="The program helm: 3.14 or newer, or 4.")
    grafana_url: str | None = Field(**_off(), description="The start page of the Grafana that gets the dashboards.")
    grafana_token_file: Path | None = Field(
        **_off(), description="The token of a Grafana service account with the role Admin, in a file of mode 0600."
    )
    grafana_prometheus_url: str = Field(
        default_factory=lambda data: data["prometheus_url"],
        json_schema_extra={"default_in_words": "<prometheus_url>"},
        description="Where that Grafana finds Prometheus.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="The largest request body that the node accepts, in bytes."
    )
    request_timeout_seconds: float = Field(
        default=30.0, gt=0, description="The longest time that one request may take at the node."
    )
    notice_seconds: float = Field(
        default=0.0,
        ge=0,
        description=(
            "How long a node that was told to stop takes connections at least, whose clients it tells to reconnect: "
            "for those who learn of its end late, as in Kubernetes."
        ),
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="How long a node that was told to stop waits for requests in flight."
    )
    feedback_store: str | None = Field(
        **_off(),
        description=(
            "The PostgreSQL where nodes together keep predictions for their labels, `postgresql://user@host/database`; "
            "without it each keeps its own in SQLite. A password stands in the file that `?passfile=` names, or for "
            "`shipway node` in PGPASSWORD."
        ),
    )
    feedback_keep_hours: float = Field(
        default=168.0, gt=0, le=100_000, description="How long a prediction is kept for labels that may come."
    )
    feedback_keep_rows: int = Field(
        default=10_000_000,
        ge=1,
        description="The most predicted rows that are kept, of 20 bytes each; the oldest go first.",
    )
    capture_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The share of answered requests whose inputs are kept here, for `shipway plan`; 0 is none.",
    )
    capture_mask: str | None = Field(
        **_off(),
        description=(
            "Inputs (of a table its columns), with commas between them, whose values are never kept: "
            "the golden set's first row stands in for them."
        ),
    )
    capture_mib: int = Field(
        default=256,
        ge=1,
        description="The most room that all kept requests together may take, in MiB; the oldest go first.",
    )
    capture_keep_hours: float = Field(default=24.0, gt=0, le=100_000, description="How long a request is kept.")
    jvm_heap_mib: int = Field(default=512, ge=128, description="The largest heap of TorchServe's JVM, in MiB.")
    insecure: bool = Field(
        default=False, description="Allow an address beyond loopback without TLS or without authentication."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the four names are pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, StrictEnvironment(settings_cls)

    @field_validator("*")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        # Children run in other working directories. normpath and not resolve: a symbolic link stays the user's choice.
        return Path(os.path.normpath(value.expanduser().absolute())) if isinstance(value, Path) else value

    @field_validator("host", "metrics_host")
    @classmethod
    def _is_an_address(cls, host: str) -> str:
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))

    @model_validator(mode="after")
    def _grafana_is_a_web_address(self) -> Self:
        for name in ("grafana_url", "grafana_prometheus_url"):
            parts = urlsplit(getattr(self, name) or "http://none")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
                # What was found is not repeated: it may hold a password.
                raise ValueError(f"{variable(name)} must be http:// or https:// and a host, with no user or password")
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = {name: getattr(self, name) for name in sorted(type(self).model_fields) if name.endswith("_port")}
        ports = {name: port for name, port in ports.items() if port is not None}
        if len(set(ports.values())) < len(ports):
            found = ", ".join(f"{variable(name)}={port}" for name, port in ports.items())
            raise ValueError(f"each port must be used once; found {found}")
        return self

    @model_validator(mode="after")
    def _together(self) -> Self:
        for names in (("tls_certificate", "tls_key"), ("jwt_jwks", "jwt_issuer", "jwt_audience")):
            missing = [variable(name) for name in names if getattr(self, name) is None]
            if missing and len(missing) < len(names):
                raise ValueError(f"{', '.join(map(variable, names))} go together; missing: {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _for_one_version(self) -> Self:
        alone = [variable(name) for name in ("peer_port", "routing_dir") if getattr(self, name) is not None]
        if alone and self.serves is None:
            raise ValueError(f"{' and '.join(alone)}: only for a node with the one version of {variable('serves')}")
        return self

    @model_validator(mode="after")
    def _store_is_postgresql(self) -> Self:
        # Here and not at the field, whose value would stand in the message, and may hold a password.
        if self.feedback_store is None:
            return self
        url = urlsplit(self.feedback_store)
        if url.scheme not in ("postgresql", "postgres"):
            raise ValueError("SHIPWAY_FEEDBACK_STORE must begin with postgresql://, or be left out for SQLite")
        if url.password is not None or "password" in parse_qs(url.query):
            raise ValueError("SHIPWAY_FEEDBACK_STORE must hold no password: use ?passfile=FILE, or PGPASSWORD")
        return self

    @property
    def has_tls(self) -> bool:
        return self.tls_certificate is not None

    @property
    def authenticates(self) -> bool:
        return self.api_keys is not None or self.jwt_jwks is not None

    @property
    def client_host(self) -> str:
        """The address under which this machine itself reaches the node, in brackets if it is an IPv6 one."""
        return _reachable(self.host)

    @property
    def http_url(self) -> str:
        return f"{'https' if self.has_tls else 'http'}://{self.client_host}:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"{self.client_host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{_reachable(self.metrics_host)}:{self.metrics_port}"

    @property
    def alertmanager_url(self) -> str:
        return f"http://127.0.0.1:{self.alertmanager_port}"

    @property
    def mlflow_is_local(self) -> bool:
        """Whether the tracking server is the one that `shipway up` starts."""
        return self.mlflow_uri == f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def prometheus_is_local(self) -> bool:
        """Whether the Prometheus that is asked is the one that `shipway up` starts."""
        return self.prometheus_url == f"http://127.0.0.1:{self.prometheus_port}"

    @property
    def mlflow_dir(self) -> Path:
        return self.state_dir / "mlflow"

    @property
    def prometheus_dir(self) -> Path:
        return self.state_dir / "prometheus"

    @property
    def alertmanager_dir(self) -> Path:
        return self.state_dir / "alertmanager"

    @property
    def reports_dir(self) -> Path:
        return self.state_dir / "reports"

    @property
    def rollouts_dir(self) -> Path:
        """The ledgers."""
        return self.state_dir / "rollouts"

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def node_dir(self) -> Path:
        return self.state_dir / "node"

    @property
    def default_api_keys(self) -> Path:
        """Where `shipway keys api` writes when no setting says where."""
        return self.state_dir / "keys" / "api_keys.json"

    @property
    def default_tls_certificate(self) -> Path:
        return self.state_dir / "keys" / "tls.crt"

    @property
    def default_tls_key(self) -> Path:
        return self.state_dir / "keys" / "tls.key"

    @property
    def feedback_file(self) -> Path:
        """Where this node keeps predictions and labels when it shares no PostgreSQL."""
        return self.node_dir / "feedback.sqlite3"

    @property
    def courier_url(self) -> str:
        return f"http://127.0.0.1:{self.courier_port}"

    @property
    def courier_token(self) -> Path:
        """The bearer token that `shipway courier` wants from Alertmanager; made by it, mode 0600."""
        return self.state_dir / "keys" / "courier.token"

    @property
    def capture_dir(self) -> Path:
        """Where captured requests lie."""
        return self.state_dir / "capture"

    @property
    def capture_mask_names(self) -> tuple[str, ...]:
        names = (name.strip() for name in (self.capture_mask or "").split(","))
        return tuple(name for name in names if name)

    @property
    def desired_file(self) -> Path:
        return self.node_dir / "desired.json"

    @property
    def actual_file(self) -> Path:
        return self.node_dir / "actual.json"

    @property
    def disagreements_file(self) -> Path:
        """Where this node says which copied requests its two versions answered differently."""
        return self.node_dir / "disagreements.json"

    def as_environment(self) -> dict[str, str]:
        """The variables that give a child process exactly these settings, whatever its own environment says."""
        values = {name: getattr(self, name) for name in sorted(type(self).model_fields)}
        return {variable(name): "" if value is None else str(value) for name, value in values.items()}

    def refuse_exposed(self) -> None:
        """Raise InvalidSettings if the node would listen beyond loopback without TLS and authentication, untold."""
        if ipaddress.ip_address(self.host).is_loopback or self.insecure:
            return
        missing = {
            "TLS (SHIPWAY_TLS_CERTIFICATE, SHIPWAY_TLS_KEY)": self.has_tls,
            "authentication (SHIPWAY_API_KEYS, or SHIPWAY_JWT_JWKS and its like)": self.authenticates,
        }
        lacks = " and ".join(what for what, there in missing.items() if not there)
        if lacks:
            problem = f"SHIPWAY_HOST={self.host} would offer the node beyond this machine without {lacks}; "
            problem += "set that up, use a loopback address, or say --insecure (SHIPWAY_INSECURE=true)"
            raise InvalidSettings([problem])


def read_settings(**given: object) -> Settings:
    """Settings from the environment, and those `given`, which win.

    Raises:
        InvalidSettings: names every variable that is unknown or has a value that is not allowed, with what was found.
    """
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        # A default that depends on a refused setting was never made: that is not a second problem.
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        raise InvalidSettings([_in_words(dict(problem)) for problem in problems]) from error


def _reachable(host: str) -> str:
    """How this machine itself reaches what listens at `host`."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return str(address) if address.version == 4 else f"[{address}]"


def variable(name: str) -> str:
    """The environment variable of the setting `name`."""
    return PREFIX + name.upper()


def _in_words(problem: dict[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"{variable(str(problem['loc'][0]))}={problem['input']}: {message}"
