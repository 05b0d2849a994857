"""Pushing through the real client to servers that answer as Grafana 11, 12 and 13 do (grafana_stub.py says why)."""

import contextlib
import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grafana_api.grafana_api import GrafanaClientError

from monitoring.config import Config
from monitoring.dashboards.blocks import DATA_SOURCE_UID
from monitoring.dashboards.catalogue import dashboards
from monitoring.errors import GrafanaError, GrafanaRefused, GrafanaTaken, GrafanaTokenRefused, GrafanaUnreachable
from monitoring.grafana import FOLDER_UID, Grafana
from tests.unit.monitoring.grafana_stub import ADMIN, VIEWER, Stub, running, serving

PROMETHEUS = "http://prometheus:9090"
OURS = dashboards(Config())
UIDS = {"shipway-serving", "shipway-drift", "shipway-quality", "shipway-rollout"}


@pytest.fixture(params=[11, 12, 13])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    with running(request.param) as found:
        yield found


def push(stub: Stub, prometheus: str = PROMETHEUS) -> dict[str, str]:
    """What became of each thing."""
    stub.asked.clear()
    return {each.uid: each.outcome for each in Grafana.at(stub.url, ADMIN).push(prometheus, OURS)}


def everything(outcome: str, **otherwise: str) -> dict[str, str]:
    found = dict.fromkeys([FOLDER_UID, DATA_SOURCE_UID, *UIDS], outcome)
    return found | {uid.replace("_", "-"): other for uid, other in otherwise.items()}


def test_first_push_makes_everything_in_its_folder(stub: Stub) -> None:
    assert push(stub) == everything("created")
    assert set(stub.dashboards) == UIDS
    assert {each["folderUid"] for each in stub.dashboards.values()} == {FOLDER_UID}
    assert [(each["uid"], each["url"]) for each in stub.sources.values()] == [(DATA_SOURCE_UID, PROMETHEUS)]


def test_second_push_changes_nothing_and_says_so(stub: Stub) -> None:
    push(stub)
    before = copy.deepcopy((stub.folders, stub.sources, stub.dashboards))
    assert push(stub) == everything("unchanged")
    assert stub.writes == []
    assert (stub.folders, stub.sources, stub.dashboards) == before


def test_no_numeric_id_and_nothing_that_is_gone_is_asked_for(stub: Stub) -> None:
    push(stub)
    push(stub, "http://elsewhere:9090")
    grafana = Grafana.at(stub.url, ADMIN)
    grafana.annotate("flights 2 at 5%", ["shipway"], at_seconds=1.0)
    allowed = {
        f"GET /api/folders/{FOLDER_UID}",
        "POST /api/folders",
        "GET /api/datasources/name/Shipway",
        "POST /api/datasources",
        f"PUT /api/datasources/uid/{DATA_SOURCE_UID}",
        "GET /api/search",
        "POST /api/dashboards/db",
        "POST /api/annotations",
    }
    assert set(stub.asked) <= allowed


def test_another_prometheus_changes_the_data_source_and_keeps_what_was_added(stub: Stub) -> None:
    push(stub)
    stub.sources["Shipway"]["jsonData"]["tlsSkipVerify"] = True
    assert push(stub, "http://elsewhere:9090") == everything("unchanged", shipway_prometheus="updated")
    source = stub.sources["Shipway"]
    assert source["url"] == "http://elsewhere:9090"
    assert source["jsonData"] == {"httpMethod": "POST", "timeInterval": "15s", "tlsSkipVerify": True}
    assert push(stub, "http://elsewhere:9090") == everything("unchanged")


def test_dashboard_of_an_older_shipway_is_replaced(stub: Stub) -> None:
    older = copy.deepcopy(OURS)
    older[0]["panels"].pop()
    Grafana.at(stub.url, ADMIN).push(PROMETHEUS, older)
    assert push(stub) == everything("unchanged", shipway_serving="updated")
    stored = stub.dashboards["shipway-serving"]["dashboard"]
    assert stored["panels"] == OURS[0]["panels"]
    assert stored["version"] == 2


