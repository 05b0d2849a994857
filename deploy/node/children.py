"""Child processes that die with the launcher, and that it starts again when they die before it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.processes import dies_with_us

logger = logging.getLogger(__name__)

SOON_SECONDS = 5.0
"""Who dies within this time of its start has died for good: to start it again would not help."""


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

    def death(self) -> str:
        """How it ended, in words; empty while it runs."""
        if self.process.returncode is None:
            return ""
        return f"{self.name} ended with {self.process.returncode}: " + " | ".join(self.last_lines(5))

    def last_lines(self, count: int) -> list[str]:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-count:]
        return []


@dataclass
class Kept:
    """A program that is started again whenever it dies, until it dies for good."""

    child: Child
    start: Callable[[], Awaitable[Child]]
    soon_seconds: float = SOON_SECONDS

    async def keep(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do the work, anew after each start; return when the program has died for good. Raises what the work raises.

        A work that is not done when the program dies is cancelled.
        """
        while True:
            started = time.monotonic()
            tasks = working, dying = asyncio.create_task(work()), asyncio.create_task(self.child.process.wait())
            try:
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
                if working.done():
                    working.result()
                    await dying
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            if time.monotonic() - started < self.soon_seconds:
                return
            logger.error("%s and is started again", self.child.death())
            await self.child.stop(0)  # what it had started, too
            self.child = await self.start()

    async def stop(self, grace_seconds: float) -> None:
        await self.child.stop(grace_seconds)


def reap(seen: set[int]) -> set[int]:
    """As PID 1 inherits the orphans of all others: let those go that have died. Returns the dead of now, for next time.

    Our own children are taken note of within milliseconds by whoever waits for them, so that who is dead and was so the
    `seen` time before is an orphan.
    """
    dead = {child.pid for child in psutil.Process().children() if _is_dead(child)}
    for process in dead & seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
    return dead - seen


def _is_dead(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # who started it took note of its end at this moment
        return False


async def start(
    name: str, command: Sequence[str], *, log: Path, directory: Path, environment: Mapping[str, str]
) -> Child:
    """Start `command` in `directory` with its output appended to `log`."""
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
            preexec_fn=dies_with_us(signal.SIGKILL),
        )
    return Child(name, process, log)
