"""Predictions for copies of requests, joined to what users were told."""

import stat
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.node import agreement
from deploy.node.agreement import KEPT, Agreement, Disagreement, read_disagreements
from handlers.predictions import Predictions, Version
from tests.unit.handlers.tiny import prediction_id

CHAMPION = Version("flights", "1", ("on time", "late"))
CANDIDATE = Version("flights", "2", ("late", "on time"))
IDS = [prediction_id(1795000000.25 + number, number) for number in range(300)]


def told(*predictions: tuple[str, Sequence[int]], sure: int = 51) -> Predictions:
    """Ids, and the classes of their rows, each as sure as the others."""
    return Predictions(
        "".join(made for made, _ in predictions).encode(),
        array("I", [len(classes) for _, classes in predictions]).tobytes(),
        array("H", [each for _, classes in predictions for each in classes]).tobytes(),
        sure=bytes(sure for _, classes in predictions for _ in classes),
    )


@pytest.fixture
def watched() -> Agreement:
    found = Agreement()
    found.watch({("flights", 2)})
    return found


def rows(found: Agreement, version: int = 2) -> dict[str, float]:
    """By outcome."""
    (family,) = found.collect()
    return {s.labels["outcome"]: s.value for s in family.samples if s.labels["version"] == str(version)}


def test_counts_are_there_before_the_first_copy(watched: Agreement) -> None:
    assert rows(watched) == {"agree": 0, "disagree": 0}
    assert rows(Agreement()) == {}


@pytest.mark.parametrize("copy_first", [True, False])
def test_rows_are_compared_by_the_names_of_their_classes(watched: Agreement, tmp_path: Path, copy_first: bool) -> None:
    answers = [
        (watched.answered, CHAMPION, told((IDS[0], [0]), (IDS[1], [1, 0, 1]), (IDS[2], [0]))),
        (watched.copied, CANDIDATE, told((IDS[1], [0, 0, 1]), (IDS[0], [1]), (IDS[3], [0]))),
    ]
    for tell, version, predictions in reversed(answers) if copy_first else answers:
        tell(version, predictions)
    assert rows(watched) == {"agree": 2, "disagree": 2}
    watched.write(tmp_path / "disagreements.json")
    (found,) = read_disagreements(tmp_path / "disagreements.json", "flights")
    assert found == Disagreement(
        prediction_id=IDS[1],
        answered_by=1,
        copied_to=2,
        answered=("on time", "late"),
        copied=("late", "on time"),
        rows=3,
        sure=0.2,
    )


def test_what_a_watched_version_tells_users_is_no_answer_to_itself(watched: Agreement) -> None:
    watched.answered(CANDIDATE, told((IDS[0], [0])))
    watched.copied(CANDIDATE, told((IDS[0], [0])))
    assert rows(watched) == {"agree": 0, "disagree": 0}
    watched.answered(CHAMPION, told((IDS[0], [1])))
    assert rows(watched) == {"agree": 1, "disagree": 0}


def test_each_copy_counts_once(watched: Agreement) -> None:
    for _ in range(2):
        watched.answered(CHAMPION, told((IDS[0], [0])))
    for _ in range(2):
        watched.copied(CANDIDATE, told((IDS[0], [1])))
    assert rows(watched) == {"agree": 1, "disagree": 0}


def test_other_models_and_ended_copying_cost_nothing(watched: Agreement) -> None:
    watched.answered(Version("trains", "1", ("on time",)), told((IDS[0], [0])))
    watched.watch(set())
    watched.copied(CANDIDATE, told((IDS[0], [0])))
    watched.answered(CHAMPION, told((IDS[0], [0])))
    assert rows(watched) == {"agree": 0, "disagree": 0}
    assert watched._models == {}


def test_weights_that_move_lose_nothing_that_waits(watched: Agreement) -> None:
    watched.answered(CHAMPION, told((IDS[0], [0])))
    watched.watch({("flights", 2)})
    watched.copied(CANDIDATE, told((IDS[0], [1])))
    assert rows(watched)["agree"] == 1


def test_what_waits_is_bounded_by_rows(watched: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "WAITING_ROWS", 5)
    for made in IDS[:4]:
        watched.answered(CHAMPION, told((made, [0, 0])))
    for made in IDS[:4]:
        watched.copied(CANDIDATE, told((made, [1, 1])))
    assert rows(watched)["agree"] == 4  # the first two had gone


def test_the_worst_are_kept_for_their_owner(watched: Agreement, tmp_path: Path) -> None:
    """Of every second one the other version is certain."""
    path = tmp_path / "node" / "disagreements.json"
    assert read_disagreements(path, "flights") == ()
    watched.write(path)  # whatever another process has left there
    assert read_disagreements(path, "flights") == ()
    for number, made in enumerate(IDS):
        watched.answered(CHAMPION, told((made, [0, 0])))
        watched.copied(CANDIDATE, told((made, [0, 1]), sure=255 * (number % 2)))
    watched.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_disagreements(path, "flights")
    assert [each.prediction_id for each in found] == IDS[-1::-2][:KEPT]
    assert {each.sure for each in found} == {1.0}
    assert read_disagreements(path, "trains") == ()


def test_disagreements_of_an_earlier_version_go(watched: Agreement, tmp_path: Path) -> None:
    path = tmp_path / "disagreements.json"
    watched.answered(CHAMPION, told((IDS[0], [0])))
    watched.copied(CANDIDATE, told((IDS[0], [0])))
    watched.write(path)
    assert [each.copied_to for each in read_disagreements(path, "flights")] == [2]
    watched.watch({("flights", 3)})
    watched.write(path)
    assert read_disagreements(path, "flights") == ()
    watched.answered(CHAMPION, told((IDS[1], [0])))
    watched.copied(Version("flights", "3", ("late", "on time")), told((IDS[1], [0])))
    watched.write(path)
    assert [each.copied_to for each in read_disagreements(path, "flights")] == [3]
