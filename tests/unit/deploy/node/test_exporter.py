"""One /metrics: workers' files, slots beside their reference, and a real Envoy's statistics under our names."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import prometheus_client.values
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.node.admin import Admin
from deploy.node.desired import DesiredEndpoint, DesiredVersion, Mirror
from deploy.node.envoy import Edge
from deploy.node.exporter import metrics
from deploy.node.layout import Layout, make_layout
from deploy.node.places import Places
from deploy.node.reconcile import Loaded
from handlers.measured import Measured, no_codes
from handlers.metrics import METRICS_DIRECTORY, Outcome, WorkerMetrics
from handlers.slots import DriftCounter, Slot, counters_directory
from monitoring import names
from monitoring.profile import Feature, Profile
from monitoring.rff import CUT, DIMENSIONS, Rff, digest
from tests.unit.deploy.node.conftest import DIGESTS, let_go
from tests.unit.deploy.node.real_edge import RealEdge, real_edge
from tests.waiting import wait_for

PROFILE = Profile(
    rows=10,
    features=(
        Feature("delay", "number", (0.0,), (), (4, 5), 1, {"6h": 0.5, "7d": 0.125}),
        Feature("carrier", "category", (), ("UA", 'a"b\\c'), (6, 3, 1), 0),
        Feature("probability", "output", (), (), (10,), 0),
        Feature("class", "prediction", (), ("on time", "late"), (8, 2, 0), 0),
        Feature("confidence", "prediction", (), (), (10,), 0),
        Feature("entropy", "prediction", (), (), (10,), 0),
    ),
    classes=("on time", "late"),
    accuracy=0.75,
)


def loaded(version: int, *, ready: bool = True, profile: Profile = PROFILE) -> Loaded:
    if not ready:
        return Loaded("flights", version, DIGESTS[version], state="FAILED", reason="no")
    return Loaded(
        "flights",
        version,
        DIGESTS[version],
        state="READY",
        registered=True,
        queue_size=100,
        profile=profile,
        profile_json=profile.to_json(),
    )


def scrape(layout: Layout, *versions: Loaded, places: Places | None = None) -> str:
    async def once() -> bytes:
        admin = Admin(layout.admin_socket)
        try:
            return await metrics(layout, admin, places or Places(layout), versions)
        finally:
            await admin.close()

    return asyncio.run(once()).decode()


def samples(text: str) -> dict[str, float]:
    """Every series with its value."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def count(layout: Layout, version: int, slot: int, delays: list[float]) -> None:
    """Rows whose flights are late with 0.75."""
    directory = counters_directory(layout.counters, "flights", str(version), PROFILE.to_json())
    numbers = np.array(delays, dtype=np.float32)[:, None]
    likely = np.tile(np.array([0.25, 0.75], np.float32), (len(delays), 1))
    counter = DriftCounter(directory, Slot(slot, lock=-1), PROFILE)
    counter.count(Measured(numbers, np.ones(numbers.shape, np.int64), np.zeros(numbers.shape, np.float32), likely))


