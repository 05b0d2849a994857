"""The study's tables: what had to be found, and what each feature's alerts did with and without what is usual."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.study.seasons import Season, in_words
from tests.bench.study.verdicts import Feature, Judged, Quality, beginnings


def show(console: Console, found: Sequence[Season], start: int, features: Sequence[Feature]) -> None:
    """Both tables for a person."""
    had = Table("what", "first seen", "share of the season", "found", title="What had to be found")
    for one in found:
        had.add_row(one.what, one.first, f"{one.share:.0%}", "yes" if one.found else "[bold red]no[/]")
    windows = list(features[0].windows)
    each = Table(
        "feature", "first alert", *windows, title="Share of hours in which an alert fires (before: without usual)"
    )
    for feature in features:
        begins = beginnings(feature.alert)
        first = in_words(start, begins[0]) if begins else ""
        each.add_row(feature.name, first, *(_before_and_now(one) for one in feature.windows.values()))
    console.print(had, each)


def _before_and_now(one: Judged) -> str:
    if not one.without_usual.any():
        return ""
    return f"{one.without_usual.mean():.1%} → {one.alert.mean():.1%}"


def as_dict(found: Sequence[Season], start: int, features: Sequence[Feature], quality: Quality) -> dict[str, Any]:
    """The same for machines, and when every alert began."""

    def alert(one: Judged) -> dict[str, Any]:
        return {
            "share": float(one.alert.mean()),
            "share_without_usual": float(one.without_usual.mean()),
            "begins": [in_words(start, hour) for hour in beginnings(one.alert)],
        }

    return {
        "seasons": [{**vars(one), "found": one.found} for one in found],
        "features": {
            f"{feature.name} ({feature.counts.kind})": {window: alert(one) for window, one in feature.windows.items()}
            for feature in features
        },
        "accuracy_low": {
            "share": float(quality.alert.mean()),
            "begins": [in_words(start, hour) for hour in beginnings(quality.alert)],
        },
    }
