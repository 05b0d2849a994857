"""Stands in for `shipway node`: says what it serves by its environment and the routing files. Standard library only."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SERVES = json.loads(os.environ["SHIPWAY_SERVES"])
NEVER_READY, NOT_FETCHED = 4, 5


def routed() -> Any:
    """The canary that is in force: the release's, with the rollout's weights where both mean the same."""
    directory = Path(os.environ.get("SHIPWAY_ROUTING_DIR", "/none"))
    try:
        canary = json.loads((directory / "release/routing.json").read_text())["canary"]
    except (OSError, ValueError):
        return None
    try:
        of_rollout = json.loads((directory / "rollout/routing.json").read_text())["canary"]
    except (OSError, ValueError):
        return canary
    same = canary and all(canary[key] == of_rollout[key] for key in ("version", "digest"))
    return {**canary, "weight": of_rollout["weight"], "mirror": of_rollout["mirror"]} if same else canary


def actual() -> str:
    canary, version = routed(), {"version": SERVES["version"], "digest": SERVES["digest"], "state": "READY"}
    weight = canary["weight"] if canary else 0
    versions = [{**version, "weight": 100 - weight}]
    if canary:
        versions.append({"version": canary["version"], "digest": canary["digest"], "weight": weight, "state": "READY"})
    mirror = {"version": canary["version"], "percent": canary["mirror"]} if canary and canary["mirror"] else None
    endpoint = {"model": SERVES["model"], "versions": versions, "mirror": mirror}
    return json.dumps({"pid": 1, "ready": True, "endpoints": [endpoint]})


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        never = SERVES["version"] == NEVER_READY and self.path == "/readyz"
        texts = {"/livez": "live\n", "/readyz": "ready\n", "/actual": actual()}
        text = "version 4 does not reproduce its golden set\n" if never else texts.get(self.path)
        self.send_response(503 if never else 200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every second."""


if sys.argv[1:] == ["fetch"]:
    if SERVES["version"] == NOT_FETCHED:
        words = "the registry holds another file under its name: expected sha256:5, found sha256:6"
        Path("/dev/termination-log").write_text(words)
        sys.exit(words)
else:
    server = ThreadingHTTPServer(("", 8082), Answers)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
