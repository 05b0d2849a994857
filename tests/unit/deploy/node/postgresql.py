"""A real PostgreSQL of a test's own, as Debian installs it, on a free port of loopback and with a password."""

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

USER, PASSWORD = "shipway", "not to be seen"
UP_WITHIN_SECONDS = 30.0


@dataclass
class Server:
    """One cluster below `directory`."""

    directory: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def passfile(self) -> Path:
        return self.directory / "pgpass"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}?passfile={self.passfile}"

    def create(self) -> None:
        password = self.directory / "password"
        password.write_text(PASSWORD)
        self.passfile.touch(mode=0o600)
        self.passfile.write_text(f"127.0.0.1:*:*:{USER}:{PASSWORD}\n")
        for path in (self.directory, password):
            os.chown(path, _owner().pw_uid, _owner().pw_gid)
        arguments = ["-D", str(self.directory / "data"), "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run([_program("initdb"), *arguments, "-N"], check=True, capture_output=True, **_as_owner())

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off"}
        options["unix_socket_directories"] = str(self.directory)
        command = [_program("postgres"), "-D", str(self.directory / "data")]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_as_owner())
        deadline = time.monotonic() + UP_WITHIN_SECONDS
        while True:
            try:
                psycopg.connect(self.url()).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.directory / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """At once, as when its machine goes away; it repairs itself at its next start."""
        if self.process is not None:
            self.process.send_signal(3)
            self.process.wait()
            self.process = None

    def database(self, name: str) -> str:
        """The URL of a new database."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)


@contextlib.contextmanager
def server(directory: Path, port: int) -> Iterator[Server]:
    running = Server(directory, port)
    running.create()
    try:
        running.start()
        yield running
    finally:
        running.stop()


def _program(name: str) -> str:
    """Debian keeps them off the PATH."""
    versions: Sequence[Path] = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    assert found, f"PostgreSQL's {name} is not installed; run: make postgresql"
    return found


def _owner() -> pwd.struct_passwd:
    """PostgreSQL refuses to run as root; its package makes a user for it."""
    return pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


def _as_owner() -> dict[str, Any]:
    if os.getuid() != 0:
        return {"cwd": "/"}
    return {"user": _owner().pw_uid, "group": _owner().pw_gid, "extra_groups": [], "cwd": "/"}
