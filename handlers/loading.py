"""A handler without TorchServe: for golden outputs, measurements and tests, in whatever process wants a prediction."""

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

from handlers.base import BaseHandler
from handlers.errors import ArchiveUnusable

ENTRY = "handler.py"


def open_handler(directory: Path, model: str = "", version: str = "", *, workers: int = 1) -> BaseHandler:
    """The handler of an unpacked archive, ready for `predict`, as one of so many workers.

    It executes the archive's `handler.py`, as a worker does: verify the archive first. Raises ArchiveUnusable for files
    that do not fit, and whatever a user's own handler raises.
    """
    module = _imported(directory / ENTRY)
    own = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and issubclass(kind, BaseHandler)
    ]
    if len(own) != 1:
        names = ", ".join(kind.__name__ for kind in own) or "none"
        raise ArchiveUnusable(f"{ENTRY} must define exactly one subclass of BaseHandler; found {names}")
    handler = own[0]()
    handler.workers = workers
    handler.open(directory, model, version)
    return handler


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipway_entry_{abs(hash(path))}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArchiveUnusable(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
