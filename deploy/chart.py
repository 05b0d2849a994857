"""What the chart has from elsewhere: rules, dashboards, and its README's table of values.

`make generate` runs `python -m deploy.chart helm/shipway`.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monitoring.config import Config
from monitoring.dashboards import catalogue
from monitoring.rules.file import rule_file

RULES, DASHBOARDS = Path("files/rules"), Path("files/dashboards")
README, VALUES = Path("README.md"), Path("values.yaml")
_START, _END = "<!-- values -->\n", "\n<!-- end -->"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):( |$)")
_COMMENT = re.compile(r"^ *# ?(?P<words>.*)$")


@dataclass(frozen=True)
class Value:
    """One value that a person can set."""

    path: str
    default: Any
    words: str
    """What its comment says, in one line."""


def generated(chart: Path) -> dict[Path, str]:
    """Every file that is made, by its path in the chart.

    Raises:
        ValueError: the README has no place for the table.
    """
    config = Config()
    return {
        RULES / "shipway.yaml": rule_file(config),
        **{DASHBOARDS / name: text for name, text in catalogue.texts(config).items()},
        README: _updated((chart / README).read_text(), values_table(chart)),
    }


def write(chart: Path) -> None:
    for folder in (RULES, DASHBOARDS):
        for old in (chart / folder).glob("*"):
            old.unlink()
    for path, text in generated(chart).items():
        (chart / path).parent.mkdir(parents=True, exist_ok=True)
        (chart / path).write_text(text)


def values(chart: Path) -> list[Value]:
    """Every leaf of values.yaml in its order; an empty object or list is a leaf."""
    text = (chart / VALUES).read_text()
    words = dict(_comments(text))
    return [Value(path, default, words[path]) for path, default in _leaves(yaml.safe_load(text))]


def values_table(chart: Path) -> str:
    rows = [f"| `{one.path}` | {_shown(one.default)} | {one.words} |" for one in values(chart)]
    return "\n".join(["| value | default | meaning |", "| --- | --- | --- |", *rows])


def _shown(default: Any) -> str:
    return "" if default == "" else f"`{json.dumps(default)}`"


# Objects of Kubernetes: what is in them is its to explain.
_WHOLE = frozenset({"labels", "limits", "podSecurityContext", "requests", "securityContext"})


def _leaves(node: dict[str, Any], *above: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and key not in _WHOLE:
            yield from _leaves(value, *above, key)
        else:
            yield ".".join((*above, key)), value


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """The comment right above each key."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            said.append(comment["words"])
        elif key := _KEY.match(line):
            indent = len(key["indent"])
            path = [*(step for step in path if step[0] < indent), (indent, key["key"])]
            yield ".".join(step[1] for step in path), " ".join(said)
            said = []
        else:
            said = []


def _updated(text: str, table: str) -> str:
    before, found_start, rest = text.partition(_START)
    _, found_end, after = rest.partition(_END)
    if not (found_start and found_end):
        raise ValueError(f"no place for the table of values: expected {_START.strip()} and, later, {_END.strip()}")
    return f"{before}{_START}{table}{_END}{after}"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
