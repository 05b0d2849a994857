"""The one version of a pod, in words where it is not right, and how it is run."""

import json
from pathlib import Path

import pytest
import yaml

from deploy.errors import InvalidSettings
from deploy.node.serves import Handler, read_serves
from model_store.worker_plan import CONFIG, WorkerPlan
from tests.unit.deploy.node.conftest import DIGESTS

FLIGHTS = {"model": "flights", "version": 2, "digest": DIGESTS[2]}


def test_it_has_all_traffic_and_nothing_else_is_served() -> None:
    (endpoint,) = read_serves(json.dumps(FLIGHTS)).desired().endpoints
    assert [(v.version, v.digest, v.weight) for v in endpoint.versions] == [(2, DIGESTS[2], 100)]
    assert (endpoint.model, endpoint.explainer, endpoint.fallback, endpoint.mirror) == ("flights", None, None, None)
    (endpoint,) = read_serves(json.dumps({**FLIGHTS, "explain": True})).desired().endpoints
    assert endpoint.explainer == 2


def test_handler_replaces_what_was_packaged_and_leaves_the_rest(tmp_path: Path) -> None:
    packaged = yaml.safe_load(WorkerPlan(workers=1).to_yaml())
    (tmp_path / CONFIG).write_bytes(WorkerPlan(workers=1).to_yaml())
    Handler().apply(tmp_path)
    assert (tmp_path / CONFIG).read_bytes() == WorkerPlan(workers=1).to_yaml()
    handler = {"workers": 3, "batchSize": 8, "maxBatchDelayMs": 2, "responseTimeoutSeconds": 30, "maxQueue": 256}
    read_serves(json.dumps({**FLIGHTS, "handler": handler})).handler.apply(tmp_path)
    changed = {"minWorkers": 3, "maxWorkers": 3, "batchSize": 8, "maxBatchDelay": 2, "responseTimeout": 30}
    assert yaml.safe_load((tmp_path / CONFIG).read_text()) == {**packaged, **changed, "jobQueueSize": 256}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flights", "Invalid JSON"),
        (json.dumps({**FLIGHTS, "version": "2"}), "version: Input should be a valid integer; found '2'"),
        (json.dumps({**FLIGHTS, "digest": "2"}), "digest: String should match pattern"),
        (json.dumps({**FLIGHTS, "model": "flights-explainer"}), "must not end in -explainer; found flights-explainer"),
        (json.dumps({**FLIGHTS, "weight": 5}), "weight: Extra inputs are not permitted"),
        (
            json.dumps({**FLIGHTS, "handler": {"workers": 0}}),
            "handler.workers: Input should be greater than or equal to 1; found 0",
        ),
        (json.dumps({**FLIGHTS, "handler": {"batch_size": 8}}), "handler.batch_size: Extra inputs are not permitted"),
    ],
)
def test_what_is_not_right_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_serves(text)
    assert "SHIPWAY_SERVES: " in str(caught.value)
    assert words in str(caught.value)