def test_exposition_of_the_slots_is_exact(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    count(layout, 1, 0, [-1, 5, 6])
    count(layout, 1, 1, [np.nan])
    places = Places(layout)
    places.open("flights", 1, 2)
    text = scrape(layout, loaded(1), loaded(3, ready=False), places=places)
    places.close("flights", 1)
    one = '{model="flights",version="1"}'
    assert text == (
        f"""\
# HELP shipway_version_ready {names.VERSION_READY.help}
# TYPE shipway_version_ready gauge
shipway_version_ready{one} 1.0
shipway_version_ready{{model="flights",version="3"}} 0.0
# HELP shipway_workers {names.WORKERS.help}
# TYPE shipway_workers gauge
shipway_workers{{model="flights",state="wanted",version="1"}} 2.0
shipway_workers{{model="flights",state="alive",version="1"}} 0.0
# HELP shipway_worker_restarts_total {names.WORKER_RESTARTS.help}
# TYPE shipway_worker_restarts_total counter
shipway_worker_restarts_total{one} 0.0
# HELP shipway_worker_resident_bytes {names.WORKER_MEMORY.help}
# TYPE shipway_worker_resident_bytes gauge
shipway_worker_resident_bytes{one} 0.0
# HELP shipway_edge_requests_limit {names.EDGE_LIMIT.help}
# TYPE shipway_edge_requests_limit gauge
shipway_edge_requests_limit{one} 100.0
# HELP shipway_rows_total {names.ROWS.help}
# TYPE shipway_rows_total counter
shipway_rows_total{one} 4.0
"""
        + family(names.FEATURE_ROWS, "counter", [1, 2, 1, 0, 4, 0, 0, 4, 0, 0, 4, 0, 0, 4, 0, 4, 0])
        + family(names.REFERENCE_ROWS, "gauge", [4, 5, 1, 6, 3, 1, 0, 10, 0, 8, 2, 0, 0, 10, 0, 10, 0])
        + f"""\
# HELP shipway_feature_usual_psi_excess {names.USUAL_PSI_EXCESS.help}
# TYPE shipway_feature_usual_psi_excess gauge
shipway_feature_usual_psi_excess{{feature="delay",kind="number",model="flights",version="1",window="6h"}} 0.5
shipway_feature_usual_psi_excess{{feature="delay",kind="number",model="flights",version="1",window="7d"}} 0.125
# HELP shipway_confidence_sum_total {names.CONFIDENCE_SUM.help}
# TYPE shipway_confidence_sum_total counter
shipway_confidence_sum_total{one} 3.0
# HELP shipway_reference_accuracy {names.REFERENCE_ACCURACY.help}
# TYPE shipway_reference_accuracy gauge
shipway_reference_accuracy{one} 0.75
"""
    )
    # Envoy does not run here: what can be told is told, and the rest is logged.
    assert "metrics are incomplete" in caplog.text


BINS = (
    *(("00", "delay", "number"), ("01", "delay", "number"), ("missing", "delay", "number")),
    *(("UA", "carrier", "category"), (r"a\"b\\c", "carrier", "category"), ("other", "carrier", "category")),
    *(("missing", "carrier", "category"), ("00", "probability", "output"), ("missing", "probability", "output")),
    *((name, "class", "prediction") for name in ("on time", "late", "other", "missing")),
    *((name, feature, "prediction") for feature in ("confidence", "entropy") for name in ("00", "missing")),
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
    versions = tuple(DesiredVersion(version=v, digest=DIGESTS[v], weight=100 * (v == 1)) for v in (1, 2, 3))
    mirror = Mirror(version=2, percent=100)
    endpoint = DesiredEndpoint(model="flights", versions=versions, fallback=3, mirror=mirror)
    with real_edge(make_layout(directory / "run"), edge, [endpoint], most={3: 2}) as running:
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


def edges_of(text: str, name: str, version: str = "1") -> set[str]:
    """Upper bounds of a histogram's buckets, as they are written."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {s.labels["le"] for s in families[name].samples if "le" in s.labels and s.labels["version"] == version}


def test_edges_histogram_is_in_seconds_and_rises(real: RealEdge) -> None:
    before = samples(scrape(real.layout)).get('shipway_edge_request_seconds_count{model="flights",version="2"}', 0)
    real.ask("POST", "/predictions/flights/2", b"{}", x_test_seconds="0.06")
    until_counted(real, 'shipway_edge_request_seconds_count{model="flights",version="2"}', before + 1)
    text = scrape(real.layout)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    seconds = [s for s in families["shipway_edge_request_seconds"].samples if s.labels["version"] == "2"]
    buckets = [s for s in seconds if s.name.endswith("_bucket")]
    assert [float(s.labels["le"]) for s in buckets] == [*names.LATENCY_BUCKETS_SECONDS, np.inf]
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    (total,) = (s.value for s in seconds if s.name.endswith("_sum"))
    assert 0.05 <= total < 5


def test_a_full_version_overflows_and_says_so(real: RealEdge) -> None:
    """The edge of these tests lets 2 requests of version 3 in at once, and here come 8."""
    with ThreadPoolExecutor(8) as clients:
        asked = [
            clients.submit(real.ask, "POST", "/predictions/flights/3", b"{}", x_test_seconds="1") for _ in range(8)
        ]
    refused = [each.result().status for each in asked].count(503)
    assert refused > 0
    until_counted(real, 'shipway_edge_overflows_total{model="flights",version="3"}', refused)
    assert samples(scrape(real.layout))['shipway_edge_retries_total{model="flights",version="3"}'] == 0


@pytest.fixture
def worker(real: RealEdge, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerMetrics]:
    """One that has answered in every way."""
    counters = real.layout.counters
    monkeypatch.setenv(METRICS_DIRECTORY, str(counters))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.ValueClass)
    worker = WorkerMetrics(counters, Slot(0, lock=-1), "flights", "1")
    for protocol in ("predictions", "oip_http", "oip_grpc"):
        for outcome in get_args(Outcome):
            worker.answered(protocol, outcome, [0.1], 1)
    worker.batch(1, [0.05])
    yield worker
    for file in counters.glob("*.db"):
        file.unlink()


BY_OTHERS = (names.FEEDBACK, names.FEEDBACK_LABELS, names.PREDICTIONS_KEPT, names.SHADOW_ROWS)
"""What does not come from here, but from `deploy/node/feedback.py` and `deploy/node/agreement.py`."""
FEEDBACK_SERIES = 2 * 2 + 2
"""Of a version with two classes: every pair of them, and predictions by outcome."""


def test_every_metric_that_is_declared_is_exported_and_no_other(real: RealEdge, worker: WorkerMetrics) -> None:
    worker.captured("kept")  # which a node counts where it may
    real.ask("POST", "/predictions/flights", b"{}")
    # Not the number: copies are as many as the requests of other tests.
    wait_for(
        lambda: (
            'shipway_edge_shadow_request_seconds_count{model="flights",version="2"}' in samples(scrape(real.layout))
        ),
        15,
    )
    declared = {metric.name: metric for metric in vars(names).values() if isinstance(metric, names.Metric)}
    for metric in BY_OTHERS:
        del declared[metric.name]
    found: dict[str, set[str]] = {}
    profile = replace(PROFILE, rff="sha256:ab")
    for family_ in text_string_to_metric_families(scrape(real.layout, loaded(1, profile=profile))):
        name = f"{family_.name}_total" if family_.type == "counter" else family_.name
        assert family_.documentation == declared[name].help
        for sample in family_.samples:
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert found == {name: set(metric.labels) for name, metric in declared.items()}


@pytest.mark.usefixtures("worker")
def test_workers_and_the_edge_count_latency_into_the_same_buckets(real: RealEdge) -> None:
    real.ask("POST", "/predictions/flights/1", b"{}")
    until_counted(real, 'shipway_edge_requests_in_flight{model="flights",version="1"}', 0)
    text = scrape(real.layout)
    assert edges_of(text, "shipway_edge_request_seconds") == edges_of(text, "shipway_request_seconds")


def thirty_features() -> Profile:
    """24 numbers, 5 categories of 4 values, and the probability of one of two classes."""
    random = np.random.default_rng(0)
    likely = random.random(500).astype(np.float32)
    return Profile.build(
        {f"number {at}": random.standard_normal(500).astype(np.float32) for at in range(24)},
        {f"category {at}": (random.integers(0, 4, 500), ("a", "b", "c", "d")) for at in range(5)},
        {"probability": likely},
        np.stack((1 - likely, likely), axis=1),
        ("no", "yes"),
    )


@pytest.mark.usefixtures("worker")
def test_a_version_of_thirty_features_has_800_series_at_most(real: RealEdge) -> None:
    """With whatever the edge answers, over every protocol and with every outcome; a rollout adds one."""
    for status in ("200", "400", "503", "504"):
        real.ask("POST", "/predictions/flights/1", b"{}", x_test_status=status)
    until_counted(real, 'shipway_edge_requests_total{code="504",model="flights",version="1"}', 1)
    version = loaded(1, profile=replace(thirty_features(), accuracy=0.9))
    found = samples(scrape(real.layout, version))
    series = [name for name in found if 'model="flights"' in name and 'version="1"' in name]
    labels = 'bin="missing",feature="entropy",kind="prediction",model="flights",version="1"'
    assert f"shipway_feature_rows_total{{{labels}}}" in series
    assert 750 < len(series) + FEEDBACK_SERIES <= 800 + 1


def test_random_fourier_features_are_sums_of_raised_dimensions(layout: Layout) -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((300, 5)).astype(np.float32)
    rff = Rff.fit(vectors)
    profile = replace(Profile.build({"first": vectors[:, 0]}, {}, {}), rff=digest(rff.to_bytes()))
    directory = counters_directory(layout.counters, "flights", "1", profile.to_json())
    rows = Measured(vectors[:7, :1], no_codes(7), vectors[:7, :0], None, vectors[:7])
    DriftCounter(directory, Slot(0, lock=-1), profile, rff).count(rows)
    found = samples(scrape(layout, loaded(1, profile=profile)))
    sums = [
        found[f'shipway_rff_sum_total{{dimension="{d:02d}",model="flights",version="1"}}'] for d in range(DIMENSIONS)
    ]
    np.testing.assert_allclose(sums, (rff(vectors[:7]) + CUT).sum(axis=0), atol=1e-5)
    assert found['shipway_rff_reference_rows{model="flights",version="1"}'] == 300
    assert not any(name.startswith("shipway_confidence_sum") for name in found)


def test_names_keep_the_conventions() -> None:
    for metric in (value for value in vars(names).values() if isinstance(value, names.Metric)):
        assert metric.name.startswith("shipway_")
        assert metric.help.endswith(".")
        assert metric.labels in ((), ("outcome",)) or metric.labels[:2] == names.VERSION_LABELS
    assert os.environ.get(METRICS_DIRECTORY) is None
