"""The figures of a report, each a plotly figure or None where there is nothing to draw."""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from plotly.graph_objects import Bar, Figure, Heatmap, Scatter
from plotly.subplots import make_subplots

from deploy.drift import Judged
from deploy.prometheus import Array, Range
from deploy.report.gather import CONFIDENCE_Z, Heat, Labels, Lines
from monitoring.drift import wilson_interval
from monitoring.profile import MISSING
from monitoring.words import bin_words, is_ordered, percent

INK, GRID, BLANK = "#24292f", "#e6e8eb", "#eceef1"
LIVE, BEFORE = "#d1495b", "#9aa5b1"
VERSION_COLOURS = ("#1f6feb", "#e36209", "#1a7f37", "#8250df", "#bf3989", "#57606a")
DASHES = ("dot", "dash", "solid")
"""Of the quantiles, the highest the plainest."""
# Of PSI excess. The steps are the ones that rules alert on over 6 hours, 1 hour and 10 minutes.
EFFECTS = ((0.0, "#ffffff"), (0.05, "#fdf0c4"), (0.1, "#fdbf6f"), (0.25, "#e8603c"), (0.5, "#8b0a1a"))
MOST_BARS = 14
MOST_MISSING = 15


def rate(lines: Lines) -> Figure:
    """Requests a second by version."""
    return _over_time(_by_version(lines.rate, "{}"), "requests a second", rangemode="tozero")


def errors(lines: Lines) -> Figure:
    """Shares answered 5xx and 4xx by version."""
    traces = [*_by_version(lines.failed, "{}, failed (5xx)"), *_by_version(lines.refused, "{}, refused (4xx)", "dot")]
    return _over_time(traces, "share of requests", rangemode="tozero", tickformat=".1~%")


def latency(lines: Lines) -> Figure:
    """Percentiles by version, from the edge to the version and back."""
    traces = [
        trace
        for (quantile, found), dash in zip(lines.latency.items(), DASHES, strict=True)
        for trace in _by_version(found, f"{{}}, p{100 * quantile:g}", dash)
    ]
    return _over_time(traces, "time to answer", rangemode="tozero", tickformat="~s", ticksuffix="s")


def heat(found: Heat, least_rows: float) -> Figure:
    """PSI excess of features over the window's parts; cells with fewer effective rows stay blank."""
    effect = np.stack([one.psi_excess for one in found.compared])
    z = np.stack([one.z for one in found.compared])
    rows = np.stack([one.rows for one in found.compared])
    enough = np.stack([one.rows_effective for one in found.compared]) >= least_rows
    steps = [edge for edge, _ in EFFECTS]
    cells = Heatmap(
        x=_middles(found),
        y=[_name(name) for name, _ in found.features],
        z=np.where(enough, effect, np.nan),
        zmin=steps[0],
        zmax=steps[-1],
        colorscale=[[edge / steps[-1], colour] for edge, colour in EFFECTS],
        customdata=np.stack([z, rows], axis=-1),
        hovertemplate="%{y}, %{x|%H:%M}: PSI excess %{z:.3f}, z %{customdata[0]:.1f}, %{customdata[1]:,.0f} rows"
        "<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "PSI excess", "side": "right"},
            "tickvals": steps,
            "ticktext": [*(f"{edge:g}" for edge in steps[:-1]), f"≥ {steps[-1]:g}"],
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    figure = _styled(Figure(cells), height=110 + 22 * len(found.features))
    figure.update_layout(plot_bgcolor=BLANK, margin_l=10)
    figure.update_xaxes(showgrid=False, type="date")
    # Every name, the largest effect at the top.
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True, tickmode="linear", type="category")
    return figure


def against_profile(one: Judged) -> Figure:
    """Shares of one feature's bins in the profile and in traffic."""
    ordered = is_ordered(one.counts.feature, one.counts.kind)
    words = bin_words(one.counts.labels, ordered=ordered, edges=one.edges)
    bars = list(zip(words, _shares(one.counts.reference), _shares(one.live), strict=True))
    if bars[-1][0] == MISSING and not any(bars[-1][1:]):
        bars.pop()
    if not ordered:
        bars = _largest(bars)
    names = [_name(name) for name, _, _ in bars]
    figure = Figure(
        [
            Bar(x=names, y=[m for _, m, _ in bars], name="profile", marker_color=BEFORE),
            Bar(x=names, y=[n for _, _, n in bars], name="traffic", marker_color=LIVE),
        ]
    )
    figure = _styled(figure, height=260)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=5)
    figure.update_xaxes(type="category", showgrid=False, automargin=True)
    return figure


