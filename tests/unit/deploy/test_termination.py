"""What Kubernetes is told of a container that ends."""

from pathlib import Path

import pytest

from deploy import cli, termination


def test_cause_is_left_where_there_is_a_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "TERMINATION_LOG", tmp_path / "log")
    termination.tell("nobody reads it")
    assert not (tmp_path / "log").exists()
    (tmp_path / "log").touch()
    termination.tell("x" * 5000)
    assert (tmp_path / "log").stat().st_size == 4096


def test_command_that_fails_leaves_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(termination, "TERMINATION_LOG", tmp_path / "log")
    (tmp_path / "log").touch()
    monkeypatch.setenv("SHIPWAY_ARCHIVES_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SHIPWAY_STATE_DIR", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["shipway", "fetch", "--offline", "flights", "7", "sha256:" + "0" * 64])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    cause = f"there is no file {tmp_path}/cache/flights-7-000000000000.mar"
    assert (tmp_path / "log").read_text().startswith(cause)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"shipway: {cause}")
