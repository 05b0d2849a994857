from pathlib import Path

import pytest

from deploy.errors import InvalidSettings
from deploy.objectives import read_objectives
from deploy.settings import Settings
from monitoring.config import Config


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "monitoring.yml"
    path.write_text(text)
    return Settings(state_dir=tmp_path, monitoring_config=path)


def test_defaults_without_a_file(tmp_path: Path) -> None:
    assert read_objectives(Settings(state_dir=tmp_path)) == Config()


def test_file_says_what_differs(tmp_path: Path) -> None:
    assert read_objectives(settings(tmp_path, "drift: {z: 7}")).drift.z == 7


def test_fault_names_setting_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"SHIPWAY_MONITORING_CONFIG=.*/monitoring\.yml: drift\.y is not known"):
        read_objectives(settings(tmp_path, "drift: {y: 7}"))


def test_missing_file_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"SHIPWAY_MONITORING_CONFIG=.*No such file"):
        read_objectives(Settings(state_dir=tmp_path, monitoring_config=tmp_path / "nothing.yml"))
