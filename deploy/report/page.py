"""The page: what the report says in words, its tables and its figures, in one file with plotly.js inside."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

import numpy as np
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from deploy.prometheus import Array, duration_text
from deploy.report import figures
from deploy.report.gather import CONFIDENCE_Z, QUANTILES, Labels, Report, Service
from deploy.rollout.display import from_to
from deploy.rollout.record import ENDED, Entry
from monitoring.drift import wilson_interval
from monitoring.words import percent

MOST_COMPARED = 5
"""Features whose traffic is drawn beside the profile."""

MOST_ROLLOUTS = 3
"""The last ones, that are told in the summary."""

# Nothing may be loaded, and nothing sent: the browser itself keeps the page to what is in the file.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { color: #24292f; background: #f3f4f6; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 0 0 4px; } h3 { font-size: 15px; margin: 12px 0 0; }
p, ul { margin: 6px 0; } ul { padding-left: 22px; } .quiet { color: #57606a; font-size: 13px; }
section, header { background: #fff; border: 1px solid #e1e4e8; border-radius: 8px; padding: 16px 20px; margin: 14px 0; }
table { border-collapse: collapse; margin: 8px 0; font-size: 14px; width: 100%; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #e6e8eb; vertical-align: top; }
th { font-weight: 600; color: #57606a; } .n { text-align: right; white-space: nowrap; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 24px; } .pair > div { min-width: 0; }
@media (max-width: 800px) { .pair { grid-template-columns: 1fr; } }
.drifted { color: #b42318; font-weight: 600; }
"""


@dataclass(frozen=True)
class Section:
    """A titled part of the page; its body is HTML."""

    title: str
    body: str


def page(report: Report) -> str:
    """The whole file."""
    sections = (_versions(report), _rollouts(report), _traffic(report), _drift(report), _compared(report),
                _missing(report), _quality(report), _alerts(report))  # fmt: skip
    title = f"{report.drift.model}, the last {duration_text(report.end - report.start)} to {_utc(report.end)}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
            f"<header><h1>{escape(title)}</h1>{_origin(report)}{_list(summary(report))}</header>",
            *(f"<section><h2>{escape(one.title)}</h2>{one.body}</section>" for one in sections),
            "</body></html>\n",
        ]
    )


def summary(report: Report) -> list[str]:
    """The report in a few sentences."""
    seconds = report.end - report.start
    requests = sum(one.requests for one in report.services)
    rows = sum(one.rows for one in report.services)
    busiest = report.services[0]
    said = [f"{rows:,.0f} rows in {requests:,.0f} requests, {requests / seconds:.2g} a second on average."]
    if busiest.requests:
        p50, *_, p99 = (_seconds(one) for one in busiest.latency_seconds)
        said.append(
            f"Version {busiest.version}, which had most rows, failed {percent(busiest.failed)} of its requests and "
            f"refused {percent(busiest.refused)}; half took less than {p50}, 99% less than {p99}."
        )
    drifted = report.drift.drifted
    of = f"{len(drifted)} of {len(report.drift.features)} features of version {report.drift.version} drifted"
    strongest = f", most of all {drifted[0].name}: {drifted[0].words}" if drifted else ""
    said.append(f"{of}{strongest}.")
    said.append(_quality_in_words(report.labels) if report.labels else "No labels came in, so accuracy is not known.")
    ended = [one for one in report.rollouts if one.state in (*ENDED, "HELD")]
    said += [f"{one.rollout} ({from_to(one)}) is {one.state}: {one.words}." for one in ended[-MOST_ROLLOUTS:]]
    names = sorted({one.alert for one in report.fired})
    said.append(f"Alerts that fired: {', '.join(names)}." if names else "No alert fired.")
    return said


def _quality_in_words(labels: Labels) -> str:
    whole = labels.whole
    low, high = wilson_interval(whole.accuracy * whole.labelled, whole.labelled, CONFIDENCE_Z)
    said = (
        f"Accuracy was {_share(whole.accuracy)} ({_share(low)} to {_share(high)} with 95% confidence) "
        f"over {whole.labelled:,.0f} labels"
    )
    then = labels.reference_accuracy
    return f"{said}; when registered it was {_share(then)}." if then is not None else f"{said}."


def _origin(report: Report) -> str:
    versions = ", ".join(str(version) for version in sorted(report.drift.versions))
    text = f"{_utc(report.start)} to {_utc(report.end)}. Times are UTC. Versions with traffic: {versions}. "
    return _quiet(f"{text}Computed from the counters in the Prometheus at {report.drift.prometheus}.")


def _versions(report: Report) -> Section:
    head = ["version", "rows", "requests", "failed (5xx)", "refused (4xx)", *(f"p{100 * one:g}" for one in QUANTILES)]
    return Section("Versions", _table(head, [_service(one) for one in report.services], numbers_from=1))


def _service(one: Service) -> list[str]:
    shares = [percent(share) if np.isfinite(share) else "-" for share in (one.failed, one.refused)]
    latency = [_seconds(each) for each in one.latency_seconds]
    return [str(one.version), f"{one.rows:,.0f}", f"{one.requests:,.0f}", *shares, *latency]


