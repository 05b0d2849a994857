"""What a bench found: figures, and where there is a bar, whether it held."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = False
    """Whether the bar is an upper limit; else a lower one."""
    spread: tuple[float, float] | None = None
    """Least and largest within one turn."""

    @property
    def held(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    @property
    def bar_in_words(self) -> str:
        return "" if self.bar is None else f"{'at most' if self.at_most else 'at least'} {self.bar:g}"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        found: dict[str, Any] = {"name": self.name, "value": self.value, "unit": self.unit, "bar": self.bar}
        if self.bar is not None:
            found["limit"] = "at most" if self.at_most else "at least"
        if self.spread is not None:
            found["low"], found["high"] = self.spread
        return {**found, "held": self.held}
