import re
from pathlib import Path
from typing import get_args

import pytest

import monitoring
from monitoring import names
from monitoring.config import BurnWindow, Config, DriftWindow
from monitoring.rules.file import groups, rule_file
from monitoring.rules.rule import Alert, Record

CONFIG = Config.from_yaml("{health: {gpus: true}, runbook: 'https://example.org/runbook'}")
RULES = [rule for group in groups(CONFIG) for rule in group.rules]
ALERTS = [rule for rule in RULES if isinstance(rule, Alert)]
RECORDS = {rule.name for rule in RULES if isinstance(rule, Record)}
EXPORTED = {metric.name for metric in vars(names).values() if isinstance(metric, names.Metric)}
RUNBOOK = (Path(monitoring.__file__).parent / "RUNBOOK.md").read_text()


def contract() -> set[str]:
    """The series that dashboards, reports and the gate read."""
    feature = ("rows", "rows_effective", "psi", "psi_excess", "z", "missing_z")
    quality = (
        "labelled",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
        "expected_accuracy",
        "label_coverage",
    )
    return {
        *(f"shipway_feature:{score}:{window}" for score in feature for window in get_args(DriftWindow)),
        "shipway_feature:dispersion",
        *(f"shipway_rff:z:{window}" for window in get_args(DriftWindow)),
        *(f"shipway_quality:{score}:1d" for score in (*quality, "precision", "recall", "f1")),
        *(f"shipway_slo:{bad}:ratio_{window}" for bad in ("errors", "slow") for window in get_args(BurnWindow)),
    }


def test_contract_is_kept() -> None:
    assert contract() - RECORDS == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rule_reads_only_what_is_exported_or_recorded(rule: Record | Alert) -> None:
    read = set(re.findall(r"shipway_[a-z0-9_:]+", re.sub(r'"[^"]*"', "", rule.expr)))
    families = {name.removesuffix("_bucket").removesuffix("_count") for name in read}
    assert families - EXPORTED - RECORDS == set()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name}-{'-'.join(alert.labels.values())}")
def test_alert_says_what_is_wrong_how_much_and_what_to_do(alert: Alert) -> None:
    written = alert.as_dict(CONFIG.runbook)
    assert written["labels"]["severity"] in {"page", "ticket"}
    assert written["annotations"]["summary"]
    assert "$value" in written["annotations"]["description"]
    assert written["annotations"]["runbook_url"] == f"https://example.org/runbook#{alert.name.lower()}"
    section = RUNBOOK.split(f"\n## {alert.name}\n")[1].split("\n## ")[0]
    assert "\n- Look: " in section
    assert "\n- Do: " in section


def test_runbook_has_no_section_without_alert() -> None:
    assert set(re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE)) == {alert.name for alert in ALERTS}


def test_alerts_are_told_apart_by_their_labels() -> None:
    assert len({(alert.name, *alert.labels.items()) for alert in ALERTS}) == len(ALERTS)


def test_thresholds_come_from_the_configuration() -> None:
    found = rule_file(Config.from_yaml("drift: {z: 6.5, rows: 250}\nobjectives: {fast_seconds: 0.1, available: 0.99}"))
    for words in ("> 6.5", ">= 250", 'le="0.1"', "> 14.4 * 0.01\n"):
        assert words in found


def test_file_is_the_same_every_time() -> None:
    assert rule_file(Config()) == rule_file(Config.from_yaml(""))
