"""Dashboards, their folder and data source in Grafana 11 to 13, through its HTTP API; and annotations.

Grafana takes away its numeric ids, call by call, so everything here goes by uid and needs few calls. Whether a
dashboard is as it should be is read off a tag with its digest, which `search` shows: every save makes a new version.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote, urlsplit

from monitoring.dashboards.blocks import DATA_SOURCE_UID, TAG, Json
from monitoring.errors import GrafanaRefused, GrafanaTaken, GrafanaTokenRefused, GrafanaUnreachable

if TYPE_CHECKING:
    from grafana_api import GrafanaFace

FOLDER_UID, FOLDER_TITLE = "shipway", "Shipway"
DATA_SOURCE_NAME = "Shipway"
TIMEOUT_SECONDS = 10.0

Outcome = Literal["created", "updated", "unchanged"]


@dataclass(frozen=True)
class Pushed:
    """What became of one thing in Grafana."""

    kind: Literal["folder", "data source", "dashboard"]
    uid: str
    title: str
    outcome: Outcome


def data_source(prometheus_url: str) -> Json:
    """Prometheus as a data source of Grafana, which asks it at this address."""
    return {
        "uid": DATA_SOURCE_UID,
        "name": DATA_SOURCE_NAME,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
        # The scrape interval, or more: Grafana makes the windows of rates out of it.
        "jsonData": {"httpMethod": "POST", "timeInterval": "15s"},
    }


class Grafana:
    """One Grafana and a token for it. Every call raises GrafanaError."""

    def __init__(self, client: "GrafanaFace", url: str) -> None:
        self._client = client
        self._url = url

    @classmethod
    def at(cls, url: str, token: str) -> Self:
        """The Grafana whose start page is at this URL; asks it nothing yet."""
        from grafana_api import GrafanaFace

        parts = urlsplit(url)
        path = parts.path.strip("/")
        client = GrafanaFace(
            token,
            host=parts.netloc,
            url_path_prefix=f"{path}/" if path else "",
            protocol=parts.scheme,
            timeout=TIMEOUT_SECONDS,
        )
        return cls(client, url)

    def push(self, prometheus_url: str, dashboards: Sequence[Json]) -> list[Pushed]:
        """Make Grafana have the folder, the data source and the dashboards.

        What is there already as it should be is left alone. What other people have made is never written over.
        """
        folder = self._push_folder()
        source = self._push_data_source(data_source(prometheus_url))
        found = self._search([each["uid"] for each in dashboards])
        return [folder, source, *(self._push_dashboard(each, found.get(each["uid"])) for each in dashboards)]

    def annotate(
        self,
        text: str,
        tags: Sequence[str],
        *,
        at_seconds: float,
        until_seconds: float | None = None,
        dashboard_uid: str | None = None,
    ) -> None:
        """Mark a moment, or a time, in all dashboards that show annotations with one of the tags, or in one of them.

        Our dashboards show the tag `shipway`. Times are seconds since 1970.
        """
        annotation: Json = {"text": text, "tags": list(tags), "time": round(at_seconds * 1000)}
        if until_seconds is not None:
            annotation["timeEnd"] = round(until_seconds * 1000)
        if dashboard_uid is not None:
            annotation["dashboardUID"] = dashboard_uid
        # Not add_annotation: it knows numeric ids alone.
        self._ask("write an annotation", lambda: self._client.api.POST("/annotations", json=annotation))

    def annotated(self, tags: Sequence[str]) -> bool:
        """Whether there is an annotation that has all of these tags."""
        wanted = "&".join(f"tags={quote(tag, safe='')}" for tag in tags)
        return bool(
            self._ask(
                "show annotations", lambda: self._client.api.GET(f"/annotations?type=annotation&limit=1&{wanted}")
            )
        )

    def _push_folder(self) -> Pushed:
        outcome: Outcome = "unchanged"
        try:
            self._ask("show its folders", lambda: self._client.folder.get_folder(FOLDER_UID))
        except _NotThere:
            self._ask("make a folder", lambda: self._client.folder.create_folder(FOLDER_TITLE, FOLDER_UID))
            outcome = "created"
        return Pushed("folder", FOLDER_UID, FOLDER_TITLE, outcome)

    def _push_data_source(self, wanted: Json) -> Pushed:
        name, uid = wanted["name"], wanted["uid"]
        sources = self._client.datasource
        outcome: Outcome = "unchanged"
        try:
            found = self._ask("show its data sources", lambda: sources.get_datasource_by_name(name))
        except _NotThere:
            self._ask("make a data source", lambda: sources.create_datasource(wanted))
            return Pushed("data source", uid, name, "created")
        if found["uid"] != uid:
            remedy = f"Rename it, or give it the uid {uid}."
            raise GrafanaTaken(f"a data source {name!r}", f"its uid is {found['uid']}", remedy)
        # What a person has added, such as a header or a client certificate, stays.
        options = {**(found.get("jsonData") or {}), **wanted["jsonData"]}
        whole = {**found, **wanted, "jsonData": options}
        if whole != found:
            if found.get("readOnly"):
                facts = f"it comes from a file, and its URL is {found['url']}"
                raise GrafanaTaken(f"a data source {name!r}", facts, "Change that file, or delete it.")
            # Not update_datasource: Grafana 13 has switched off its numeric id.
            self._ask("change a data source", lambda: self._client.api.PUT(f"/datasources/uid/{uid}", json=whole))
            outcome = "updated"
        return Pushed("data source", uid, name, outcome)

    def _search(self, uids: Sequence[str]) -> dict[str, Json]:
        """Those that are there, by uid, with their tags and their folder."""
        wanted = "&".join(f"dashboardUIDs={uid}" for uid in uids)
        # Not search_dashboards: it knows numeric ids alone.
        found = self._ask("look for dashboards", lambda: self._client.api.GET(f"/search?type=dash-db&{wanted}"))
        return {each["uid"]: each for each in found if each["uid"] in uids}

    def _push_dashboard(self, wanted: Json, found: Json | None) -> Pushed:
        uid, title = wanted["uid"], wanted["title"]
        mark = _mark(wanted)
        if found is not None and TAG not in found["tags"]:
            raise GrafanaTaken(
                f"a dashboard with the uid {uid}",
                f"{found['title']!r} in the folder {found.get('folderTitle') or 'Dashboards'!r} lacks the tag {TAG!r}",
                "Give it another uid, or delete it.",
            )
        if found is not None and found.get("folderUid") == FOLDER_UID and mark in found["tags"]:
            return Pushed("dashboard", uid, title, "unchanged")
        saving = {
            "dashboard": {**wanted, "tags": [*wanted["tags"], mark]},
            "folderUid": FOLDER_UID,
            "message": "shipway grafana push",
            # Only what search has shown to be ours: whatever else is in the way stays, and Grafana says what it is.
            "overwrite": found is not None,
        }
        self._ask(f"save the dashboard {uid}", lambda: self._client.dashboard.update_dashboard(saving))
        return Pushed("dashboard", uid, title, "created" if found is None else "updated")

    def _ask(self, asked: str, call: Callable[[], Any]) -> Any:
        """What Grafana answers; empty if it has answered with no body.

        Raises:
            GrafanaError: in words, whatever way the call failed; _NotThere is for the caller.
        """
        from grafana_api.grafana_api import GrafanaException
        from requests.exceptions import JSONDecodeError, RequestException

        try:
            return call()
        except JSONDecodeError as error:
            if error.doc:
                raise GrafanaUnreachable(self._url, "what answers there does not speak JSON") from None
            return {}  # done, and nothing to say (204), which the client takes for broken JSON
        except RequestException as error:
            raise GrafanaUnreachable(self._url, _reason(error)) from None
        except GrafanaException as error:
            facts = (self._url, asked, error.status_code, _words(error.response))
            if error.status_code == 404:
                raise _NotThere(*facts) from None
            kind = GrafanaTokenRefused if error.status_code in (401, 403) else GrafanaRefused
            raise kind(*facts) from None
        except TypeError:
            # The client looks for Grafana's words in an error page, and takes "message" in its text for a key.
            raise GrafanaUnreachable(self._url, "what answers there is an error page, and not Grafana's") from None


class _NotThere(GrafanaRefused):
    """404."""


def _mark(wanted: Json) -> str:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return f"{TAG}-{digest[:12]}"


def _words(response: Any) -> str:
    """Grafana's own message; of a page that is not Grafana's, the beginning."""
    return str(response["message"] if isinstance(response, dict) and "message" in response else response)[:200]


def _reason(error: Exception) -> str:
    """The innermost cause: what requests and urllib3 wrap around it says less."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return str(error)