def test_dashboard_that_was_moved_comes_back(stub: Stub) -> None:
    push(stub)
    stub.dashboards["shipway-drift"]["folderUid"] = ""
    assert push(stub) == everything("unchanged", shipway_drift="updated")
    assert stub.dashboards["shipway-drift"]["folderUid"] == FOLDER_UID


def test_dashboard_that_was_deleted_is_made_again(stub: Stub) -> None:
    push(stub)
    del stub.dashboards["shipway-quality"]
    assert push(stub) == everything("unchanged", shipway_quality="created")


@pytest.mark.parametrize(
    ("release", "stays_in_root", "number_works"), [(11, False, True), (12, False, True), (13, True, False)]
)
def test_stand_in_behaves_as_its_release(*, release: int, stays_in_root: bool, number_works: bool) -> None:
    """What the calls that we avoid would do: else a push with them would pass these tests, too."""
    with running(release) as stub:
        push(stub)
        client = Grafana.at(stub.url, ADMIN)._client
        client.dashboard.update_dashboard({"dashboard": {**foreign("other", "Other")}, "folderId": 1})
        assert (stub.dashboards["other"]["folderUid"] == "") == stays_in_root
        with contextlib.suppress(GrafanaClientError):
            client.datasource.update_datasource(1, {"url": "http://by-number"})
        assert (stub.sources["Shipway"]["url"] == "http://by-number") == number_works
        for gone in ("/auth/keys", "/alert-notifications"):
            with pytest.raises(GrafanaClientError, match="404"):
                client.api.GET(gone)


def foreign(uid: str, title: str) -> dict[str, object]:
    return {"uid": uid, "title": title, "tags": ["theirs"], "version": 7}


def test_foreign_dashboard_with_our_uid_is_left_alone(stub: Stub) -> None:
    stub.folders["theirs"] = {"uid": "theirs", "title": "Theirs", "id": 9}
    theirs = {"dashboard": foreign("shipway-drift", "Drifting boats"), "folderUid": "theirs"}
    stub.dashboards["shipway-drift"] = copy.deepcopy(theirs)
    with pytest.raises(GrafanaTaken, match=r"uid shipway-drift.*'Drifting boats' in the folder 'Theirs' lacks the tag"):
        push(stub)
    assert stub.dashboards["shipway-drift"] == theirs


