"""What the person at the terminal, or whoever ends processes, wants of a rollout that runs."""

import contextlib
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Literal

from deploy.errors import LeftUnfinished
from deploy.rollout.record import Entry

Wish = Literal["", "roll back", "leave"]

QUESTION = "Roll back? [Y/n] "


class Interrupts:
    """Ctrl-C asks once and rolls back; a second one does so at once, as does the first where nobody can be asked.

    SIGTERM leaves the rollout as it is. Nothing waits for an answer: the rollout is judged while the question stands.
    """

    def __init__(self, say: Callable[[str], None], *, ask: bool) -> None:
        self._say = say
        self._ask = ask
        self._asking = False
        self._wish: Wish = ""

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Signals say what is wished for and interrupt nothing, so that the ledger and the traffic agree."""
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: self._interrupted()),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: self._ended()),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wish(self) -> Wish:
        if self._asking and select.select([sys.stdin], [], [], 0)[0]:
            self._asking = False
            if sys.stdin.readline().strip().lower() in ("n", "no"):
                self._say("The rollout goes on.")
            else:
                self._wish = "roll back"
        return self._wish

    def _interrupted(self) -> None:
        if self._ask and not self._asking:
            self._asking = True
            self._say(QUESTION)
        else:
            self._wish = "roll back"

    def _ended(self) -> None:
        self._wish = "leave"


class Interrupted(Exception):
    """The person wants the rollout taken back."""


def obey(wish: Wish, entry: Entry) -> None:
    """Raise what the wish means for a rollout that stands at `entry`: Interrupted or LeftUnfinished."""
    if wish == "leave":
        raise LeftUnfinished(entry.model, entry.rollout, entry.state or "")
    if wish == "roll back" and entry.state != "ROLLING_BACK":
        raise Interrupted
