#!/usr/bin/env python3
"""Stands in for the node where only the release matters: says what it serves by environment and routing files.

Standard library only. Version 4 never gets ready, version 5 cannot be fetched.
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NEVER_READY, NOT_FETCHED = 4, 5
BROKEN = threading.Event()
"""Since somebody asked for /break."""


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


def actual(serves: Any) -> str:
    canary, version = routed(), {"version": serves["version"], "digest": serves["digest"], "state": "READY"}
    weight = canary["weight"] if canary else 0
    versions = [{**version, "weight": 100 - weight}]
    if canary:
        versions.append({"version": canary["version"], "digest": canary["digest"], "weight": weight, "state": "READY"})
    mirror = {"version": canary["version"], "percent": canary["mirror"]} if canary and canary["mirror"] else None
    endpoint = {"model": serves["model"], "versions": versions, "mirror": mirror}
    return json.dumps({"pid": 1, "ready": True, "endpoints": [endpoint]})


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        serves = json.loads(os.environ["SHIPWAY_SERVES"])
        if self.path == "/break":
            BROKEN.set()
        unready = "version 4 does not reproduce its golden set\n" if serves["version"] == NEVER_READY else ""
        unready = "its worker has ended\n" if BROKEN.is_set() else unready
        texts = {"/livez": "live\n", "/readyz": unready or "ready\n", "/actual": actual(serves), "/break": "broken\n"}
        text = texts.get(self.path)
        self.send_response(503 if self.path == "/readyz" and unready else 200 if text else 404)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every second."""


def fetch(version: int) -> None:
    if version == NOT_FETCHED:
        words = "the registry holds another file under its name: expected sha256:5, found sha256:6"
        Path("/dev/termination-log").write_text(words)
        sys.exit(words)


def serve() -> None:
    server = ThreadingHTTPServer(("", 8082), Answers)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "fetch":
        fetch(int(sys.argv[3]))
    else:
        serve()
