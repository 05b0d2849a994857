"""Whether a drill may begin."""

from pathlib import Path

import pytest

from deploy.drill.drill import champion_members, prepared
from deploy.errors import DrillRuns, NotServed
from deploy.node.desired import serve
from deploy.settings import Settings
from model_store.archive import pack
from model_store.errors import ArchiveRefused
from model_store.signing import create_key


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


def begin(settings: Settings) -> None:
    with prepared(settings, "flights", ["erring"], 10, lambda *_: None):
        raise AssertionError("it should have been refused")


def test_a_model_that_is_not_served_has_no_champion_to_make_bad_versions_of(settings: Settings) -> None:
    with pytest.raises(NotServed, match="no version of flights is in service; begin with: shipway serve flights"):
        begin(settings)
    with pytest.raises(NotServed):  # and the lock is free again
        begin(settings)


def test_a_second_drill_of_a_model_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> None:
        begin(settings)

    monkeypatch.setattr("deploy.drill.drill.champion_members", meanwhile)
    with pytest.raises(DrillRuns, match="another process drills flights now"):
        begin(settings)


def test_no_archive_is_executed_that_no_trusted_key_signed(settings: Settings, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    create_key(stranger, tmp_path / "elsewhere")
    _, digest = pack({"handler.py": b"raise SystemExit"}, "flights", 1, settings.archives_dir, stranger)
    serve(settings.desired_file, "flights", 1, digest)
    with pytest.raises(ArchiveRefused, match="a key that is not trusted"):
        champion_members(settings, "flights")
