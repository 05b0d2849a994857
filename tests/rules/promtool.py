"""Runs rules of the generated file in `promtool test rules` against expected values, and mutants of them beside.

A scenario gives samples, one a minute, and what every rule under test must make of them at the end. Rules that those
read are loaded too, unless the scenario gives their result itself.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from monitoring.config import Config
from monitoring.rules.file import groups
from monitoring.rules.rule import Alert, Record
from monitoring.yaml_text import yaml_text
from tests.rules.mutants import mutants

CONFIG = Config.from_yaml("health: {gpus: true}")
RULES = {
    (rule.name if isinstance(rule, Record) else " ".join((rule.name, *rule.labels.values()))): rule
    for group in groups(CONFIG)
    for rule in group.rules
}
"""Every rule: a record by its name, an alert by its name and the labels of its own."""
PROMTOOL_WITHIN_SECONDS = 120

Labels = tuple[tuple[str, str], ...]
Samples = Sequence[tuple[float | None, int]]
"""Values, one a minute, as runs: (value, how many minutes); None is no sample."""


def labels(**values: str) -> Labels:
    return tuple(sorted(values.items()))


def counter(per_minute: float, minutes: int, reset: int | None = None) -> Samples:
    """A counter's samples from minute 0 on; what grew before the minute `reset` is lost to a restart after it."""
    grown = [per_minute * minute for minute in range(minutes + 1)]
    if reset is not None:
        grown = [*grown[: reset + 1], *grown[1 : minutes + 1 - reset]]
    return [(value, 1) for value in grown]


def constant(value: float, minutes: int) -> Samples:
    return [(value, minutes + 1)]


@dataclass(frozen=True)
class Fires:
    """For which series an alert fires at the end, and for which it must stay silent though they come near."""

    fires: frozenset[Labels]
    silent: frozenset[Labels]


@dataclass(frozen=True)
class Scenario:
    name: str
    minutes: int
    """The rules are evaluated from minute 0 to this one, each `every` minutes, and judged at this one."""
    series: Mapping[tuple[str, Labels], Samples]
    records: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    alerts: Mapping[str, Fires] = field(default_factory=dict)
    every: int = 1

    @property
    def tested(self) -> list[str]:
        return [*self.records, *self.alerts]

    def loaded(self) -> list[Record | Alert]:
        """The rules under test and those that they read, in the file's order."""
        given = {name for name, _ in self.series}
        wanted: set[str] = set()
        ahead = set(self.tested)
        while ahead:
            name = ahead.pop()
            wanted.add(name)
            ahead |= {read for read in RULES if isinstance(RULES[read], Record) and _reads(name, read)} - wanted - given
        return [rule for name, rule in RULES.items() if name in wanted]


@cache
def _reads(name: str, record: str) -> bool:
    return re.search(rf"(?<![\w:]){re.escape(record)}(?![\w:])", RULES[name].expr) is not None


@dataclass(frozen=True)
class Outcome:
    """What promtool found wrong: rules whose values are not those expected, and mutants that were noticed."""

    wrong: tuple[str, ...]
    caught: frozenset[tuple[str, str]]
    output: str


def run(scenario: Scenario) -> Outcome:
    """One run of promtool, for the rules and for all of their mutants. A mutant is asked at the end alone."""
    mutated = [(name, expr) for name in scenario.tested for expr in mutants(RULES[name].expr)]
    checks = [
        *_checks(scenario),
        *(_same(scenario, name, expr, f"mutant {i}") for i, (name, expr) in enumerate(mutated)),
    ]
    test = {
        "interval": "1m",
        "input_series": [_series(*one) for one in _input(scenario)],
        "promql_expr_test": [{"expr": expr, "eval_time": f"{scenario.minutes}m", "exp_samples": []} for expr in checks],
    }
    rules = [rule.as_dict("runbook") for rule in scenario.loaded()]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "rules.yml").write_text(yaml_text({"groups": [{"name": "tested", "rules": rules}]}))
        path = Path(directory, "test.yml")
        path.write_text(
            yaml_text({"rule_files": ["rules.yml"], "evaluation_interval": f"{scenario.every}m", "tests": [test]})
        )
        result = subprocess.run(
            ["promtool", "test", "rules", str(path)],
            capture_output=True, text=True, timeout=PROMTOOL_WITHIN_SECONDS, check=False,
        )  # fmt: skip
    output = result.stdout + result.stderr
    failed = re.findall(r"# (rule|firing|mutant) ([^\"\\\n]+?)\\?\"", output)
    ran = len(failed) == output.count("expr:") and "err:" not in output
    assert ran, f"promtool did not run as it should:\n{output[:3000]}"
    return Outcome(
        wrong=tuple(name for kind, name in failed if kind != "mutant"),
        caught=frozenset(mutated[int(name)] for kind, name in failed if kind == "mutant"),
        output=output,
    )


def _checks(scenario: Scenario) -> Iterator[str]:
    for name in scenario.tested:
        yield _same(scenario, name, RULES[name].expr, f"rule {name}")
        rule = RULES[name]
        if isinstance(rule, Alert):
            # Its time has passed too, and not only its condition holds.
            own = "".join(f', {key}="{value}"' for key, value in rule.labels.items())
            hidden = ", ".join(["alertname", "alertstate", "severity", *rule.labels])
            state = f'ALERTS{{alertname="{rule.name}", alertstate="firing"{own}}}'
            yield _same(scenario, name, f"max without ({hidden}) ({state})", f"firing {name}")


def _same(scenario: Scenario, name: str, expr: str, mark: str) -> str:
    """An expression without result if `expr` gives what is expected of the rule `name`, and no other series.

    The expected values are series themselves: promtool compares floats bit by bit.
    """
    expected = f'expected{{rule="{name}"}}'
    right = f"({expr})"
    if name in scenario.records:
        right = f"(abs(({expr}) - ignoring (rule) {expected}) <= 1e-7)"
    return f"({expected} unless ignoring (rule) {right})\nor (({expr}) unless ignoring (rule) {expected})\n# {mark}"


def _input(scenario: Scenario) -> Iterator[tuple[str, Labels, str]]:
    for (name, its), parts in scenario.series.items():
        yield name, its, " ".join(_written(value, times) for value, times in parts)
    for name, values in scenario.records.items():
        for its, value in values.items():
            yield "expected", (*its, ("rule", name)), _at_the_end(value, scenario.minutes)
    for name, alert in scenario.alerts.items():
        for its in sorted(alert.fires):
            yield "expected", (*its, ("rule", name)), _at_the_end(1, scenario.minutes)


def _written(value: float | None, times: int) -> str:
    return f"{'_' if value is None else repr(float(value))}x{times if value is None else times - 1}"


def _at_the_end(value: float, minutes: int) -> str:
    return f"{_written(None, minutes)} {_written(value, 1)}"


def _series(name: str, its: Labels, values: str) -> dict[str, str]:
    written = ",".join(f'{key}="{value}"' for key, value in its)
    return {"series": f"{name}{{{written}}}", "values": values}
