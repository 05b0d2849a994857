"""The real Prometheus watches the node: who answered what, how fast, and into which bins the inputs fell."""

import json
import urllib.parse
import urllib.request
from typing import Any

import numpy as np
import pytest

from model_store.archive import read_member
from monitoring import names
from monitoring.profile import Profile
from tests.integration.clients import call, post
from tests.integration.conftest import Lab, samples
from tests.integration.test_node import grpc_request
from tests.waiting import wait_for

VERSION = 'model="flights",version="1"'


def query(lab: Lab, expression: str) -> list[dict[str, Any]]:
    url = f"{lab.settings.prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def value(lab: Lab, expression: str) -> float | None:
    found = query(lab, expression)
    return float(found[0]["value"][1]) if found else None


def test_prometheus_scrapes_the_node(lab: Lab) -> None:
    assert wait_for(lambda: value(lab, 'up{job="shipway-node"}'), 30) == 1.0


def test_latency_is_a_histogram_by_model_version_and_protocol(lab: Lab) -> None:
    post(lab.port, "/predictions/flights", lab.row())
    post(lab.port, "/v2/models/flights/infer", lab.golden["request"])
    call(lab.port, "ModelInfer", grpc_request(lab))
    for protocol in ("predictions", "oip_http", "oip_grpc"):
        labels = f'{VERSION},protocol="{protocol}"'
        assert wait_for(lambda labels=labels: value(lab, f"shipway_request_seconds_count{{{labels}}}"), 30)  # type: ignore[misc]
        quantile = value(lab, f"histogram_quantile(0.5, shipway_request_seconds_bucket{{{labels}}})")
        assert quantile is not None
        assert 0 < quantile < 30


def test_every_row_falls_into_the_bin_of_its_value(lab: Lab) -> None:
    profile = Profile.from_json(read_member(lab.first.archive, "profile.json"))
    before = samples(lab.settings)
    rows = [lab.row(index) for index in range(len(lab.expected()))]
    post(lab.port, "/predictions/flights", rows)
    after = samples(lab.settings)
    expected: dict[str, int] = {}
    for feature in profile.features:
        for row in rows if feature.kind in ("number", "category") else []:
            found = row[feature.name]
            if feature.kind == "category":
                label = found if found in feature.categories else "other"
            elif found is None:
                label = "missing"
            else:
                label = f"{sum(np.float32(found) >= edge for edge in feature.edges):02d}"
            series = f'bin="{label}",feature="{feature.name}",kind="{feature.kind}",{VERSION}'
            expected[series] = expected.get(series, 0) + 1
    prefix = "shipway_feature_rows_total{"
    rise = {
        name.removeprefix(prefix).removesuffix("}"): int(after[name] - before[name])
        for name in after
        if name.startswith(prefix) and VERSION in name and after[name] != before[name]
    }
    made = {name: rise.pop(name) for name in list(rise) if 'kind="output"' in name or 'kind="prediction"' in name}
    assert rise == expected
    late = sum(probability > 0.5 for probability in lab.expected())
    for label, count in (("late", late), ("on time", len(rows) - late)):
        assert made.get(f'bin="{label}",feature="class",kind="prediction",{VERSION}', 0) == count
    for answered in ("probability", "class", "confidence", "entropy"):
        assert sum(count for name, count in made.items() if f'feature="{answered}"' in name) == len(rows)
    confidence = sum(max(probability, 1 - probability) for probability in lab.expected())
    name = f"shipway_confidence_sum_total{{{VERSION}}}"
    assert after[name] - before[name] == pytest.approx(confidence, abs=1e-3)
    reference = [
        v for name, v in after.items() if name.startswith("shipway_feature_reference_rows{") and VERSION in name
    ]
    assert sum(reference) == profile.rows * len(profile.features)


def test_every_series_names_its_version(lab: Lab) -> None:
    ours = samples(lab.settings)
    assert ours[f"shipway_version_ready{{{VERSION}}}"] == 1.0
    without = {name.partition("{")[0] for name in ours if "version=" not in name}
    assert without == {
        each.name for each in vars(names).values() if isinstance(each, names.Metric) and "version" not in each.labels
    }
