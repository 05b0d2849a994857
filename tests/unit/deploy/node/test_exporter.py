"""One /metrics: workers' files, slots beside their reference, and a real Envoy's statistics under our names."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import prometheus_client.values
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.node.admin import Admin
from deploy.node.desired import DesiredEndpoint, DesiredVersion
from deploy.node.envoy import Edge
from deploy.node.exporter import metrics
from deploy.node.layout import Layout, make_layout
from deploy.node.reconcile import Loaded
from handlers.measured import Measured
from handlers.metrics import METRICS_DIRECTORY, WorkerMetrics
from handlers.slots import DriftCounter, Slot, counters_directory
from monitoring import names
from monitoring.profile import Feature, Profile
from tests.unit.deploy.node.conftest import DIGESTS, let_go
from tests.unit.deploy.node.real_edge import RealEdge, real_edge

PROFILE = Profile(
    rows=10,
    features=(
        Feature("delay", "number", (0.0,), (), (4, 5), 1),
        Feature("carrier", "category", (), ("UA", 'a"b\\c'), (6, 3, 1), 0),
        Feature("probability", "output", (), (), (10,), 0),
    ),
)


def loaded(version: int, *, ready: bool = True) -> Loaded:
    if not ready:
        return Loaded("flights", version, DIGESTS[version], state="FAILED", reason="no")
    return Loaded("flights", version, DIGESTS[version], state="READY", profile=PROFILE, profile_json=PROFILE.to_json())


def scrape(layout: Layout, *versions: Loaded) -> str:
    async def once() -> bytes:
        admin = Admin(layout.admin_socket)
        try:
            return await metrics(layout, admin, versions)
        finally:
            await admin.close()

    return asyncio.run(once()).decode()


def samples(text: str) -> dict[str, float]:
    """Every series with its value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def count(layout: Layout, version: int, slot: int, delays: list[float]) -> None:
    directory = counters_directory(layout.counters, "flights", str(version), PROFILE.to_json())
    numbers = np.array(delays, dtype=np.float32)[:, None]
    counter = DriftCounter(directory, Slot(slot, lock=-1), PROFILE)
    counter.count(Measured(numbers, np.ones(numbers.shape, np.int64), np.zeros(numbers.shape, np.float32)))


