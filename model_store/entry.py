"""The entry file of an archive, `handler.py`: a subclass for the version's kind, or the user's own file.

TorchServe imports it by its stem and wants exactly one class of the module's own in it.
"""

import ast
from collections.abc import Mapping
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


def own_entry_file(path: Path) -> bytes:
    """The user's own `handler.py`, read and parsed but not executed. Raises HandlerUnusable."""
    try:
        source = path.read_bytes()
        tree = ast.parse(source, path.name)
    except OSError as error:
        raise HandlerUnusable(path, str(error), _WANTED) from error
    except (SyntaxError, ValueError) as error:
        raise HandlerUnusable(path, f"it is not Python: {error}", _WANTED) from error
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        raise HandlerUnusable(path, f"its classes are: {', '.join(classes) or 'none'}", _WANTED)
    return source
