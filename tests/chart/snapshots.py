"""How the examples are rendered, under version control: a review sees what a change of the chart does to objects.

`make generate` runs `python -m tests.chart.snapshots`.
"""

from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendering import EXAMPLES, Json, example, render

GOLDEN = Path(__file__).parent / "golden"


def snapshot(name: str) -> str:
    """The objects of an example, in helm's order. What is a copy of a file of the chart is left out."""
    return "---\n".join(yaml.safe_dump(_without_files(one), width=120) for one in render(example(name)))


def _without_files(one: Json) -> dict[str, Any]:
    if one["kind"] == "PrometheusRule":
        return {**one, "spec": "files/rules/shipway.yaml"}
    if one["metadata"]["name"].endswith("-dashboard"):
        return {**one, "data": [f"files/dashboards/{name}" for name in one["data"]]}
    return one


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name in EXAMPLES:
        (GOLDEN / f"{name}.yaml").write_text(snapshot(name))


if __name__ == "__main__":
    write()
