"""Delivery: order, repetition, and places that are down; and what reaches the real client of Grafana."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.rollout.copies import Delivered, GrafanaCopies, MLflowCopies, Place, deliver, places, waiting
from deploy.rollout.ledger import ledgers_in
from deploy.rollout.record import Entry, Release
from deploy.settings import Settings
from model_store.errors import RegistryUnreachable
from model_store.rollout_runs import News, Rollout
from monitoring.errors import GrafanaRefused
from monitoring.grafana import Grafana
from tests.unit.deploy.rollout.stories import CANDIDATE, CHAMPION, VERDICT, entry, ledger, rolled_back
from tests.unit.monitoring.grafana_stub import ADMIN, running


class Notebook:
    """A place that writes down what it gets, and is down where `fails` says so."""

    def __init__(self, fails: Sequence[tuple[str, int]] = ()) -> None:
        self.fails = list(fails)
        self.got: list[tuple[str, int, list[int]]] = []

    def copy(self, entry: Entry, story: Sequence[Entry]) -> None:
        if (entry.model, entry.number) in self.fails:
            raise GrafanaRefused("http://grafana", "write an annotation", 500, "down")
        self.got.append((entry.model, entry.number, [one.number for one in story]))


class Runs:
    """RolloutRuns without a server; the real one has its test with a real MLflow."""

    def __init__(self) -> None:
        self.told: list[tuple[Rollout, News]] = []
        self.tags: list[tuple[int, dict[str, str]]] = []
        self.champions: list[int] = []

    def tell(self, rollout: Rollout, news: News) -> None:
        self.told.append((rollout, news))

    def tag_version(self, model: str, version: int, tags: dict[str, str]) -> None:
        assert model == "flights"
        self.tags.append((version, tags))

    def make_champion(self, model: str, version: int) -> None:
        assert model == "flights"
        self.champions.append(version)


def test_entries_are_copied_in_order_with_their_own_rollout_as_the_story(tmp_path: Path) -> None:
    found = ledger(tmp_path, entry("PENDING", 1.0), entry("PROMOTED", 2.0), entry("PENDING", 3.0, "r2"))
    place = Notebook()
    assert deliver(ledgers_in(tmp_path), tmp_path, "mlflow", lambda: place) == Delivered(3, ())
    assert place.got == [("flights", 1, [1]), ("flights", 2, [1, 2]), ("flights", 3, [3])]
    assert found.undelivered("mlflow") == []
    assert len(found.undelivered("grafana")) == 3


def test_what_failed_is_copied_later_from_where_it_stopped_and_holds_up_no_other_model(tmp_path: Path) -> None:
    ledger(tmp_path, *rolled_back())
    ledger(tmp_path, entry("PENDING", 1.0), model="topics")
    place = Notebook(fails=[("flights", 3)])
    found = deliver(ledgers_in(tmp_path), tmp_path, "grafana", lambda: place)
    assert found.copied == 3
    assert [problem.partition(":")[0] for problem in found.problems] == ["flights"]
    assert [(model, number) for model, number, _ in place.got] == [("flights", 1), ("flights", 2), ("topics", 1)]
    assert waiting(tmp_path, "grafana")
    place.fails.clear()
    assert deliver(ledgers_in(tmp_path), tmp_path, "grafana", lambda: place) == Delivered(4, ())
    assert [number for model, number, _ in place.got if model == "flights"] == [1, 2, 3, 4, 5, 6]
    assert not waiting(tmp_path, "grafana")


def test_ledger_that_cannot_be_read_is_named_and_holds_up_no_other_model(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("no database, but long enough to be taken for one" * 100)
    ledger(tmp_path, entry("PENDING", 1.0))
    place = Notebook()
    assert waiting(tmp_path, "mlflow")
    found = deliver(ledgers_in(tmp_path), tmp_path, "mlflow", lambda: place)
    assert (found.copied, place.got) == (1, [("flights", 1, [1])])
    (problem,) = found.problems
    assert problem.startswith(f"broken: the ledger {tmp_path / 'broken.db'} cannot be used")


def test_place_that_cannot_be_reached_is_said_in_words_and_asked_for_nothing_when_nothing_waits(tmp_path: Path) -> None:
    def reach() -> Place:
        raise RegistryUnreachable("http://mlflow", "refused")

    assert deliver(ledgers_in(tmp_path), tmp_path, "mlflow", reach) == Delivered(0, ())
    ledger(tmp_path, entry("PENDING", 1.0))
    (problem,) = deliver(ledgers_in(tmp_path), tmp_path, "mlflow", reach).problems
    assert "http://mlflow" in problem


def test_run_says_who_what_and_why(tmp_path: Path) -> None:
    runs = Runs()
    ledger(tmp_path, *rolled_back())
    assert deliver(ledgers_in(tmp_path), tmp_path, "mlflow", lambda: MLflowCopies(runs)).copied == 6  # type: ignore[arg-type]
    rollouts, news = zip(*runs.told, strict=True)
    assert set(map(str, rollouts)) == {str(rollouts[0])}
    assert (rollouts[0].id, rollouts[0].started_at) == ("r1", 1000.0)
    assert rollouts[0].params == {
        "kind": "rollout",
        "who": "ann@desk",
        "champion": "1",
        "champion_digest": CHAMPION.digest,
        "candidate": "2",
        "candidate_digest": CANDIDATE.digest,
    }
    assert [one.ended for one in news] == [None] * 5 + ["FAILED"]
    assert news[4].tags["shipway.verdict"] == "roll back"
    assert news[4].numbers["errors/ratio"] == 5.25
    assert VERDICT.words in news[4].record
    assert news[5].note.splitlines()[0] == "- PENDING: now PENDING"
    assert runs.tags[-1] == (2, {"shipway.rollout": "r1", "shipway.role": "candidate", "shipway.state": "ROLLED_BACK"})


THIRD = Release(version=3, digest="sha256:" + "3" * 64)


@pytest.mark.parametrize(
    ("ended", "champion"),
    [
        (entry("PROMOTED", 1.0), [2]),
        (entry("PROMOTED", 1.0, kind="adopted", champion=None), [2]),
        (entry("ROLLED_BACK", 1.0), []),
        (entry("HELD", 1.0), []),
        # Version 2 was promoted, and is taken back.
        (entry("ROLLED_BACK", 1.0, kind="rollback"), [1]),
        # Going back failed: what served still does.
        (entry("PROMOTED", 1.0, kind="rollback"), []),
        (entry("ROLLED_BACK", 1.0, kind="rollback", champion=None), []),
        (entry(None, 1.0, kind="alert", candidate=None), []),
    ],
    ids=lambda value: f"{value.kind}-{value.state}" if isinstance(value, Entry) else "",
)
def test_alias_moves_only_to_a_version_that_serves_for_good(ended: Entry, champion: list[int]) -> None:
    runs = Runs()
    MLflowCopies(runs).copy(ended, [ended])  # type: ignore[arg-type]
    assert runs.champions == champion


def test_alert_while_no_rollout_is_on_belongs_to_no_run() -> None:
    runs = Runs()
    alert = entry(None, 1.0, "", kind="alert", candidate=None)
    MLflowCopies(runs).copy(alert, [alert])  # type: ignore[arg-type]
    assert runs.told == []


def test_annotations_are_the_moments_that_matter_and_stand_there_once(tmp_path: Path) -> None:
    found = ledger(tmp_path, *rolled_back(), entry(None, 1012.0, "", kind="alert", words="AvailabilityBurn fires"))
    with running(13) as stub:
        for _ in range(2):
            place = GrafanaCopies(Grafana.at(stub.url, ADMIN))
            assert deliver(ledgers_in(tmp_path), tmp_path, "grafana", lambda place=place: place).problems == ()  # type: ignore[misc]
            # As if every note had been lost by a kill.
            for one in found.entries():
                place.copy(one, [])
        assert [each["text"].partition(":")[0] for each in stub.annotations] == [
            "flights CANARY",
            "flights ROLLING_BACK",
            "flights ROLLED_BACK",
            "flights alert",
        ]
        assert {each["tags"][0] for each in stub.annotations} == {"shipway"}
        assert stub.annotations[0]["time"] == 1002000


def test_grafana_is_a_place_only_where_the_settings_name_one(tmp_path: Path) -> None:
    assert set(places(Settings(state_dir=tmp_path))) == {"mlflow"}
    assert set(places(Settings(state_dir=tmp_path, grafana_url="http://grafana"))) == {"mlflow", "grafana"}
