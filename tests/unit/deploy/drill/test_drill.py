"""Whether a drill may begin, with what, and what it leaves."""

from pathlib import Path

import pytest

from deploy.drill import drill
from deploy.drill.drill import champion_members, prepared
from deploy.errors import DrillRuns, LoadFailed, NotServed
from deploy.node.desired import serve
from deploy.rollout.endpoint import Endpoint
from deploy.settings import Settings
from model_store.archive import pack
from model_store.errors import ArchiveRefused
from model_store.faulty import KINDS
from model_store.profiling import PROFILE
from model_store.signing import create_key
from monitoring.profile import Profile


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


def begin(settings: Settings) -> None:
    with prepared(settings, "flights", ["erring"], 10, lambda *_: None):
        raise AssertionError("it should have been refused")


def test_a_model_that_is_not_served_has_no_champion_to_make_bad_versions_of(settings: Settings) -> None:
    with pytest.raises(NotServed, match="no version of flights is in service; begin with: shipway serve flights"):
        begin(settings)
    with pytest.raises(NotServed):  # and the lock is free again
        begin(settings)


def test_a_second_drill_of_a_model_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object) -> None:
        begin(settings)

    monkeypatch.setattr("deploy.drill.drill.champion_members", meanwhile)
    with pytest.raises(DrillRuns, match="another process drills flights now"):
        begin(settings)


def test_no_archive_is_executed_that_no_trusted_key_signed(settings: Settings, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    create_key(stranger, tmp_path / "elsewhere")
    _, digest = pack({"handler.py": b"raise SystemExit"}, "flights", 1, settings.archives_dir, stranger)
    serve(settings.desired_file, "flights", 1, digest)
    with pytest.raises(ArchiveRefused, match="a key that is not trusted"):
        champion_members(settings, "flights")


@pytest.mark.parametrize(
    ("only", "classes", "kinds"),
    [
        ((), ("on time", "late"), list(KINDS)),
        ((), (), [kind for kind in KINDS if kind != "wrong"]),
        (("slow", "good", "slow"), (), ["slow", "good"]),
    ],
)
def test_kinds_that_make_sense_are_packed_and_removed_even_if_the_node_keeps_the_endpoint(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    only: tuple[str, ...],
    classes: tuple[str, ...],
    kinds: list[str],
) -> None:
    def of_kind(_: object, kind: str, *__: object) -> dict[str, bytes]:
        packed.append(kind)
        return {"kind": kind.encode()}

    def loads(endpoint: Endpoint, release: object) -> None:
        assert len(list(settings.archives_dir.glob("flights-drill-*.mar"))) == 1 + len(kinds)
        raise LoadFailed(f"{endpoint.model} {release}")

    def asked(_: Endpoint) -> None:
        times.append(0)
        if len(times) > 1:
            raise LoadFailed("did not go out of service")

    times: list[int] = []
    packed: list[str] = []
    members = {PROFILE: Profile(0, (), classes).to_json()}
    create_key(settings.signing_key, settings.trust_dir)
    monkeypatch.setattr(drill, "champion_members", lambda *_: members)
    monkeypatch.setattr(drill, "members_of_kind", of_kind)
    monkeypatch.setattr(drill, "_out_of_service", asked)
    monkeypatch.setattr(Endpoint, "roll_out", loads)
    with (
        pytest.raises(LoadFailed, match="did not go out of service"),
        prepared(settings, "flights", only, 10, lambda *_: None),
    ):
        raise AssertionError("nothing was loaded")
    assert packed == ["good", *kinds]
    assert list(settings.archives_dir.iterdir()) == []