def test_dashboard_that_search_does_not_show_is_not_written_over(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search lags behind, or may not show it to this token."""
    theirs = {"dashboard": foreign("shipway-drift", "Drifting boats"), "folderUid": ""}
    stub.dashboards["shipway-drift"] = copy.deepcopy(theirs)
    monkeypatch.setattr(stub, "_search", lambda *_: (200, []))
    with pytest.raises(GrafanaRefused, match=r"would not save the dashboard shipway-drift \(412\): .*by someone else"):
        push(stub)
    assert stub.dashboards["shipway-drift"] == theirs


def test_title_that_is_taken_in_our_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(11) as stub:
        stub.dashboards["theirs"] = {"dashboard": foreign("theirs", "Shipway: drift"), "folderUid": FOLDER_UID}
        monkeypatch.setitem(stub.folders, FOLDER_UID, {"uid": FOLDER_UID, "title": "Shipway", "id": 1})
        with pytest.raises(GrafanaRefused, match="same name in the folder exists"):
            push(stub)


def test_foreign_data_source_with_our_name_is_left_alone(stub: Stub) -> None:
    theirs = {"name": "Shipway", "uid": "abc", "url": "http://theirs"}
    stub.sources["Shipway"] = dict(theirs)
    with pytest.raises(GrafanaTaken, match=r"data source 'Shipway'.*its uid is abc. Rename it"):
        push(stub)
    assert stub.sources["Shipway"] == theirs


def test_what_comes_from_files_is_not_changed(stub: Stub) -> None:
    push(stub)
    stub.sources["Shipway"]["readOnly"] = True
    with pytest.raises(GrafanaTaken, match=r"it comes from a file, and its URL is http://prometheus:9090. Change"):
        push(stub, "http://elsewhere:9090")
    stub.dashboards["shipway-drift"] |= {"provisioned": True, "folderUid": ""}
    with pytest.raises(GrafanaRefused, match="Cannot save provisioned dashboard"):
        push(stub)


def test_answers_without_a_body_are_answers() -> None:
    with running(12, empty_answers=True) as stub:
        assert push(stub) == everything("created")
        assert push(stub, "http://elsewhere:9090") == everything("unchanged", shipway_prometheus="updated")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("glsa_old", r"refused the token when asked to show its folders \(401: Invalid API key\): it is not one of"),
        (VIEWER, r"refused the token when asked to make a folder \(403: .*\): its role does not allow that.*Admin"),
    ],
)
def test_token_is_refused_in_words_that_do_not_show_it(stub: Stub, token: str, message: str) -> None:
    with pytest.raises(GrafanaTokenRefused, match=message) as caught:
        Grafana.at(stub.url, token).push(PROMETHEUS, OURS)
    assert token not in str(caught.value)


def test_annotation_is_global_or_for_one_dashboard(stub: Stub) -> None:
    grafana = Grafana.at(stub.url, ADMIN)
    grafana.annotate("flights 2 at 5%", ["shipway", "flights"], at_seconds=1700000000.25)
    grafana.annotate("rolled back", ["shipway"], at_seconds=1.0, until_seconds=2.5, dashboard_uid="shipway-drift")
    assert stub.annotations == [
        {"text": "flights 2 at 5%", "tags": ["shipway", "flights"], "time": 1700000000250},
        {"text": "rolled back", "tags": ["shipway"], "time": 1000, "timeEnd": 2500, "dashboardUID": "shipway-drift"},
    ]
    assert grafana.annotated(["flights"])
    assert grafana.annotated(["shipway", "flights"])
    assert not grafana.annotated(["shipway", "flights & more"])
    with pytest.raises(GrafanaRefused, match=r"would not write an annotation \(400\): Failed to save"):
        grafana.annotate("", ["shipway"], at_seconds=1.0)


def test_grafana_below_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(13) as stub:
        answer = stub.answer
        monkeypatch.setattr(stub, "answer", lambda method, target, *rest: answer(method, target[len("/g") :], *rest))
        stub.url += "/g"
        assert push(stub) == everything("created")


def test_nobody_there(free_ports: object) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"  # type: ignore[operator]
    with pytest.raises(GrafanaUnreachable, match=f"does not answer at {url}: .*Connection refused"):
        Grafana.at(url, ADMIN).push(PROMETHEUS, OURS)


@pytest.mark.parametrize(
    ("status", "page"),
    [(200, b"<html>Welcome</html>"), (502, b"<html>the message of a proxy</html>"), (502, b"<html>Bad gateway</html>")],
)
def test_something_else_answers(status: int, page: bytes) -> None:
    with serving(lambda *_: (status, page)) as url, pytest.raises(GrafanaError, match=url):
        Grafana.at(url, ADMIN).push(PROMETHEUS, OURS)


def shipway(tmp_path: Path, url: str, *words: str, mode: int = 0o600) -> subprocess.CompletedProcess[str]:
    token = tmp_path / "token"
    token.write_text(f"{ADMIN}\n")
    token.chmod(mode)
    settings = {"SHIPWAY_GRAFANA_URL": f"{url}/", "SHIPWAY_GRAFANA_TOKEN_FILE": str(token)}
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", "grafana", *words],
        env={"PATH": "/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_command_says_what_became_of_each_thing(tmp_path: Path) -> None:
    with running(13) as stub:
        first = shipway(tmp_path, stub.url, "push")
        assert first.returncode == 0, first.stderr
        assert "created   dashboard   shipway-serving" in first.stdout
        second = shipway(tmp_path, stub.url, "push", "--json")
        assert second.stdout.count('"outcome": "unchanged"') == 6
        assert stub.sources["Shipway"]["url"] == "http://127.0.0.1:9090"


def test_command_puts_errors_into_words(tmp_path: Path) -> None:
    with running(13) as stub:
        refused = shipway(tmp_path, stub.url, "push", mode=0o644)
        assert refused.returncode == 1
        assert "its mode is 0644" in refused.stderr
        assert stub.asked == []
    gone = shipway(tmp_path, stub.url, "push")
    assert gone.returncode == 1
    assert gone.stderr.startswith("shipway: Grafana does not answer at ")
    assert "Traceback" not in gone.stderr
