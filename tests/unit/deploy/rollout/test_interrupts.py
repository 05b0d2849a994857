"""Ctrl-C at a terminal and elsewhere, and SIGTERM. The signals are real, and so is the terminal's line."""

import os
import signal
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from deploy.rollout.interrupts import QUESTION, Interrupts


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """What is written here stands on the standard input."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield terminal


def test_ctrl_c_asks_and_waits_for_nobody(typed: TextIO) -> None:
    said: list[str] = []
    interrupts = Interrupts(said.append, ask=True)
    with interrupts.heard():
        assert interrupts.wish() == ""
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wish() == ""  # the rollout is judged on meanwhile
        assert said == [QUESTION]
        typed.write("\n")
        assert interrupts.wish() == "roll back"


def test_no_lets_it_go_on_and_the_next_ctrl_c_asks_again(typed: TextIO) -> None:
    said: list[str] = []
    interrupts = Interrupts(said.append, ask=True)
    with interrupts.heard():
        signal.raise_signal(signal.SIGINT)
        typed.write("n\n")
        assert interrupts.wish() == ""
        signal.raise_signal(signal.SIGINT)
        assert said == [QUESTION, "The rollout goes on.", QUESTION]


@pytest.mark.usefixtures("typed")
def test_a_second_ctrl_c_is_an_answer() -> None:
    interrupts = Interrupts(lambda _: None, ask=True)
    with interrupts.heard():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wish() == "roll back"


def test_where_nobody_can_be_asked_ctrl_c_rolls_back() -> None:
    said: list[str] = []
    interrupts = Interrupts(said.append, ask=False)
    with interrupts.heard():
        signal.raise_signal(signal.SIGINT)
        assert (interrupts.wish(), said) == ("roll back", [])


def test_sigterm_leaves_it_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupts = Interrupts(lambda _: None, ask=False)
    with interrupts.heard():
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.wish() == "leave"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
