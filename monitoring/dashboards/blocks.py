"""The parts of a dashboard in Grafana's JSON model. Panels are of kinds that every Grafana has without plugins.

The model has a version. 39 is Grafana 11.0's; later ones carry it over into their own when they open it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 39
WIDTH = 24
TAG = "shipway"
"""Dashboards have it, and so do annotations of rollouts."""
DATA_SOURCE_UID = "shipway-prometheus"

_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GRAFANA = {"type": "grafana", "uid": "-- Grafana --"}


@dataclass(frozen=True)
class Query:
    """One expression; the legend of its series says `whose` they are and what `of` it, with labels as {{label}}."""

    expression: str
    of: str = ""
    whose: str = "{{model}} {{version}}"

    @property
    def legend(self) -> str:
        return f"{self.whose} {self.of}".strip()


@dataclass(frozen=True)
class Column:
    """One number in a table: its unit in Grafana's words, and from which values on it is no longer green."""

    expression: str
    unit: str = "short"
    steps: tuple[tuple[float, str], ...] = ()
    base: str = "green"


@dataclass(frozen=True)
class Section:
    """Lines of panels under a title; the panels of a line share its width."""

    title: str
    lines: Sequence[Sequence[Json]]
    height: int = 8


def graph(
    title: str, description: str, unit: str, queries: Sequence[Query], *, stacked: bool = False, **defaults: Any
) -> Json:
    """Lines over time. `defaults` go to the fields: min, max, decimals."""
    custom: Json = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    if stacked:
        custom |= {"fillOpacity": 60, "stacking": {"mode": "normal", "group": "A"}}
    return _panel("timeseries", title, description) | {
        "targets": _targets(queries, over_time=True),
        "fieldConfig": _fields({"unit": unit, "color": {"mode": "palette-classic"}, "custom": custom} | defaults),
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def status_over_time(title: str, description: str, query: Query, steps: Sequence[tuple[float, str]]) -> Json:
    """One line of coloured cells for each series: where and when did it leave the green."""
    return _panel("status-history", title, description) | {
        # So many points at most, or cells become too narrow to be seen.
        "maxDataPoints": 100,
        "targets": _targets([query], over_time=True),
        "fieldConfig": _fields(
            {
                "unit": "short",
                "decimals": 2,
                "color": {"mode": "thresholds"},
                "thresholds": _thresholds("green", steps),
                "custom": {"fillOpacity": 80, "lineWidth": 0},
            }
        ),
        "options": {
            "showValue": "never",
            "rowHeight": 0.9,
            "colWidth": 0.95,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }


def heat_map(title: str, description: str, unit: str, buckets: str) -> Json:
    """A histogram over time: `buckets` is its growth by `le`."""
    return _panel("heatmap", title, description) | {
        "maxDataPoints": 100,
        "targets": [
            target | {"legendFormat": "{{le}}", "format": "heatmap"}
            for target in _targets([Query(buckets)], over_time=True)
        ],
        "fieldConfig": _fields({"unit": "short"}),
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "scale": "exponential"},
            "yAxis": {"unit": unit, "axisPlacement": "left"},
            "rowsFrame": {"layout": "auto"},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": False},
        },
    }


def table(title: str, description: str, columns: dict[str, Column], *, sort_by: str) -> Json:
    """The latest value of each column, one line for each set of labels; columns must have the same labels."""
    names = {f"Value #{letter}": name for letter, name in zip(ascii_uppercase, columns, strict=False)}
    overrides = [_coloured(name, column) for name, column in columns.items()]
    return _panel("table", title, description) | {
        "targets": _targets([Query(column.expression) for column in columns.values()], over_time=False),
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": {}}},
        ],
        "fieldConfig": _fields({"custom": {"align": "auto", "filterable": True}}) | {"overrides": overrides},
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "footer": {"show": False, "reducer": ["sum"], "fields": ""},
            "sortBy": [{"displayName": sort_by, "desc": True}],
        },
    }


def matrix(title: str, description: str, expression: str, row: str, column: str, kind: str, unit: str) -> Json:
    """The latest values of an expression with the labels `row` and `column`, as a `table` or a `barchart`."""
    key = f"{row}\\{column}"  # the name that Grafana gives the first field
    colours = {"mode": "continuous-BlPu" if kind == "table" else "palette-classic"}
    custom = {"cellOptions": {"type": "color-background"}} if kind == "table" else {"fillOpacity": 80}
    return _panel(kind, title, description) | {
        "targets": _targets([Query(expression)], over_time=False),
        "transformations": [
            {"id": "groupingToMatrix", "options": {"rowField": row, "columnField": column, "valueField": "Value"}},
            {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": key}]}},
        ],
        "fieldConfig": _fields({"unit": unit, "color": colours, "custom": custom}),
        "options": {"showHeader": True, "cellHeight": "sm"} if kind == "table" else _BARS,
    }


_BARS = {
    "orientation": "auto",
    "showValue": "never",
    "stacking": "none",
    "groupWidth": 0.7,
    "barWidth": 0.97,
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "none"},
}


