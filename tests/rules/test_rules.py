"""Every generated rule under promtool: its values and alerts, and that a small fault in it would be noticed."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

from monitoring.rules.file import rule_file
from monitoring.rules.rule import Alert
from tests.rules import (
    drift_scenarios,
    gpu_scenarios,
    health_scenarios,
    quality_scenarios,
    rff_scenarios,
    slo_scenarios,
)
from tests.rules.mutants import mutants
from tests.rules.promtool import CONFIG, RULES, Outcome, Scenario, run

MODULES = (drift_scenarios, rff_scenarios, quality_scenarios, slo_scenarios, health_scenarios, gpu_scenarios)
SCENARIOS = {scenario.name: scenario for module in MODULES for scenario in module.scenarios()}
ALERTS = [name for name, rule in RULES.items() if isinstance(rule, Alert)]


@cache
def outcome(scenario: str) -> Outcome:
    """Asked for once by the test of the rules and once by that of their mutants."""
    return run(SCENARIOS[scenario])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_rules_give_what_is_expected(scenario: str) -> None:
    assert outcome(scenario).wrong == (), outcome(scenario).output


@pytest.mark.parametrize("rule", RULES)
def test_every_fault_is_noticed(rule: str) -> None:
    caught = {expr for scenario in _testing(rule) for name, expr in outcome(scenario.name).caught if name == rule}
    assert [expr for expr in mutants(RULES[rule].expr) if expr not in caught] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_fires_in_one_case_and_is_silent_in_another(alert: str) -> None:
    cases = [scenario.alerts[alert] for scenario in _testing(alert)]
    assert any(case.fires for case in cases)
    assert any(case.silent for case in cases)
    assert not any(case.fires & case.silent for case in cases)


def _testing(rule: str) -> list[Scenario]:
    found = [scenario for scenario in SCENARIOS.values() if rule in scenario.tested]
    assert found, f"no scenario tests {rule}"
    return found


def test_promtool_takes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(rule_file(CONFIG))
    subprocess.run(["promtool", "check", "rules", str(path)], check=True, capture_output=True)
