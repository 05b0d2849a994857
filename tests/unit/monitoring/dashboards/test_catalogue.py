"""What all dashboards have in common: queries that parse and name what exists, words, and panels in their places."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from monitoring import names
from monitoring.config import Config
from monitoring.dashboards.blocks import WIDTH, Json
from monitoring.dashboards.catalogue import dashboards, texts
from monitoring.dashboards.drift import WINDOWS
from monitoring.names import Metric
from monitoring.rules.file import groups
from monitoring.rules.rule import Record


def recorded_labels(series: str) -> set[str]:
    """Rules do not declare them: features have two more than their version, classes one."""
    name = series.split(":")
    if name[0] == "shipway_feature":
        return {"model", "version", "feature", "kind"} - ({"version"} if name[1] == "dispersion" else set())
    by_class = name[0] == "shipway_quality" and name[1] in ("precision", "recall", "f1")
    return {"model", "version"} | ({"class"} if by_class else set())


DASHBOARDS = {each["uid"]: each for each in dashboards(Config())}
LABELS = {each.name: set(each.labels) for each in vars(names).values() if isinstance(each, Metric)}

# What the recording rules make, and by which labels the panels may part it.
RECORDED = {
    rule.name: recorded_labels(rule.name)
    for group in groups(Config())
    for rule in group.rules
    if isinstance(rule, Record)
}
# Not ours: Prometheus' own, and dcgm-exporter's.
OTHERS = {
    "ALERTS": {"model", "version", "alertname", "alertstate", "severity"},
    **{
        name: {"Hostname", "gpu"}
        for name in (
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
            "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
            "DCGM_FI_PROF_DRAM_ACTIVE",
            "DCGM_FI_DEV_FB_USED",
            "DCGM_FI_DEV_FB_FREE",
        )
    },
}
KNOWN = LABELS | RECORDED | OTHERS
SERIES = re.compile(r"(?<![\w\"$])(?:shipway_[a-z0-9_:]+|ALERTS|DCGM_[A-Z_]+)")


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every panel's place in words, and its expression with every value of `$window`."""
    for uid, dashboard in DASHBOARDS.items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                for window in WINDOWS if "$window" in target["expr"] else ("",):
                    place = f"{uid}/{panel['title']}/{target['refId']}{window}"
                    yield place, target["expr"].replace("$window", window)


EXPRESSIONS = dict(expressions())


def plain(expression: str) -> str:
    """Without Grafana's variables."""
    times = {"$__rate_interval": "1m", "$__range": "1h"}
    for name, value in times.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$(model|version|kind|feature)\b", "x", expression)


def family(series: str) -> str:
    """The metric that a histogram's series belongs to."""
    return next((n for n in LABELS if series in (f"{n}_bucket", f"{n}_sum", f"{n}_count")), series)


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_expression_names_only_what_exists(place: str) -> None:
    expression = EXPRESSIONS[place]
    series = {family(each) for each in SERIES.findall(expression)}
    assert series, "no series found in it: the pattern is wrong"
    unknown = series - set(KNOWN)
    assert not unknown, f"neither in monitoring/names.py nor recorded by a rule: {unknown}"
    # `le` and what label_replace makes come and go inside an expression.
    allowed = {"le", "of"}.union(*(KNOWN[each] for each in series))
    matchers = re.findall(r"([a-z_]+)(?:=~|!~|!=|=)\"", expression, re.IGNORECASE)
    groupings = [label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")]
    assert {*matchers, *groupings} <= allowed


def test_every_expression_parses(tmp_path: Path) -> None:
    rules = [{"record": f"x:{number}", "expr": plain(text)} for number, text in enumerate(EXPRESSIONS.values())]
    file = tmp_path / "rules.json"  # JSON is YAML, too
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    result = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{len(rules)} rules found" in result.stdout


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_lie_beside_each_other(uid: str) -> None:
    places = [panel["gridPos"] for panel in DASHBOARDS[uid]["panels"]]
    for each in places:
        assert each["x"] >= 0
        assert each["x"] + each["w"] <= WIDTH
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_have_words_numbers_and_units(uid: str) -> None:
    every = DASHBOARDS[uid]["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    titles = [panel["title"] for panel in every]
    assert len(set(titles)) == len(titles)
    for panel in panels(DASHBOARDS[uid]):
        assert panel["description"].endswith("."), panel["title"]
        units = [panel["fieldConfig"]["defaults"].get("unit")]
        units += [each["value"] for o in panel["fieldConfig"]["overrides"] for each in o["properties"]][:1]
        assert any(units), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


# These belong to devices, to clients or to the model, and to no version.
WITHOUT_VERSION = {"Clients", "Labels sent", "Dispersion", "GPU activity", "GPU memory"}


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_legends_name_the_version(uid: str) -> None:
    graphs = [panel for panel in panels(DASHBOARDS[uid]) if panel["type"] in ("timeseries", "status-history")]
    assert graphs
    for panel in graphs:
        named = ["{{version}}" in target["legendFormat"] for target in panel["targets"]]
        assert all(named) != (panel["title"] in WITHOUT_VERSION), panel["title"]


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_variables_of_queries_are_those_of_the_dashboard(uid: str) -> None:
    dashboard = DASHBOARDS[uid]
    defined = [each["name"] for each in dashboard["templating"]["list"]]
    assert defined[:3] == ["datasource", "model", "version"]
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps([panels(dashboard), dashboard["templating"]])))
    assert used == set(defined)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_rollouts_are_shown(uid: str) -> None:
    (rollouts,) = DASHBOARDS[uid]["annotations"]["list"]
    assert rollouts["target"]["tags"] == ["shipway"]
    assert rollouts["datasource"]["uid"] == "-- Grafana --"


def test_uids_are_fixed() -> None:
    assert list(DASHBOARDS) == ["shipway-serving", "shipway-drift", "shipway-quality", "shipway-rollout"]
    assert list(texts(Config())) == [f"{uid}.json" for uid in DASHBOARDS]


def test_texts_are_the_same_in_another_process() -> None:
    source = (
        "import sys; from monitoring.config import Config; from monitoring.dashboards.catalogue import texts\n"
        "sys.stdout.write(''.join(texts(Config()).values()))"
    )
    other = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert other.stdout == "".join(texts(Config()).values())


def test_limits_are_those_of_the_alerts() -> None:
    config = Config.from_yaml("{drift: {z: 7}, objectives: {available: 0.99}, quality: {macro_f1: 0.75}}")
    text = json.dumps(dashboards(config))
    assert '"value": 7.0' in text
    assert "/ 0.01" in text
    assert '"value": 0.75' in text
    assert text != json.dumps(dashboards(Config()))


def test_every_metric_of_ours_is_shown() -> None:
    """A metric that no dashboard shows is one that nobody sees."""
    shown = {family(each) for text in EXPRESSIONS.values() for each in SERIES.findall(text)}
    # Read by the rules; and what only a node has that was told to keep requests, so that a panel may find no series.
    elsewhere = (names.RFF_SUM, names.RFF_REFERENCE_ROWS, names.USUAL_PSI_EXCESS, names.CAPTURED)
    assert set(LABELS) - shown == {metric.name for metric in elsewhere}
