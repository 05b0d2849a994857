from pathlib import Path

import pytest

from deploy.reference import commands, commands_table, settings_table, updated
from deploy.settings import Settings, variable

README = Path(__file__).parents[3] / "README.md"


def test_readme_is_up_to_date() -> None:
    assert updated(README.read_text()) == README.read_text(), "run: make generate"


@pytest.mark.parametrize("words", commands())
def test_command_has_help_in_one_line(words: str) -> None:
    help_text = commands()[words].help
    assert help_text, words
    assert "\n" not in help_text
    assert f"`shipway {words}" in commands_table()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_setting_has_its_sentence(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description, name
    assert description.endswith("."), name
    assert f"`{variable(name)}`" in settings_table()


def test_stale_table_is_replaced_and_the_rest_kept() -> None:
    text = "a\n<!-- commands -->\nold\n<!-- end -->\nb\n<!-- settings -->\nold\n<!-- end -->\nc"
    assert updated(text) == (
        f"a\n<!-- commands -->\n{commands_table()}\n<!-- end -->\n"
        f"b\n<!-- settings -->\n{settings_table()}\n<!-- end -->\nc"
    )


def test_missing_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="<!-- commands -->"):
        updated("nothing here")
