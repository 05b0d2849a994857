"""Which archive a version given by name is."""

from pathlib import Path

import pytest

from deploy.errors import NotFetched
from deploy.rollout import here
from deploy.rollout.record import Release
from deploy.settings import Settings
from model_store import registry
from model_store.archive import archive_name
from model_store.registry import ResolvedVersion

DIGEST = "sha256:" + "3" * 64


class Registry:
    """The registry without a server; the real one has its test with a real MLflow."""

    def __init__(self, uri: str) -> None:
        pass

    def resolve(self, uri: str) -> ResolvedVersion:
        assert uri == "models:/flights@challenger"
        return ResolvedVersion(model="flights", version=3, run_id="", model_id="", digest=DIGEST)


def test_an_aliass_archive_that_is_not_here_is_fetched_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "Registry", Registry)
    settings = Settings(state_dir=tmp_path)
    with pytest.raises(NotFetched, match=f"Fetch it: shipway fetch flights 3 {DIGEST}$"):
        here.release(settings, "flights", "@challenger")
    settings.archives_dir.mkdir(parents=True)
    (settings.archives_dir / archive_name("flights", 3, DIGEST)).touch()
    assert here.release(settings, "flights", "@challenger") == Release(version=3, digest=DIGEST)
