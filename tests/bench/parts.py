"""A bench of several parts: runs those that are wanted, and shows and keeps what they found."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import report
from tests.bench.findings import Finding
from tests.bench.rounds import use_two_cores

Part = Callable[[], Iterable[Finding]]


def run(
    parts: Mapping[str, Part],
    only: Collection[str] | None,
    target: Path,
    spreads: str,
    console: Console,
    more: Callable[[], Mapping[str, Any]] = dict,
) -> int:
    """1 if a bar was missed. `target` is written after every part, also one that breaks off, and `more` with it."""
    cores = use_two_cores()
    findings: list[Finding] = []
    for name, part in parts.items():
        if name in (only or parts):
            console.log(name)
            try:
                findings.extend(part())
            finally:
                report.write_json(target, findings, cores, more=more())
    report.show_findings(console, findings, spreads)
    console.print(f"The figures are in {target}")
    return 1 if any(one.held is False for one in findings) else 0
