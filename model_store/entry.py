"""The entry file of an archive, `handler.py`: a subclass for the version's kind, or the user's own file.

TorchServe imports it by its stem and wants exactly one class of the module's own in it.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import HandlerUnusable

ENTRY = "handler.py"

_HANDLERS: Mapping[str, tuple[str, str]] = {
    "table": ("tabular", "TabularHandler"),
    "image": ("image", "ImageHandler"),
    "text": ("text", "TextHandler"),
    "sequence": ("sequence", "SequenceHandler"),
    "tensors": ("generic", "GenericHandler"),
}
_TEMPLATE = '''"""Entry file of this archive: TorchServe wants exactly one class of the module's own."""

from handlers import {module}


class Handler({module}.{name}):
    """The handler of the kind {kind!r}, as installed on the node."""
'''
_WANTED = "a Python file with exactly one class, a subclass of a handler of the package handlers"


def entry_file(kind: str) -> bytes:
    """`handler.py` for a kind of model. Raises KeyError for a kind that has no handler."""
    module, name = _HANDLERS[kind]
    return _TEMPLATE.format(module=module, name=name, kind=kind).encode()


@dataclass(frozen=True)
class OwnHandler:
    """A handler file of the user's, parsed but not executed."""

    source: bytes
    brings_network: bool
    """Whether its class has a method `network`, so that the network itself is run, and not the exported program."""


def read_own_handler(path: Path) -> OwnHandler:
    """The user's own `handler.py`. Raises HandlerUnusable."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source, path.name)
    except OSError as error:
        raise HandlerUnusable(path, str(error), _WANTED) from error
    except (SyntaxError, ValueError) as error:
        raise HandlerUnusable(path, f"it is not Python: {error}", _WANTED) from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        names = ", ".join(one.name for one in classes) or "none"
        raise HandlerUnusable(path, f"the classes that it defines are: {names}", _WANTED)
    methods = {node.name for node in classes[0].body if isinstance(node, ast.FunctionDef)}
    return OwnHandler(source, "network" in methods)
