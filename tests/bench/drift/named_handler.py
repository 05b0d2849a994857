"""A user's handler of the MLP: it names the first values of a row, and the outputs are counted anyway: 30 features."""

from typing import Any

import numpy.typing as npt

from handlers import generic
from monitoring.rff import pooled

NAMED = 20


class NamedHandler(generic.GenericHandler):
    def load(self) -> None:
        super().load()
        self.numbers = tuple(f"value {at}" for at in range(NAMED))

    def described(self, inputs: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        (rows,) = inputs
        return rows[:, :NAMED], pooled(rows)