def _rollouts(report: Report) -> Section:
    rows = [
        [_utc(one.at, "%m-%d %H:%M:%S"), one.rollout or "-", from_to(one), one.state or one.kind, _told(one), one.who]
        for one in report.rollouts
    ]
    if not rows:
        return Section("Rollouts", _quiet("Nothing was rolled out, rolled back or put in service."))
    return Section("Rollouts", _table(["when", "rollout", "from, to", "state", "what happened", "who"], rows))


def _told(entry: Entry) -> str:
    """The entry's words, and of its verdict what spoke against the candidate."""
    against = [check for check in entry.verdict.checks if check.state == "failed"] if entry.verdict else []
    return "; ".join([entry.words, *(f"{check.name}: {check.words}" for check in against)])


def _traffic(report: Report) -> Section:
    pair = f"<div><h3>Rate</h3>{_figure(figures.rate(report.lines))}</div>"
    pair += f"<div><h3>Errors</h3>{_figure(figures.errors(report.lines))}</div>"
    latency = f"<h3>Latency, from the edge to the version and back</h3>{_figure(figures.latency(report.lines))}"
    return Section(
        f"Traffic, averaged over {duration_text(report.lines.average_seconds)}",
        f'<div class="pair">{pair}</div>{latency}',
    )


def _drift(report: Report) -> Section:
    found = report.drift
    shown = found.drifted or found.features[:MOST_COMPARED]
    rows = [
        [
            one.name,
            one.verdict,
            _plain(one.psi_excess, 3),
            _plain(one.z, 1),
            _plain(one.rows_effective, 0),
            one.words,
        ]
        for one in shown
    ]
    table = _table(["feature", "verdict", "PSI excess", "z", "effective rows", "what moved"], rows, numbers=(2, 3, 4))
    part = duration_text(report.heat.part_seconds)
    heat = f"<h3>Over time, in parts of {part}</h3>{_figure(figures.heat(report.heat, found.thresholds.rows))}"
    blank = f"Grey: fewer than {found.thresholds.rows:g} effective rows. White is as in the profile."
    return Section(f"Drift of version {found.version}", f"{_list(found.notes())}{table}{heat}{_quiet(blank)}")


def _compared(report: Report) -> Section:
    charts = [
        f"<div><h3>{escape(one.name)}</h3>{_quiet(_sentence(one.words))}{_figure(figures.against_profile(one))}</div>"
        for one in report.drift.features[:MOST_COMPARED]
    ]
    return Section("Traffic against the profile, largest effect first", f'<div class="pair">{"".join(charts)}</div>')


def _missing(report: Report) -> Section:
    figure = figures.missing(report.drift.features)
    body = _figure(figure) if figure else _quiet("No feature lacks a value, neither in the profile nor in traffic.")
    return Section("Missing values", body)


def _quality(report: Report) -> Section:
    title = f"Quality of version {report.drift.version}"
    labels = report.labels
    if labels is None:
        return Section(title, _quiet("No labels came in: send them to POST /feedback."))
    whole = labels.whole
    scores = zip(labels.classes, labels.confusion.sum((0, 1)), whole.precision, whole.recall, whole.f1, strict=True)
    rows = [[name, f"{n:,.0f}", *(_share(one) for one in shares)] for name, n, *shares in scores]
    table = _table(["class", "labels", "precision", "recall", "F1"], rows, numbers_from=1)
    macro = _quiet(f"Macro F1 {_share(whole.macro_f1)}. A class that was never predicted has no precision.")
    return Section(title, f"{_figure(figures.quality(labels, report.heat))}{table}{macro}")


def _alerts(report: Report) -> Section:
    if not report.fired:
        return Section("Alerts", _quiet("None fired, or this Prometheus evaluates no rules."))
    rows = [[one.alert, one.about, _utc(one.start), _utc(one.end)] for one in report.fired]
    return Section("Alerts", _table(["alert", "about", "from", "to"], rows))


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None, numbers: Sequence[int] = ()
) -> str:
    right = set(numbers) if numbers_from is None else set(range(numbers_from, len(head)))

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_class(text, number=place in right)}>{escape(text)}</{tag}>" for place, text in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _class(text: str, *, number: bool) -> str:
    if number:
        return ' class="n"'
    return ' class="drifted"' if text == "drifted" else ""


def _figure(figure: Figure) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return html


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in sentences)}</ul>"


def _quiet(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _utc(seconds: float, layout: str = "%Y-%m-%d %H:%M UTC") -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(layout)


def _seconds(value: float) -> str:
    if np.isfinite(value):
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return "-"


def _share(value: float | Array) -> str:
    """With a decimal: a point of accuracy is much."""
    return f"{100 * value:.1f}%" if np.isfinite(value) else "-"


def _plain(value: float, decimals: int) -> str:
    return f"{value:z,.{decimals}f}" if np.isfinite(value) else "-"
