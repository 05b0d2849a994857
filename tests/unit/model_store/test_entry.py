"""The entry file of an archive: what TorchServe imports, ours or the user's, read without being executed."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

from model_store.entry import _HANDLERS, entry_file, read_own_handler
from model_store.errors import HandlerUnusable

OWN = '''
"""A handler that names its outputs otherwise."""
import sys
from handlers import generic
sys.exit("it was executed")

class Mine(generic.GenericHandler):
    def load(self):
        super().load()
'''


@pytest.mark.parametrize("kind", _HANDLERS)
def test_the_entry_of_every_kind_is_one_subclass_of_an_installed_handler(kind: str) -> None:
    tree = ast.parse(entry_file(kind))
    (own,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    module, name = ast.unparse(own.bases[0]).split(".")
    assert isinstance(getattr(import_module(f"handlers.{module}"), name), type)


def test_the_users_file_is_read_but_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    own = read_own_handler(path)
    assert own.source == OWN.encode()
    assert not own.brings_network
    path.write_text(OWN + "    def network(self):\n        return None\n")
    assert read_own_handler(path).brings_network


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class A: pass\nclass B: pass", "the classes that it defines are: A, B"),
        ("x = 1", "the classes that it defines are: none"),
        ("class A(:", "it is not Python: "),
        ("\0", "it is not Python: "),
    ],
)
def test_a_file_that_torchserve_could_not_load_is_refused(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(HandlerUnusable, match=words) as caught:
        read_own_handler(path)
    assert "wanted a Python file with exactly one class" in str(caught.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HandlerUnusable, match="No such file"):
        read_own_handler(tmp_path / "none.py")
