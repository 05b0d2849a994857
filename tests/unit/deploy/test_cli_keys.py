"""`shipway keys`, and the refusal to be open to everybody."""

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.errors import EdgeFileInvalid, InvalidSettings
from deploy.node import launcher, tls


def shipway(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={f"SHIPWAY_{k.upper()}": v for k, v in environment.items()})


@pytest.mark.parametrize("configured", [True, False])
def test_a_key_is_printed_once_and_its_digest_kept(state_dir: Path, configured: bool) -> None:
    path = state_dir / ("mine.json" if configured else "keys/api_keys.json")
    environment = {"state_dir": str(state_dir)} | ({"api_keys": str(path)} if configured else {})
    made = shipway("keys", "api", "alice", "--scope", "infer", "--scope", "explain", **environment)
    assert made.exit_code == 0
    assert ("SHIPWAY_API_KEYS=" in made.stderr) is not configured
    key = made.stdout.strip()
    (entry,) = json.loads(path.read_text())["keys"]
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert entry == {"name": "alice", "sha256": digest, "scopes": ["infer", "explain"]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert isinstance(shipway("keys", "api", "alice", "--scope", "infer", **environment).exception, EdgeFileInvalid)
    assert shipway("keys", "revoke", "alice", **environment).exit_code == 0
    assert json.loads(path.read_text()) == {"keys": []}


@pytest.mark.parametrize("arguments", [[], ["--scope", "admin"]])
def test_a_key_needs_a_scope_that_there_is(state_dir: Path, arguments: list[str]) -> None:
    result = shipway("keys", "api", "alice", *arguments, state_dir=str(state_dir))
    assert result.exit_code == 2
    assert "infer" in result.stderr or "--scope" in result.stderr


def test_a_certificate_for_trying_out_can_be_used(state_dir: Path) -> None:
    for _ in range(2):  # the second replaces the first
        made = shipway("keys", "tls", "--name", "node.example", state_dir=str(state_dir))
        assert made.exit_code == 0
        certificate, key = state_dir / "keys/tls.crt", state_dir / "keys/tls.key"
        assert made.stdout == f"{certificate}\n"
        assert f"SHIPWAY_TLS_CERTIFICATE={certificate} SHIPWAY_TLS_KEY={key}" in made.stderr
        tls.pair(certificate, key)


def test_a_name_that_is_none_is_refused(state_dir: Path) -> None:
    result = shipway("keys", "tls", "--name", "nöde", state_dir=str(state_dir))
    assert result.exit_code == 2
    assert "'nöde' is neither a DNS name nor an IP address" in result.stderr


@pytest.mark.parametrize("arguments", [("api", "alice", "--scope", "infer"), ("tls",)])
def test_what_cannot_be_written_is_said(state_dir: Path, arguments: tuple[str, ...]) -> None:
    (state_dir / "keys").write_text("a file where the directory should be")
    result = shipway("keys", *arguments, state_dir=str(state_dir))
    assert isinstance(result.exception, EdgeFileInvalid)
    assert "it cannot be written: " in str(result.exception)


@pytest.mark.parametrize("command", ["node", "up"])
def test_nothing_starts_that_everybody_could_ask(state_dir: Path, command: str) -> None:
    result = shipway(command, state_dir=str(state_dir / "new"), host="0.0.0.0")
    assert isinstance(result.exception, InvalidSettings)
    assert "without TLS" in str(result.exception)
    assert not (state_dir / "new").exists()


def test_it_starts_when_told(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def started(settings: Any) -> int:
        return 7 if settings.insecure else 8

    monkeypatch.setattr(launcher, "_run", started)
    environment = {"state_dir": str(state_dir), "host": "0.0.0.0"}
    assert shipway("node", "--insecure", **environment).exit_code == 7
    assert shipway("node", **environment, insecure="true").exit_code == 7
    assert isinstance(shipway("node", **environment).exception, InvalidSettings)


def test_where_it_answers_is_told_without_a_word_about_security(state_dir: Path) -> None:
    assert shipway("status", state_dir=str(state_dir), host="0.0.0.0").exit_code == 0
