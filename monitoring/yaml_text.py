"""YAML for people to read: keys in the order given, and text of several lines as such."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Its own class, because representers are registered for a class and would change everybody's YAML."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def yaml_text(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
