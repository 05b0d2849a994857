"""Child processes that die with the launcher, and whose death it hears of."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Child:
    name: str
    process: asyncio.subprocess.Process
    log: Path

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and after `grace_seconds` SIGKILL to it and whatever it has started."""
        if grace_seconds > 0 and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own
        await self.process.wait()

    def last_lines(self, count: int = 12) -> list[str]:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-count:]
        return []


async def start(
    name: str, command: Sequence[str], *, log: Path, directory: Path, environment: Mapping[str, str]
) -> Child:
    """Start `command` in `directory` with its output appended to `log`."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    launcher = os.getpid()

    def die_with_launcher() -> None:
        # In the child, between fork and exec. The kernel sends the signal even if the launcher was killed by SIGKILL.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)  # it died before the request was in place

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,  # a terminal's Ctrl-C is for the launcher, which then drains
            preexec_fn=die_with_launcher,  # one thread at this point, and no allocation in it
        )
    return Child(name, process, log)
