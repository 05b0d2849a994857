"""Waiting for something that other processes or threads bring about: with a deadline, and never for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], within_seconds: float) -> T:
    """The first true value of `condition`; AssertionError with the last value otherwise."""
    deadline = time.monotonic() + within_seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_seconds} s: {found!r}"
        time.sleep(0.05)
    return found