def test_exposition_of_the_slots_is_exact(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    count(layout, 1, 0, [-1, 5, 6])
    count(layout, 1, 1, [np.nan])
    text = scrape(layout, loaded(1), loaded(3, ready=False))
    assert text == (
        f"""\
# HELP shipway_version_ready {names.VERSION_READY.help}
# TYPE shipway_version_ready gauge
shipway_version_ready{{model="flights",version="1"}} 1.0
shipway_version_ready{{model="flights",version="3"}} 0.0
# HELP shipway_rows_total {names.ROWS.help}
# TYPE shipway_rows_total counter
shipway_rows_total{{model="flights",version="1"}} 4.0
"""
        + family(names.FEATURE_ROWS, "counter", [1, 2, 1, 0, 4, 0, 0, 4, 0])
        + family(names.REFERENCE_ROWS, "gauge", [4, 5, 1, 6, 3, 1, 0, 10, 0])
    )
    # Neither Envoy nor TorchServe runs here: what can be told is told, and the rest is logged.
    assert "metrics are incomplete" in caplog.text


BINS = (
    *(("00", "delay", "number"), ("01", "delay", "number"), ("missing", "delay", "number")),
    *(("UA", "carrier", "category"), (r"a\"b\\c", "carrier", "category"), ("other", "carrier", "category")),
    *(("missing", "carrier", "category"), ("00", "probability", "output"), ("missing", "probability", "output")),
)


def family(metric: names.Metric, kind: str, values: list[int]) -> str:
    """The text of one of the two families that have every bin."""
    lines = [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {kind}"]
    for (label, feature, feature_kind), value in zip(BINS, values, strict=True):
        labels = f'bin="{label}",feature="{feature}",kind="{feature_kind}",model="flights",version="1"'
        lines.append(f"{metric.name}{{{labels}}} {float(value)}")
    return "\n".join(lines) + "\n"


def test_versions_with_the_same_profile_are_not_added_up(layout: Layout) -> None:
    count(layout, 1, 0, [1, 2, 3])
    count(layout, 2, 0, [4])
    found = samples(scrape(layout, loaded(1), loaded(2)))
    assert [found[f'shipway_rows_total{{model="flights",version="{v}"}}'] for v in (1, 2)] == [3, 1]


@pytest.fixture(scope="module")
def real(free_ports: Callable[[int], list[int]]) -> Iterator[RealEdge]:
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    edge = Edge("127.0.0.1", free_ports(1)[0], 1 << 20, 5.0, directory / "access.log", threads=1)
    versions = (
        DesiredVersion(version=1, digest=DIGESTS[1], weight=100),
        DesiredVersion(version=2, digest=DIGESTS[2], weight=0),
    )
    with real_edge(
        make_layout(directory / "run"), edge, [DesiredEndpoint(model="flights", versions=versions)]
    ) as running:
        yield running
    let_go(directory / "run")
    shutil.rmtree(directory)


def until_counted(real: RealEdge, series: str, value: float) -> dict[str, float]:
    """Envoy's threads bring their counts together now and then."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        found = samples(scrape(real.layout, loaded(1)))
        if found.get(series) == value:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{series} is {found.get(series)}, not {value}; there are {sorted(found)}")


def test_statistics_of_a_real_envoy_have_our_names(real: RealEdge) -> None:
    for path, times in (("/predictions/flights", 3), ("/predictions/flights/2", 2), ("/nowhere", 1)):
        for _ in range(times):
            real.ask("POST", path, b"{}")
    real.ask("POST", "/predictions/flights", b"{}", x_test_status="400")
    code = 'shipway_edge_requests_total{{code="{}",model="flights",version="{}"}}'
    until_counted(real, code.format(200, 1), 3)
    found = until_counted(real, 'shipway_edge_request_seconds_count{model="flights",version="1"}', 4)
    assert found[code.format(400, 1)] == 1
    assert found[code.format(200, 2)] == 2
    assert found['shipway_edge_requests_in_flight{model="flights",version="1"}'] == 0
    # With those of the launcher: the edge was asked for its health until it was up.
    assert found["shipway_edge_received_requests_total"] >= 8
    assert found["shipway_edge_connections"] >= 0


def test_edges_histogram_is_in_seconds_and_rises(real: RealEdge) -> None:
    before = samples(scrape(real.layout)).get('shipway_edge_request_seconds_count{model="flights",version="2"}', 0)
    real.ask("POST", "/predictions/flights/2", b"{}", x_test_seconds="0.06")
    until_counted(real, 'shipway_edge_request_seconds_count{model="flights",version="2"}', before + 1)
    text = scrape(real.layout)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    seconds = [s for s in families["shipway_edge_request_seconds"].samples if s.labels["version"] == "2"]
    buckets = [s for s in seconds if s.name.endswith("_bucket")]
    bounds = [float(s.labels["le"]) for s in buckets]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(0.0005)
    assert bounds[-1] == float("inf")
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    (total,) = (s.value for s in seconds if s.name.endswith("_sum"))
    assert 0.05 <= total < 5


def test_every_metric_that_is_declared_is_exported_and_no_other(
    real: RealEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = real.layout.counters
    monkeypatch.setenv(METRICS_DIRECTORY, str(counters))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.ValueClass)
    worker = WorkerMetrics(counters, Slot(0, lock=-1), "flights", "1")
    worker.answered("predictions", "ok", [0.1], 1)
    worker.batch(1)
    real.ask("POST", "/predictions/flights/1", b"{}")
    until_counted(real, 'shipway_edge_requests_in_flight{model="flights",version="1"}', 0)
    declared = {metric.name: metric for metric in vars(names).values() if isinstance(metric, names.Metric)}
    found: dict[str, set[str]] = {}
    for family_ in text_string_to_metric_families(scrape(real.layout, loaded(1))):
        name = f"{family_.name}_total" if family_.type == "counter" else family_.name
        for sample in family_.samples:
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert found == {name: set(metric.labels) for name, metric in declared.items()}


def test_names_keep_the_conventions() -> None:
    for metric in (value for value in vars(names).values() if isinstance(value, names.Metric)):
        assert metric.name.startswith("shipway_")
        assert metric.help.endswith(".")
        assert metric.labels == () or metric.labels[:2] == names.VERSION_LABELS
    assert os.environ.get(METRICS_DIRECTORY) is None
