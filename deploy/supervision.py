"""supervisord, from our side: the configuration that it reads, and what we say to it over its unix socket."""

import getpass
import http.client
import os
import shlex
import sys
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from deploy.errors import SocketPathTooLong
from deploy.programs import Program

# sockaddr_un has 108 bytes, the last one is the terminating zero.
SOCKET_PATH_LIMIT_BYTES = 107
# supervisord first binds a socket of this name with its process id added, and renames it.
_BIND_SUFFIX = ".4194304"

LOG_BYTES = 10_000_000
LOG_BACKUPS = 3


@dataclass(frozen=True)
class Supervised:
    """What supervisord says about one program; `state` is its own word (RUNNING, STOPPED, BACKOFF, FATAL …)."""

    name: str
    state: str
    pid: int | None
    uptime_seconds: float | None


class Supervisor:
    """The supervisord that listens on `socket`, whether it runs or not."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def _call(self, method: str, *arguments: str | bool) -> Any:
        # A new connection for each call: supervisor's transport stays unusable after one that was refused.
        transport: Any = SupervisorTransport(None, None, f"unix://{self.socket}")
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def answers(self) -> bool:
        try:
            self._call("getState")
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False
        return True

    def pid(self) -> int:
        return int(self._call("getPID"))

    def programs(self) -> dict[str, Supervised]:
        return {info["name"]: _supervised(info) for info in self._call("getAllProcessInfo")}

    def start(self, name: str) -> None:
        """Start a program that does not run; returns at once."""
        self._call("startProcess", name, False)  # noqa: FBT003 - XML-RPC has no named arguments: wait=False

    def stop(self, name: str) -> None:
        """Stop a program, or the attempts to restart it; returns when it has ended."""
        self._call("stopProcess", name)

    def shutdown(self) -> None:
        """Make supervisord stop its programs and end; returns at once."""
        self._call("shutdown")


def _supervised(info: dict[str, Any]) -> Supervised:
    runs = info["pid"] != 0
    return Supervised(
        name=info["name"],
        state=info["statename"],
        pid=info["pid"] if runs else None,
        uptime_seconds=float(info["now"] - info["start"]) if runs else None,
    )


def socket_path(run_dir: Path) -> Path:
    """Where supervisord listens.

    Raises:
        SocketPathTooLong: the operating system would refuse the path.
    """
    path = run_dir / "supervisor.sock"
    limit = SOCKET_PATH_LIMIT_BYTES - len(_BIND_SUFFIX)
    if len(os.fsencode(path)) > limit:
        raise SocketPathTooLong(path, limit)
    return path


def daemon_command(config: Path) -> list[str]:
    """The command that starts supervisord in the background."""
    return [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(config)]


def supervisord_config(programs: Sequence[Program], run_dir: Path, logs_dir: Path) -> str:
    """The text of supervisord.conf. It holds no environment: programs inherit supervisord's own, secrets included."""
    head = [
        "[supervisord]",
        f"pidfile={_quoted(run_dir / 'supervisord.pid')}",
        f"logfile={_quoted(logs_dir / 'supervisord.log')}",
        f"logfile_maxbytes={LOG_BYTES}",
        f"logfile_backups={LOG_BACKUPS}",
        f"directory={_quoted(logs_dir.parent)}",
        "umask=077",
        # Without a `user` supervisord warns root that it runs as root.
        *([f"user={getpass.getuser()}"] if os.getuid() == 0 else []),
        "",
        "[unix_http_server]",
        f"file={_quoted(socket_path(run_dir))}",
        "chmod=0700",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    sections = [_section(program, place, logs_dir) for place, program in enumerate(programs, start=1)]
    return "\n\n".join(["\n".join(head), *sections]) + "\n"


def _section(program: Program, place: int, logs_dir: Path) -> str:
    return "\n".join(
        [
            f"[program:{program.name}]",
            f"command={_quoted(shlex.join(program.command))}",
            # `up` starts them itself, to see each one come up; supervisord stops them in the opposite order.
            "autostart=false",
            f"priority={place}",
            "autorestart=true",
            "startsecs=1",
            f"stopwaitsecs={program.stop_within_seconds}",
            f"stopasgroup={str(program.stop_whole_group).lower()}",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_quoted(logs_dir / f'{program.name}.log')}",
            f"stdout_logfile_maxbytes={LOG_BYTES}",
            f"stdout_logfile_backups={LOG_BACKUPS}",
        ]
    )


def _quoted(value: Path | str) -> str:
    # supervisord expands %(…)s, and takes " ;" for the start of a comment.
    return str(value).replace("%", "%%")
