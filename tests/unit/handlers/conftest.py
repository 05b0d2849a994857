"""One tiny exported program, packed as an archive unpacks, and a real handler that serves it."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client.values
import pytest
from hypothesis import settings

from handlers.answer import EXPLAINER
from handlers.base import BaseHandler
from handlers.capture import CAPTURE, Plan
from handlers.metrics import METRICS_DIRECTORY
from handlers.tabular import TabularHandler
from tests.unit.handlers.archives import Array, AskedAgain, Start, again, outputs
from tests.unit.handlers.tiny import MODEL, Request, ask, loading_context, write_archive

# The machine may be busy with something else; and a test must fail the same way twice.
settings.register_profile("shipway", deadline=None, database=None, derandomize=True)
settings.load_profile("shipway")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of the model `tiny`, version 3."""
    directory = tmp_path_factory.mktemp("tiny")
    write_archive(directory)
    return directory


@pytest.fixture
def metrics_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "counters"
    directory.mkdir()
    monkeypatch.setenv(METRICS_DIRECTORY, str(directory))
    # What a worker sets for good, a test sets for itself.
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.ValueClass)
    return directory


@pytest.fixture
def start(archive: Path, metrics_directory: Path) -> Iterator[Callable[..., BaseHandler]]:
    """A function that initializes a handler as a worker does, counting below `metrics_directory`.

    It serves the tiny model, unless it is given the directory of another.
    """
    level = logging.getLogger().level
    assert metrics_directory.is_dir()

    def initialize(kind: type[BaseHandler], directory: Path = archive) -> BaseHandler:
        handler = kind()
        handler.initialize(loading_context(directory))
        return handler

    yield initialize
    logging.getLogger().setLevel(level)


@pytest.fixture
def explainer(metrics_directory: Path) -> Callable[..., BaseHandler]:
    """A function that initializes a handler as the worker of an explainer does, of the directory of an archive."""
    assert metrics_directory.is_dir()

    def initialize(kind: type[BaseHandler], directory: Path) -> BaseHandler:
        handler = kind()
        handler.initialize(loading_context(directory, MODEL + EXPLAINER))
        return handler

    return initialize


@pytest.fixture
def handler(start: Callable[[type[BaseHandler]], BaseHandler]) -> BaseHandler:
    return start(TabularHandler)


@pytest.fixture
def asked_again(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AskedAgain:
    def ask_twice(kind: type[BaseHandler], directory: Path, request: Request) -> dict[str, Array]:
        plan = Plan(str(tmp_path / "kept"), share=1.0, max_bytes=64 << 20, keep_seconds=60.0)
        monkeypatch.setenv(CAPTURE, plan.to_json())
        handler = start(kind, directory)
        (answer,) = ask(handler, request)
        assert answer.status == 200, answer.error
        (captured,) = plan.segments.newest(MODEL, 2, time.time())
        return outputs(ask(handler, again(captured))[0])

    return ask_twice