def missing(features: Iterable[Judged]) -> Figure | None:
    """Shares without a value, of the features that lack some; None if none does."""
    shares = [
        (_name(one.name), _shares(one.counts.reference)[-1], _shares(one.live)[-1])
        for one in features
        if one.counts.labels[-1] == MISSING
    ]
    lacking = sorted((one for one in shares if one[1] or one[2]), key=lambda one: -abs(one[2] - one[1]))[:MOST_MISSING]
    if not lacking:
        return None
    names, before, live = zip(*reversed(lacking), strict=True)
    text = {"textposition": "outside", "cliponaxis": False}
    figure = Figure(
        [
            Bar(y=names, x=live, text=[percent(one) for one in live], name="traffic",
                              marker_color=LIVE, orientation="h", **text),
            Bar(y=names, x=before, text=[percent(one) for one in before], name="profile",
                              marker_color=BEFORE, orientation="h", **text),
        ]
    )  # fmt: skip
    figure = _styled(figure, height=100 + 42 * len(lacking))
    figure.update_layout(legend_traceorder="reversed")
    figure.update_xaxes(tickformat=".0~%", range=[0, 1.12 * max(*before, *live)])
    figure.update_yaxes(type="category", showgrid=False, automargin=True)
    return figure


def quality(labels: Labels, found: Heat) -> Figure:
    """Accuracy with its bounds, and the labelled share of rows, over the window's parts."""
    times = _middles(found)
    hits = np.diagonal(labels.confusion, axis1=1, axis2=2).sum(-1)
    labelled = labels.confusion.sum((1, 2))
    accuracy = np.divide(hits, labelled, out=np.full(len(hits), np.nan), where=labelled > 0)
    low, high = wilson_interval(hits, labelled, CONFIDENCE_Z)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3], vertical_spacing=0.08)
    figure.add_scatter(
        x=times,
        y=accuracy,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": high - accuracy,
            "arrayminus": accuracy - low,
            "width": 3,
        },
        mode="lines+markers",
        name="accuracy, 95% bounds",
        line_color=VERSION_COLOURS[0],
        row=1,
        col=1,
    )
    if labels.reference_accuracy is not None:
        figure.add_scatter(
            x=[times[0], times[-1]],
            y=[labels.reference_accuracy] * 2,
            mode="lines",
            name="when registered",
            line={"color": BEFORE, "dash": "dash"},
            row=1,
            col=1,
        )
    figure.add_bar(x=times, y=labels.coverage, name="labelled rows", marker_color="#b6c8e4", row=2, col=1)
    figure = _styled(figure, height=380)
    figure.update_yaxes(tickformat=".1~%", title_text="accuracy", row=1, col=1)
    figure.update_yaxes(tickformat=".0~%", title_text="labelled", rangemode="tozero", nticks=4, row=2, col=1)
    return figure


def _by_version(found: Range, name: str, dash: str = "solid") -> list[Any]:
    times = [_time(one) for one in found.times]
    versions = sorted(found.by("version").items(), key=lambda item: int(item[0][0]))
    return [
        Scatter(
            x=times,
            y=values,
            mode="lines",
            name=name.format(f"version {version}"),
            line={"color": VERSION_COLOURS[place % len(VERSION_COLOURS)], "dash": dash, "width": 2},
        )
        for place, ((version,), values) in enumerate(versions)
    ]


def _over_time(traces: list[Any], title: str, **y: Any) -> Figure:
    figure = _styled(Figure(traces), height=300)
    figure.update_yaxes(title_text=title, **y)
    figure.update_xaxes(type="date")
    return figure


def _styled(figure: Figure, height: int) -> Figure:
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 36, "b": 40},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hovermode="closest",
        bargap=0.25,
    )
    figure.update_xaxes(gridcolor=GRID, linecolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, linecolor=GRID, zeroline=False, title_font_size=13)
    return figure


def _largest(bars: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """The most frequent categories, and what is left as one."""
    ordered = sorted(bars, key=lambda bar: -max(bar[1:]))
    kept, rest = ordered[:MOST_BARS], ordered[MOST_BARS:]
    return [*kept, ("the rest", sum(bar[1] for bar in rest), sum(bar[2] for bar in rest))] if rest else kept


def _middles(found: Heat) -> list[datetime]:
    return [_time(end - found.part_seconds / 2) for end in found.times]


def _time(seconds: float) -> datetime:
    """In UTC without saying so: plotly.js would turn a zone into the reader's own."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _shares(counts: Array) -> list[float]:
    shares: list[float] = (counts / max(float(counts.sum()), 1.0)).tolist()
    return shares


def _name(text: str) -> str:
    """A name as it stands: plotly takes some HTML for formatting."""
    return escape(text, quote=False)
