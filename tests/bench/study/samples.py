"""Scrapes of a node as OpenMetrics text with times of our own, and labels as a node counts them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from monitoring.names import (
    CONFIDENCE_SUM,
    FEATURE_ROWS,
    FEEDBACK,
    REFERENCE_ACCURACY,
    REFERENCE_ROWS,
    ROWS,
    USUAL_PSI_EXCESS,
)

KEPT = tuple(
    one.name for one in (FEATURE_ROWS, REFERENCE_ROWS, USUAL_PSI_EXCESS, ROWS, CONFIDENCE_SUM, REFERENCE_ACCURACY)
)
"""What drift and quality are computed from."""
END = "# EOF\n"


def stamped(exposition: str, at: int, model: str) -> Iterator[str]:
    """The samples of KEPT in a node's `/metrics`, each a line with the Unix time `at`."""
    mine = f'model="{model}"'
    for line in exposition.splitlines():
        if line.startswith(KEPT) and mine in line:
            yield f"{line} {at}\n"


class Confusion:
    """Rows by predicted and actual class, counted `delay` seconds after their prediction, when the label is known."""

    def __init__(self, model: str, version: int, classes: Sequence[str], delay: int) -> None:
        self._labels = f'model="{model}",version="{version}"'
        self._delay = delay
        self._rows = {(predicted, actual): 0 for predicted in classes for actual in classes}
        self._waiting: deque[tuple[int, str, str]] = deque()

    def predicted(self, at: int, answers: Iterable[tuple[str, str]]) -> None:
        """Rows that were predicted at `at`, in order of time: predicted and actual class."""
        self._waiting.extend((at + self._delay, *answer) for answer in answers)

    def lines(self, at: int) -> Iterator[str]:
        """Every counter as it is at the Unix time `at`."""
        while self._waiting and self._waiting[0][0] <= at:
            _, predicted, actual = self._waiting.popleft()
            self._rows[predicted, actual] += 1
        for (predicted, actual), rows in self._rows.items():
            yield f'{FEEDBACK.name}{{{self._labels},predicted="{predicted}",actual="{actual}"}} {rows} {at}\n'
