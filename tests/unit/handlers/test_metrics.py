"""A worker's metrics: exact text over all slots, and kept by the worker that takes a slot over."""

from itertools import pairwise
from pathlib import Path

import pytest

from handlers.metrics import WorkerMetrics
from handlers.slots import Slot
from monitoring import names
from tests.unit.handlers.tiny import exposition


def worker(directory: Path, slot: int) -> WorkerMetrics:
    return WorkerMetrics(directory, Slot(slot, lock=-1), "tiny", "3")


def test_answers_are_counted_and_timed_by_protocol_and_outcome(metrics_directory: Path) -> None:
    metrics = worker(metrics_directory, 0)
    metrics.answered("oip_grpc", "ok", [0.0009], 2)
    metrics.answered("oip_grpc", "refused", [0.0], 1)
    found = exposition(metrics_directory)
    assert found['shipway_requests_total{model="tiny",outcome="ok",protocol="oip_grpc",version="3"}'] == 2
    assert found['shipway_requests_total{model="tiny",outcome="refused",protocol="oip_grpc",version="3"}'] == 1
    seconds = 'shipway_request_seconds_{}{{model="tiny",protocol="oip_grpc",version="3"}}'
    assert found[seconds.format("count")] == 2
    assert found[seconds.format("sum")] == pytest.approx(0.0009)
    bucket = 'shipway_request_seconds_bucket{{le="{}",model="tiny",protocol="oip_grpc",version="3"}}'
    assert [found[bucket.format(bound)] for bound in ("0.0005", "0.001", "+Inf")] == [1, 2, 2]


def test_batches_and_faults_of_counting_are_counted(metrics_directory: Path) -> None:
    metrics = worker(metrics_directory, 0)
    metrics.batch(3, [0.25, 0.5])
    metrics.monitor_error(3)
    metrics.captured("busy")
    found = exposition(metrics_directory)
    assert found['shipway_batch_requests_bucket{le="2.0",model="tiny",version="3"}'] == 0
    assert found['shipway_batch_requests_bucket{le="4.0",model="tiny",version="3"}'] == 1
    assert found['shipway_queue_seconds_total{model="tiny",version="3"}'] == 0.75
    assert found['shipway_monitor_errors_total{model="tiny",version="3"}'] == 3
    assert found['shipway_captured_requests_total{model="tiny",outcome="busy",version="3"}'] == 1


def test_queue_is_there_before_anybody_waits(metrics_directory: Path) -> None:
    """Or pods that nobody asks would look to an autoscaler as if Prometheus were down."""
    worker(metrics_directory, 0)
    found = exposition(metrics_directory)
    assert found['shipway_queue_seconds_total{model="tiny",version="3"}'] == 0
    assert found['shipway_batch_requests_sum{model="tiny",version="3"}'] == 0


def test_workers_add_up_and_a_successor_goes_on(metrics_directory: Path) -> None:
    for slot in (0, 1, 0):
        worker(metrics_directory, slot).answered("predictions", "ok", [0.1], 1)
    series = 'shipway_requests_total{model="tiny",outcome="ok",protocol="predictions",version="3"}'
    assert exposition(metrics_directory)[series] == 3
    # Two slots, two files of each kind: restarts leave none behind.
    assert len(list(metrics_directory.glob("counter_*.db"))) == 2


def test_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the node makes it before it starts a worker"):
        worker(tmp_path / "none", 0)


def test_buckets_are_dense_enough_to_read_a_quantile_off() -> None:
    bounds = names.LATENCY_BUCKETS_SECONDS
    assert all(low < high <= 2 * low for low, high in pairwise(bounds))