def query_variable(name: str, values: str, *, several: bool, newest: bool = False) -> Json:
    """A choice among what Prometheus has, in the alphabet's order or with the `newest` version first.

    Of `several` all are chosen at first.
    """
    everything = {"current": {"text": ["All"], "value": ["$__all"]}, "allValue": ".*"} if several else {}
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": _DATA_SOURCE,
        "query": {"query": values, "refId": name},
        "definition": values,
        "refresh": 2,  # when the time that is shown changes: versions come and go
        "sort": 4 if newest else 1,
        "multi": several,
        "includeAll": several,
        **everything,
    }


def custom_variable(name: str, values: Sequence[str], first: str) -> Json:
    """A choice among fixed values."""
    return {
        "type": "custom",
        "name": name,
        "label": name.capitalize(),
        "query": ",".join(values),
        "options": [{"text": value, "value": value, "selected": value == first} for value in values],
        "current": {"text": first, "value": first},
        "multi": False,
        "includeAll": False,
    }


def dashboard(name: str, title: str, description: str, variables: Sequence[Json], sections: Sequence[Section]) -> Json:
    """The whole dashboard, whose uid is `shipway-NAME`."""
    return {
        "uid": f"{TAG}-{name}",
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 0,
        # Grafana would let a person save changes that the next push takes away; "save as" makes a copy of their own.
        "editable": False,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": [_data_source_variable(), *variables]},
        "annotations": {"list": [_rollouts()]},
        "links": [
            {
                "type": "dashboards",
                "title": "Shipway",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": _laid_out(sections),
    }


def _panel(kind: str, title: str, description: str) -> Json:
    return {"type": kind, "title": title, "description": description, "datasource": _DATA_SOURCE}


def _targets(queries: Sequence[Query], *, over_time: bool) -> list[Json]:
    return [
        {
            "refId": letter,
            "datasource": _DATA_SOURCE,
            "editorMode": "code",
            "expr": query.expression,
            "legendFormat": query.legend,
            "range": over_time,
            "instant": not over_time,
            "format": "time_series" if over_time else "table",
        }
        for letter, query in zip(ascii_uppercase, queries, strict=False)
    ]


def _fields(defaults: Json) -> Json:
    return {"defaults": defaults, "overrides": []}


def _thresholds(base: str, steps: Sequence[tuple[float, str]]) -> Json:
    return {
        "mode": "absolute",
        "steps": [{"color": base, "value": None}, *({"color": colour, "value": value} for value, colour in steps)],
    }


def _coloured(name: str, column: Column) -> Json:
    properties: list[Json] = [{"id": "unit", "value": column.unit}]
    if column.unit != "none":  # a count
        properties.append({"id": "decimals", "value": 2})
    if column.steps:
        properties += [
            {"id": "thresholds", "value": _thresholds(column.base, column.steps)},
            {"id": "color", "value": {"mode": "thresholds"}},
            {"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}},
        ]
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def _data_source_variable() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {"text": "Shipway", "value": DATA_SOURCE_UID},
        "refresh": 1,
        "multi": False,
        "includeAll": False,
    }


def _rollouts() -> Json:
    return {
        "name": "Rollouts",
        "enable": True,
        "iconColor": "purple",
        "datasource": _GRAFANA,
        "target": {"type": "tags", "tags": [TAG], "matchAny": False, "limit": 100},
    }


def _laid_out(sections: Sequence[Section]) -> list[Json]:
    """Every panel with its number and its place, from top to bottom."""
    panels: list[Json] = []
    top = 0
    for section in sections:
        heading = {"type": "row", "title": section.title, "collapsed": False, "panels": []}
        panels.append(heading | {"gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}})
        top += 1
        for line in section.lines:
            width = WIDTH // len(line)
            for index, panel in enumerate(line):
                panels.append(panel | {"gridPos": {"x": index * width, "y": top, "w": width, "h": section.height}})
            top += section.height
    return [panel | {"id": number} for number, panel in enumerate(panels, start=1)]
