"""When what was seen: accuracy above, and below it a line of days for each feature, as SVG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.bench.study.verdicts import DAY_HOURS, HOUR, WEEK_HOURS, Bools, Feature, Quality

COLOURS = {  # from the shortest window to the longest
    "1h": "#7b3294",
    "6h": "#2166ac",
    "1d": "#4daf4a",
    "7d": "#e08214",
}
DAY_SECONDS = DAY_HOURS * HOUR


def draw(target: Path, start: int, features: Sequence[Feature], quality: Quality) -> None:
    """Write the figure; `start` is the Unix time at which the first hour begins. The same bytes for the same data."""
    import matplotlib as mpl
    from matplotlib.dates import DateFormatter, MonthLocator
    from matplotlib.figure import Figure

    hours = len(quality.alert)
    ends = (start + HOUR * np.arange(1, hours + 1)).astype("datetime64[s]")
    figure = Figure(figsize=(10, 3.5 + 0.24 * len(features)), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2.6, 0.24 * len(features)])

    above.plot(ends, quality.accuracy(DAY_HOURS), color="0.75", linewidth=0.8, label="accuracy of a day")
    above.plot(ends, quality.accuracy(WEEK_HOURS), color="black", linewidth=1.4, label="accuracy of a week")
    above.axhline(quality.reference, color="black", linewidth=0.8, linestyle=":", label="when it was registered")
    above.plot(ends, quality.actual("late", WEEK_HOURS), color="#b2182b", linewidth=1.2, label="late flights, a week")
    above.fill_between(
        ends, 0, 1, where=quality.alert.tolist(), step="pre", color="#b2182b", alpha=0.15, linewidth=0,
        label="AccuracyLow",
    )  # fmt: skip
    above.set_ylim(0, 1)
    above.set_ylabel("share")
    above.legend(ncols=5, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)

    # Of the windows that alert, the longest is at the bottom and the shortest on top of it.
    for window, colour in reversed(COLOURS.items()):
        for place, feature in enumerate(features):
            for first, last in runs(feature.windows[window].alert):
                begin, end = start + HOUR * (first + 1), start + HOUR * (last + 1)
                width = max(end - begin, DAY_SECONDS // 2)  # an hour alone would be thinner than a line
                spans = [(np.datetime64(begin, "s"), np.timedelta64(width, "s"))]
                below.broken_barh(spans, (place - 0.4, 0.8), color=colour, linewidth=0)
    below.set_yticks(range(len(features)), [feature.name for feature in features], fontsize=7)
    below.set_ylim(len(features) - 0.4, -0.6)
    below.grid(axis="x", color="0.9")
    below.set_axisbelow(True)
    below.xaxis.set_major_locator(MonthLocator())  # type: ignore[no-untyped-call]
    below.xaxis.set_major_formatter(DateFormatter("%b"))  # type: ignore[no-untyped-call]
    below.set_xlim(np.datetime64(start, "s"), ends[-1])
    for window, colour in COLOURS.items():
        below.plot([], [], color=colour, linewidth=5, label=f"drift within {window}")
    below.legend(ncols=4, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    # Nothing by chance or by the clock.
    with mpl.rc_context({"svg.hashsalt": "study"}):
        figure.savefig(target, format="svg", metadata={"Date": None})


def runs(condition: Bools) -> list[tuple[int, int]]:
    """First hour of each run of True, and the first one after it."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], condition, [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
