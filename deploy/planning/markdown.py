"""A forecast as text that is a table in a terminal and in a pull request."""

from collections.abc import Iterator, Sequence

from deploy.planning.forecast import Forecast


def markdown(forecast: Forecast) -> str:
    """Headings, lists and tables, with a line's end at the end."""
    return "\n".join(_lines(forecast)) + "\n"


def _lines(forecast: Forecast) -> Iterator[str]:
    question = forecast.question
    champion, candidate = (f"version {side.version}" for side in (question.champion, question.candidate))
    yield f"## {question.model}: {candidate} in place of {champion}"
    yield ""
    yield f"**{forecast.words[0].upper()}{forecast.words[1:]}.**"
    yield from _listed("Breaks clients", forecast.changes.breaking)
    yield from _listed("Changes that break nobody", forecast.changes.compatible)
    yield from _sources(forecast)
    yield from _costs(forecast, champion, candidate)
    yield from _worst(forecast, champion, candidate)


def _listed(title: str, words: Sequence[str]) -> Iterator[str]:
    if words:
        yield from ("", f"### {title}", "", *(f"- {_cell(each)}" for each in words))


def _sources(forecast: Forecast) -> Iterator[str]:
    yield from ("", "### Answers", "")
    yield from _table(
        ("requests", "asked", "rows", "changed", "refused", "failed", "largest difference"),
        [
            (
                *(source.name, str(source.requests), str(source.rows)),
                f"{source.changed} ({source.share:.1%})",
                *(str(source.refused), str(source.failed), _number(source.largest_difference)),
            )
            for source in forecast.sources
        ],
    )
    for source in forecast.sources:
        if source.unanswered:
            yield f"\n{source.unanswered} {source.name} requests are not answered by the champion either: left out."
        yield from (f"\n{source.name} requests without an answer: {_cell(reason)}" for reason in source.reasons)


def _costs(forecast: Forecast, champion: str, candidate: str) -> Iterator[str]:
    before, after = forecast.champion_cost, forecast.candidate_cost
    yield from ("", "### Cost", "")
    rows = (
        ("a request alone, median", before.alone_p50_ms, after.alone_p50_ms, "ms"),
        ("a request alone, 95%", before.alone_p95_ms, after.alone_p95_ms, "ms"),
        ("a request in a full batch", before.batch_p50_ms, after.batch_p50_ms, "ms"),
        ("memory of a worker, peak", before.peak_mib, after.peak_mib, "MiB"),
    )
    yield from _table(
        ("", champion, candidate, "ratio"),
        [(name, f"{one:.3g} {unit}", f"{other:.3g} {unit}", f"{other / one:.2f}") for name, one, other, unit in rows],
    )


def _worst(forecast: Forecast, champion: str, candidate: str) -> Iterator[str]:
    if not forecast.worst:
        return
    shows = any(each.inputs for each in forecast.worst)
    yield from ("", "### Rows that differ most", "")
    yield from _table(
        ("prediction", "row", champion, candidate, "difference", *(("inputs",) if shows else ())),
        [
            (
                *(each.id, str(each.row), each.before, each.after, _number(each.difference)),
                *((", ".join(f"{name}={value}" for name, value in each.inputs.items()),) if shows else ()),
            )
            for each in forecast.worst
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of one width, so that it reads as well where nobody renders it."""
    cells = [[_cell(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    first, *others = (_line(row, widths) for row in cells)
    yield from (first, _line(["-" * width for width in widths], widths), *others)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _cell(text: str) -> str:
    """A client's text must not end a cell or a line."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
