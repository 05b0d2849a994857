"""Sentences about programming and what they are about: the documentation strings of Python's standard library.

A module's area is the sentence's topic. Only source files are read, nothing is imported; modules that a release of
Python does not have, or a distribution packs apart, are left out.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

AREAS: Mapping[str, Sequence[str]] = {
    "concurrency": ("asyncio", "concurrent/futures", "multiprocessing", "queue", "sched", "selectors", "subprocess",
                    "threading", "_threading_local"),
    "files": ("bz2", "filecmp", "fileinput", "fnmatch", "genericpath", "glob", "gzip", "lzma", "ntpath", "os",
              "pathlib", "posixpath", "shutil", "tarfile", "tempfile", "zipfile", "_pyio"),
    "mail": ("email", "imaplib", "mailbox", "mimetypes", "poplib", "quopri", "smtplib"),
    "networking": ("ftplib", "http", "ipaddress", "nntplib", "socket", "socketserver", "ssl", "telnetlib", "urllib",
                   "webbrowser", "wsgiref", "xmlrpc"),
    "numbers": ("_pydecimal", "colorsys", "fractions", "numbers", "random", "statistics"),
    "testing": ("bdb", "doctest", "inspect", "pdb", "profile", "pstats", "timeit", "trace", "traceback",
                "tracemalloc", "unittest"),
    "text": ("argparse", "codecs", "configparser", "csv", "difflib", "gettext", "html", "json", "locale", "pprint",
             "re", "reprlib", "shlex", "string", "textwrap", "tokenize"),
}  # fmt: skip

_MIN_WORDS, _MAX_WORDS = 5, 40
_HELD_OUT = 5
"""One sentence in so many is held out."""
_NOT_PROSE = re.compile(r">>>|\n[ \t]|--|::|\s=\s")


@dataclass(frozen=True)
class Labelled:
    """Sentences and, for each, the index of its area in AREAS."""

    sentences: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Topics:
    """The sentences, some of them held out."""

    training: Labelled
    held_out: Labelled
    digest: str
    """`sha256:` and 64 digits, of sentences and labels."""


def load(max_per_area: int) -> Topics:
    """At most so many sentences an area, held out or not by a digest of their own.

    The same for the same Python. A sentence that stands in two areas belongs to neither.
    """
    areas: dict[str, set[int]] = {}
    for label, modules in enumerate(AREAS.values()):
        for sentence in _sentences_of(modules):
            areas.setdefault(sentence, set()).add(label)
    # In the order of digests, which is as good as shuffled and the same in every process.
    ordered = sorted(areas, key=_digest)
    training: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    for wanted in range(len(AREAS)):
        own = [sentence for sentence in ordered if areas[sentence] == {wanted}][:max_per_area]
        for index, sentence in enumerate(own):
            (training if index % _HELD_OUT else held_out).append((sentence, wanted))
    whole = "\n".join(f"{label} {sentence}" for sentence, label in (*training, *held_out))
    return Topics(_labelled(training), _labelled(held_out), f"sha256:{_digest(whole)}")


def _labelled(pairs: Sequence[tuple[str, int]]) -> Labelled:
    sentences, labels = zip(*pairs, strict=True)
    return Labelled(sentences, labels)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sentences_of(modules: Sequence[str]) -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for name in modules:
        paths = sorted((library / name).glob("*.py")) or [library / f"{name}.py"]
        for path in paths:
            if path.is_file():
                yield from _sentences_in(ast.parse(path.read_text(encoding="utf-8")))


def _sentences_in(module: ast.Module) -> Iterator[str]:
    """Whole sentences of prose in the documentation strings of a module and of everything in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                if _NOT_PROSE.search(paragraph):
                    continue
                for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                    if re.fullmatch(r"[A-Z].*[.!?]", sentence) and _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS:
                        yield sentence
