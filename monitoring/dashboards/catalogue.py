"""All dashboards, and what they are called on disk."""

import json

from monitoring.dashboards.blocks import Json
from monitoring.dashboards.drift import drift
from monitoring.dashboards.quality import quality
from monitoring.dashboards.serving import serving


def dashboards() -> list[Json]:
    return [serving(), drift(), quality()]


def texts() -> dict[str, str]:
    """Every dashboard as JSON, by file name. The same text every time."""
    return {f"{each['uid']}.json": json.dumps(each, indent=2) + "\n" for each in dashboards()}
