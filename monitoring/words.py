"""What moved in a feature, from where to where, in words."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from monitoring.profile import MISSING, OTHER

Array = npt.NDArray[np.float64]

LEAST_CHANGE = 0.01
"""Changes of less than a percentage point are not worth a word."""
MOST_CATEGORIES = 3


def is_ordered(feature: str, kind: str) -> bool:
    """Whether the feature's bins stand in the order of its values: all but categories and the predicted class."""
    return kind in ("number", "output") or (kind == "prediction" and feature != "class")


def what_moved(
    labels: tuple[str, ...], reference: Array, live: Array, *, ordered: bool, edges: tuple[float, ...] | None
) -> str:
    """One sentence without its subject, like "values of 12 or more went from 10% to 31%; missing from 0% to 4%".

    Reference and live are counts [bins] in the order of `labels`, of which the last may be `missing`. Shares of values
    are of the rows that have one, so that missing values do not move them. Without edges, values are named by the part
    of the profile that they were.
    """
    if not live.sum() or not reference.sum():
        return "no rows to compare"
    values = len(labels) - (labels[-1] == MISSING)
    before, after = _shares(reference[:values]), _shares(live[:values])
    moved = _interval(before, after, edges) if ordered else _categories(labels[:values], before, after)
    if values < len(labels):
        moved += _change("missing", _shares(reference)[-1], _shares(live)[-1])
    if not moved:
        return "nothing by a percentage point"
    first, *others = moved
    # Once is enough for the verb.
    return first.replace(" from ", " went from ", 1) + "".join(f"; {other}" for other in others)


def bin_words(labels: tuple[str, ...], *, ordered: bool, edges: tuple[float, ...] | None) -> tuple[str, ...]:
    """A short name of every bin, for an axis: "< 5", "5 to 12", a category; without edges a number's bins by rank."""
    values = labels[:-1] if labels[-1] == MISSING else labels
    if ordered and edges:
        inner = [f"{_number(low)} to {_number(high)}" for low, high in pairwise(edges)]
        words = [f"< {_number(edges[0])}", *inner, f"≥ {_number(edges[-1])}"]
    elif ordered:
        words = [f"{place + 1}" for place in range(len(values))]
    else:
        words = list(values)
    return (*words, *labels[len(values) :])


def percent(share: float) -> str:
    """A share of 1 in percent, with a decimal where it is small."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{100 * share:.1f}".removesuffix(".0") + "%" if share < 0.1 else f"{100 * share:.0f}%"


def _interval(before: Array, after: Array, edges: tuple[float, ...] | None) -> list[str]:
    """The run of neighbouring bins that gained most: a shift fills one end, less spread the middle."""
    gained = np.concatenate(([0.0], np.cumsum(after - before)))
    gains = np.triu(gained[np.newaxis, :] - gained[:, np.newaxis])  # [first bin, bin after the last]
    first, end = (int(place) for place in np.unravel_index(int(gains.argmax()), gains.shape))
    place = _between_edges(first, end, edges) if edges else _between_quantiles(before, first, end)
    return _change(place, float(before[first:end].sum()), float(after[first:end].sum()))


def _between_edges(first: int, end: int, edges: tuple[float, ...]) -> str:
    if first == 0:
        return f"values below {_number(edges[end - 1])}" if end <= len(edges) else "values"
    if end > len(edges):
        return f"values of {_number(edges[first - 1])} or more"
    return f"values between {_number(edges[first - 1])} and {_number(edges[end - 1])}"


def _between_quantiles(before: Array, first: int, end: int) -> str:
    low, high = float(before[:first].sum()), float(before[:end].sum())
    if first == 0:
        return f"the profile's lowest {percent(high)}"
    if end == len(before):
        return f"the profile's highest {percent(1 - low)}"
    return f"the profile's values between {percent(low)} and {percent(high)}"


def _categories(labels: tuple[str, ...], before: Array, after: Array) -> list[str]:
    largest = np.argsort(-np.abs(after - before), kind="stable")[:MOST_CATEGORIES]
    names = ["categories that the profile does not know" if label == OTHER else label for label in labels]
    return [words for place in largest for words in _change(names[place], before[place], after[place])]


def _change(what: str, before: float, after: float) -> list[str]:
    return [f"{what} from {percent(before)} to {percent(after)}"] if abs(after - before) >= LEAST_CHANGE else []


def _shares(counts: Array) -> Array:
    shares: Array = counts / max(float(counts.sum()), 1.0)
    return shares


def _number(edge: float) -> str:
    return f"{edge:.4g}" if abs(edge) < 10_000 else f"{edge:.0f}"
