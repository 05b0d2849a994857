"""The tables of commands and settings in the README, made from the commands and settings themselves.

`make generate` runs `python -m deploy.reference README.md`.
"""

import sys
from pathlib import Path

import click
from pydantic.fields import FieldInfo

from deploy import tables
from deploy.cli import cli
from deploy.settings import Settings, variable


def commands(group: click.Group = cli, *words: str) -> dict[str, click.Command]:
    """Every command that a person can type, by its words without `shipway`."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found.update(commands(command, *words, name))
        else:
            found[" ".join([*words, name])] = command
    return found


def commands_table() -> str:
    rows = []
    for words, command in commands().items():
        arguments = [one.human_readable_name for one in command.params if isinstance(one, click.Argument)]
        typed = " ".join(["shipway", words, *arguments])
        rows.append(f"| `{typed}` | {command.help} |")
    return "\n".join(["| command | what it does |", "| --- | --- |", *rows])


def settings_table() -> str:
    rows = [
        f"| `{variable(name)}` | `{_default_in_words(field)}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def _default_in_words(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default_in_words" in extra:
        return str(extra["default_in_words"])
    return str(field.default)


def updated(text: str) -> str:
    """The text with what stands between its marks (`<!-- commands -->` … `<!-- end -->`) made anew.

    Raises:
        ValueError: a mark is missing.
    """
    for name, table in {"commands": commands_table(), "settings": settings_table()}.items():
        text = tables.updated(text, name, table)
    return text


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(updated(readme.read_text()))
