"""The rule file that Prometheus loads: every group, as YAML, the same bytes for the same configuration."""

from typing import get_args

from monitoring.config import Config, DriftWindow
from monitoring.rules import drift, gpu, health, quality, rff, slo
from monitoring.rules.rule import Group
from monitoring.yaml_text import yaml_text


def groups(config: Config) -> list[Group]:
    """Every group, after those whose records it reads."""
    windows = get_args(DriftWindow)
    return [
        drift.reference(),
        *(drift.tier(window, config) for window in windows),
        drift.dispersion(),
        rff.reference(),
        *(rff.tier(window, config) for window in windows),
        rff.dispersion(),
        quality.quality(config),
        slo.slo(config),
        health.health(config),
        gpu.gpu(config),
    ]


def rule_file(config: Config) -> str:
    return yaml_text({"groups": [group.as_dict(config.runbook) for group in groups(config)]})
