"""All dashboards, and what they are called on disk."""

import json

from monitoring.config import Config
from monitoring.dashboards.blocks import Json
from monitoring.dashboards.drift import drift
from monitoring.dashboards.quality import quality
from monitoring.dashboards.rollout import rollout
from monitoring.dashboards.serving import serving


def dashboards(config: Config) -> list[Json]:
    return [serving(config), drift(config), quality(config), rollout(config)]


def texts(config: Config) -> dict[str, str]:
    """Every dashboard as JSON, by file name: the same text for the same configuration."""
    return {f"{each['uid']}.json": json.dumps(each, indent=2) + "\n" for each in dashboards(config)}
