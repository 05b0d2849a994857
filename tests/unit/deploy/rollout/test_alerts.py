import json
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import AlertsRefused, LedgerUnusable
from deploy.rollout.alerts import Noted, note
from deploy.rollout.ledger import Ledger, models
from tests.unit.deploy.rollout.stories import entry, ledger


def alert(status: str = "firing", fingerprint: str = "f1", **labels: str) -> dict[str, Any]:
    given = {"alertname": "AvailabilityBurn", "severity": "page", "model": "flights", "version": "2", **labels}
    return {
        "status": status,
        "labels": {name: value for name, value in given.items() if value},
        "annotations": {"summary": "flights version 2 fails", "description": "5% of 400 requests.", "runbook_url": "r"},
        "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": fingerprint,
    }


def message(*alerts: dict[str, Any]) -> bytes:
    return json.dumps({"version": "4", "status": "firing", "receiver": "people", "alerts": alerts}).encode()


def test_alert_joins_the_rollout_that_is_on_and_does_not_change_it(tmp_path: Path) -> None:
    found = ledger(tmp_path, entry("JUDGING", 1.0, "r7", step=0))
    assert note(tmp_path, message(alert()), (), 2.0) == Noted(written=1)
    last = found.entries()[-1]
    assert (last.number, last.kind, last.state, last.rollout, last.at) == (2, "alert", None, "r7", 2.0)
    assert last.words == "AvailabilityBurn: flights version 2 fails 5% of 400 requests."
    assert last.detail == {
        "alertname": "AvailabilityBurn",
        "severity": "page",
        "version": "2",
        "status": "firing",
        "starts_at": "2026-01-01T00:00:00Z",
        "fingerprint": "f1",
    }


def test_what_still_fires_is_written_once_and_its_end_too(tmp_path: Path) -> None:
    found = ledger(tmp_path, entry("PROMOTED", 1.0))
    assert note(tmp_path, message(alert(), alert()), (), 2.0) == Noted(written=1, repeated=1)
    assert note(tmp_path, message(alert()), (), 3.0) == Noted(repeated=1)
    assert note(tmp_path, message(alert("resolved"), alert(fingerprint="f2")), (), 4.0) == Noted(written=2)
    assert [one.words.partition(":")[0] for one in found.entries()[1:]] == [
        "AvailabilityBurn",
        "no longer",
        "AvailabilityBurn",
    ]
    assert {one.rollout for one in found.entries()[1:]} == {""}


@pytest.mark.parametrize("model", ["", "strangers", "../../etc/passwd", "flights/../flights"])
def test_alert_of_no_model_that_is_served_makes_no_ledger(tmp_path: Path, model: str) -> None:
    ledger(tmp_path, entry("PROMOTED", 1.0))
    assert note(tmp_path, message(alert(model=model)), {"topics"}, 2.0) == Noted(ignored=1)
    assert models(tmp_path) == ["flights"]


def test_model_in_service_gets_its_ledger_with_its_first_alert(tmp_path: Path) -> None:
    assert note(tmp_path / "new", message(alert()), {"flights"}, 2.0) == Noted(written=1)
    assert len(Ledger(tmp_path / "new", "flights").entries()) == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "the body: Input should be"),
        (b'{"version": "4"}', "alerts: Field required"),
        (message({**alert(), "status": "burning"}), r"alerts\.0\.status: Input should be 'firing' or 'resolved'"),
        (message(alert(model="m" * 5000)), r"alerts\.0\.labels\.model: String should have at most 4096"),
    ],
)
def test_other_messages_are_refused_in_words(tmp_path: Path, body: bytes, problem: str) -> None:
    with pytest.raises(AlertsRefused, match=problem):
        note(tmp_path, body, {"flights"}, 2.0)


def test_ledger_that_cannot_be_written_loses_no_alert(tmp_path: Path) -> None:
    (tmp_path / "flights.db").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(LedgerUnusable):
        note(tmp_path, message(alert()), (), 2.0)
