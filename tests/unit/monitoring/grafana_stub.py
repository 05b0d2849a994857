"""A server that answers as Grafana 11, 12 or 13 does, as far as Shipway asks, and refuses what they no longer answer.

No Grafana can be installed where these tests run: Debian 12 has none, and no package of PyPI or npm ships the server.
So this stands in for it, at the edge of what cannot run here. What it does is taken from Grafana's HTTP API reference
and from its issues and pull requests:

    numeric ids of data sources   work in 11 and 12, switched off in 13 (grafana/grafana#119930)
    `folderId` of a dashboard     works in 11 and 12; 13 puts the dashboard into the root and says nothing
    a title that is taken         412 `name-exists` up to 11.2; later two dashboards of one title are allowed (#90687)
    API keys (/auth/keys)         answered by none (#92144), nor are notification channels
"""

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
Answer = tuple[int, Any]

ADMIN, VIEWER = "glsa_admin", "glsa_viewer"


@dataclass
class Stub:
    """What this Grafana holds, and what it was asked, as `METHOD /path`."""

    release: int
    empty_answers: bool = False
    """Answer PUT and POST with 204 and no body, as some do."""
    folders: dict[str, Json] = field(default_factory=dict)
    sources: dict[str, Json] = field(default_factory=dict)
    """By name."""
    dashboards: dict[str, Json] = field(default_factory=dict)
    """By uid: `dashboard` as stored, and `folderUid`, empty for the root."""
    annotations: list[Json] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def writes(self) -> list[str]:
        return [each for each in self.asked if not each.startswith("GET")]

    def answer(self, method: str, target: str, token: str, body: Json) -> Answer:
        path = urlsplit(target).path
        self.asked.append(f"{method} {path}")
        if token not in (ADMIN, VIEWER):
            return 401, {"message": "Invalid API key"}
        if method != "GET" and token == VIEWER:
            return 403, {"message": "You'll need additional permissions to perform this action."}
        for wanted, pattern, answer in self._routes():
            if method == wanted and (match := re.fullmatch(f"/api{pattern}", path)):
                found = answer(unquote(match[1]) if match.groups() else target, body)
                return (204, None) if self.empty_answers and method != "GET" and found[0] == 200 else found
        return 404, {"message": "Not found"}

    def _routes(self) -> list[tuple[str, str, Callable[[str, Json], Answer]]]:
        return [
            ("GET", "/folders/([^/]+)", self._folder),
            ("POST", "/folders", self._make_folder),
            ("GET", "/datasources/name/([^/]+)", self._source),
            ("POST", "/datasources", self._make_source),
            ("PUT", "/datasources/uid/([^/]+)", self._change_source),
            ("PUT", "/datasources/([0-9]+)", self._change_source_by_number),
            ("GET", "/search", self._search),
            ("POST", "/dashboards/db", self._save_dashboard),
            ("POST", "/annotations", self._annotate),
            ("GET", "/annotations", self._annotations),
        ]

    def _folder(self, uid: str, _: Json) -> Answer:
        return (200, self.folders[uid]) if uid in self.folders else (404, {"message": "folder not found"})

    def _make_folder(self, _: str, body: Json) -> Answer:
        if body["uid"] in self.folders:
            return 409, {"message": "a folder with the same UID already exists"}
        self.folders[body["uid"]] = {**body, "id": len(self.folders) + 1}
        return 200, self.folders[body["uid"]]

    def _source(self, name: str, _: Json) -> Answer:
        return (200, self.sources[name]) if name in self.sources else (404, {"message": "Data source not found"})

    def _make_source(self, _: str, body: Json) -> Answer:
        if body["name"] in self.sources:
            return 409, {"message": "data source with the same name already exists"}
        if any(each["uid"] == body["uid"] for each in self.sources.values()):
            return 409, {"message": "data source with the same uid already exists"}
        # Grafana adds what was not said.
        added = {"id": len(self.sources) + 1, "orgId": 1, "basicAuth": False, "readOnly": False, "version": 1}
        self.sources[body["name"]] = {**added, **body}
        return 200, {"datasource": self.sources[body["name"]], "message": "Datasource added", "name": body["name"]}

    def _change_source(self, uid: str, body: Json) -> Answer:
        found = next((each for each in self.sources.values() if each["uid"] == uid), None)
        if found is None:
            return 404, {"message": "Data source not found"}
        if found["readOnly"]:
            return 403, {"message": "Cannot update read-only data source"}
        if body.get("version") not in (None, found["version"]):
            return 409, {"message": "Datasource has already been updated by someone else"}
        found.update(body, version=found["version"] + 1)
        return 200, {"datasource": found, "message": "Datasource updated", "name": found["name"]}

    def _change_source_by_number(self, number: str, body: Json) -> Answer:
        if self.release >= 13:
            return 404, {"message": "Not found"}
        return self._change_source(next(s["uid"] for s in self.sources.values() if s["id"] == int(number)), body)

    def _search(self, target: str, _: Json) -> Answer:
        uids = parse_qs(urlsplit(target).query).get("dashboardUIDs", list(self.dashboards))
        found = []
        for uid in uids:
            if uid in self.dashboards:
                stored, folder = self.dashboards[uid]["dashboard"], self.dashboards[uid]["folderUid"]
                place = {"folderUid": folder, "folderTitle": self.folders[folder]["title"]} if folder else {}
                found.append({"uid": uid, "title": stored["title"], "tags": stored["tags"], "type": "dash-db"} | place)
        return 200, found

    def _save_dashboard(self, _: str, body: Json) -> Answer:
        wanted, uid = copy.deepcopy(body["dashboard"]), body["dashboard"]["uid"]
        folder = body.get("folderUid", "")
        if not folder and self.release < 13 and body.get("folderId"):
            folder = next(uid for uid, each in self.folders.items() if each["id"] == body["folderId"])
        stored = self.dashboards.get(uid)
        version = stored["dashboard"]["version"] if stored else 0
        if stored and stored.get("provisioned"):
            return 400, {"message": "Cannot save provisioned dashboard"}
        if stored and not body.get("overwrite") and wanted["version"] != version:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        if self.release == 11 and not body.get("overwrite") and self._same_title(wanted, folder):
            return 412, {"message": "A dashboard with the same name in the folder exists", "status": "name-exists"}
        wanted["version"] = version + 1
        self.dashboards[uid] = {"dashboard": wanted, "folderUid": folder}
        return 200, {"uid": uid, "status": "success", "version": version + 1, "folderUid": folder}

    def _same_title(self, wanted: Json, folder: str) -> bool:
        return any(
            each["folderUid"] == folder and each["dashboard"]["title"] == wanted["title"] and uid != wanted["uid"]
            for uid, each in self.dashboards.items()
        )

    def _annotate(self, _: str, body: Json) -> Answer:
        if not body.get("text"):
            return 400, {"message": "Failed to save annotation"}
        self.annotations.append(body)
        return 200, {"message": "Annotation added", "id": len(self.annotations)}

    def _annotations(self, target: str, _: Json) -> Answer:
        asked = parse_qs(urlsplit(target).query)
        found = [each for each in self.annotations if set(asked.get("tags", [])) <= set(each["tags"])]
        return 200, found[: int(asked.get("limit", ["100"])[0])]


@contextmanager
def serving(respond: Callable[[str, str, str, Json], tuple[int, bytes]]) -> Iterator[str]:
    """A server on a free port of loopback; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, answer = respond(self.command, self.path, token, body or {})
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _respond  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(release: int, *, empty_answers: bool = False) -> Iterator[Stub]:
    stub = Stub(release, empty_answers=empty_answers)

    def respond(method: str, target: str, token: str, body: Json) -> tuple[int, bytes]:
        status, answer = stub.answer(method, target, token, body)
        return status, b"" if answer is None else json.dumps(answer).encode()

    with serving(respond) as stub.url:
        yield stub
