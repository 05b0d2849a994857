"""Feedback on real nodes: labels late, again, of nobody, after a crash, at another node, and without a store."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from handlers.protocol.messages import SERVICE, ModelInferRequest, ModelInferResponse
from model_store.flights import CLASSES
from tests.integration.clients import post
from tests.integration.conftest import Lab, RunningNode, node, samples, wait_until_ready
from tests.unit.deploy.node.postgresql import server
from tests.waiting import wait_for

Ports = Callable[[int], list[int]]
FEEDBACK = "/feedback"
OTHER = "other"


@dataclass(frozen=True)
class Predicted:
    """One answered request."""

    id: str
    version: str
    classes: tuple[str, ...]
    """Of its rows."""

    def labels(self, *actual: str) -> list[dict[str, Any]]:
        return [{"prediction_id": self.id, "row": row, "label": label} for row, label in enumerate(actual)]


def decided(probabilities: Sequence[float]) -> tuple[str, ...]:
    return tuple(CLASSES[probability > 0.5] for probability in probabilities)


def over_http(port: int, rows: Sequence[dict[str, Any]]) -> Predicted:
    status, headers, body = post(port, "/predictions/flights", list(rows))
    assert status == 200, body
    found = decided([row["probability"] for row in json.loads(body)])
    return Predicted(headers["x-shipway-prediction-id"], headers["x-shipway-version"], found)


def over_grpc(channel: grpc.Channel, rows: Sequence[dict[str, Any]]) -> Predicted:
    request = ModelInferRequest(model_name="flights")
    for name in rows[0]:
        values = [row[name] for row in rows]
        datatype = "BYTES" if any(isinstance(value, str) for value in values) else "FP32"
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[len(rows)])
        if datatype == "BYTES":
            tensor.contents.bytes_contents.extend(value.encode() for value in values)
        else:
            tensor.contents.fp32_contents.extend(np.nan if value is None else value for value in values)
    infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    answer, call = infer.with_call(request.SerializeToString(), timeout=30)
    metadata = {key: str(value) for key, value in call.initial_metadata()}
    (raw,) = ModelInferResponse.FromString(answer).raw_output_contents
    found = decided(np.frombuffer(raw, np.float32).tolist())
    return Predicted(metadata["x-shipway-prediction-id"], metadata["x-shipway-version"], found)


def send(port: int, labels: object) -> dict[str, Any]:
    status, _, body = post(port, FEEDBACK, labels)
    assert status == 200, body
    told: dict[str, Any] = json.loads(body)
    return told


def outcomes(told: dict[str, Any]) -> tuple[int, int, int, int]:
    return told["joined"], told["repeated"], told["unknown"], told["refused"]


def confusion(running: RunningNode, version: str) -> np.ndarray[Any, Any]:
    """What the node has counted, [predicted, actual], with `other` as the last actual class."""
    found = samples(running.settings)
    series = 'shipway_feedback_total{{actual="{}",model="flights",predicted="{}",version="{}"}}'
    return np.array([[found.get(series.format(a, p, version), 0) for a in (*CLASSES, OTHER)] for p in CLASSES])


def kept(running: RunningNode) -> float:
    """Predicted rows that are in the store."""
    series = 'shipway_feedback_predictions_total{{model="flights",outcome="kept",version="{}"}}'
    found = samples(running.settings)
    return sum(found.get(series.format(version), 0) for version in (1, 2))


def health(running: RunningNode) -> str:
    """What the node says of itself; nothing as long as it does not."""
    try:
        return post(running.settings.metrics_port, "/readyz", None, method="GET")[2].decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def running(lab: Lab, free_ports: Ports) -> Iterator[RunningNode]:
    """A node whose two versions share the traffic."""
    with node(lab, free_ports(2), lab.desired(50, 50)) as found:
        wait_until_ready(found.settings, 2)
        yield found


def test_confusion_of_each_version_is_that_of_scikit_learn(lab: Lab, running: RunningNode) -> None:
    random = np.random.default_rng(7)
    rows = [lab.row(index) for index in range(len(lab.expected()))]
    predicted = []
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        for _ in range(60):
            some = [rows[index] for index in random.integers(0, len(rows), random.integers(1, 9))]
            predicted += [over_http(running.port, some), over_grpc(channel, some)]
    assert {each.version for each in predicted} == {"1", "2"}
    assert {one for each in predicted for one in each.classes} == set(CLASSES)
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    labels = []
    for each in predicted:
        actual = [str(random.choice([*CLASSES, "cancelled"])) for _ in each.classes]
        pairs[each.version] += zip(each.classes, actual, strict=True)
        labels += each.labels(*actual)
    random.shuffle(labels)
    halves = labels[: len(labels) // 2], labels[len(labels) // 2 :]
    for half in halves:
        assert outcomes(send(running.port, half)) == (len(half), 0, 0, 0)
    for version, made in pairs.items():
        expected = confusion_matrix(*zip(*made, strict=True), labels=[*CLASSES, "cancelled"])
        np.testing.assert_array_equal(confusion(running, version), expected[:2])
    # Again, and with other labels: nothing changes.
    before = [confusion(running, version) for version in pairs]
    assert outcomes(send(running.port, [{**label, "label": "late"} for label in labels])) == (0, len(labels), 0, 0)
    np.testing.assert_array_equal([confusion(running, version) for version in pairs], before)


def test_each_label_gets_its_own_outcome(lab: Lab, running: RunningNode) -> None:
    two = over_http(running.port, [lab.row(), lab.row(1)])
    unknown = {"prediction_id": "1700000000.000000-00000000-0000-4000", "label": "late"}
    labels = [*two.labels("late"), *two.labels("late"), unknown, {**unknown, "label": 1}, 7]
    labels += [{"prediction_id": two.id, "row": 2, "label": "late"}, {"prediction_id": two.id, "label": "late"}]
    told = send(running.port, labels)
    assert outcomes(told) == (1, 1, 1, 4)
    assert {problem["index"]: problem["error"] for problem in told["problems"]} == {
        2: "prediction_id: no such prediction is kept; it has expired, was made elsewhere, or its model has no classes",
        3: "label: wrong value; found 1; allowed: 1 to 256 characters",
        4: "label: wrong type; found 7; allowed: an object of prediction_id, row, label",
        5: "row: the prediction has no such row; found 2; allowed: 0 to 1",
        6: "row: missing, and the prediction has 2 rows; allowed: 0 to 1",
    }
    found = samples(running.settings)
    for outcome in ("joined", "repeated", "unknown", "refused"):
        assert found[f'shipway_feedback_labels_total{{outcome="{outcome}"}}'] >= 1


def test_label_that_follows_its_answer_at_once_is_joined(lab: Lab, running: RunningNode) -> None:
    for _ in range(100):
        (label,) = over_http(running.port, [lab.row()]).labels("late")
        del label["row"]
        assert outcomes(send(running.port, label)) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b"{", "body: not JSON"),
        (400, [], "body: wrong form; found []"),
        (413, b" " * (8 * 2**20 + 1), "the request body is larger than 8388608 bytes"),
        (413, [{}] * 10_001, "body: too many labels; found 10001"),
    ],
)
def test_what_cannot_be_read_is_refused(running: RunningNode, status: int, body: object, words: str) -> None:
    found, _, answer = post(running.port, FEEDBACK, body)
    assert (found, json.loads(answer)["error"][: len(words)]) == (status, words)


def answers(running: RunningNode) -> bool:
    try:
        return post(running.port, FEEDBACK, [3])[0] == 200
    except OSError:
        return False


def test_killed_node_forgets_neither_predictions_nor_labels(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        before, after, lost = (over_http(running.port, [lab.row(index) for index in range(20)]) for _ in range(3))
        assert outcomes(send(running.port, before.labels(*["late"] * 20))) == (20, 0, 0, 0)
        assert len(lost.classes) == 20
        wait_for(lambda: kept(running) == 60, 10)
        counted = confusion(running, "1")
        running.kill()
        running.start_again()
        wait_for(lambda: answers(running), 60)
        # Before its workers are: nobody has to predict for a label to be joined, or for counts to be served.
        told = send(running.port, [*after.labels(*["late"] * 20), *before.labels(*["on time"] * 20)])
        assert outcomes(told) == (20, 20, 0, 0)
        now = confusion(running, "1")
        assert (now >= counted).all()
        expected = confusion_matrix(before.classes + after.classes, ["late"] * 40, labels=[*CLASSES, OTHER])
        np.testing.assert_array_equal(now, expected[:2])


def test_node_serves_without_a_store_and_keeps_what_waits(lab: Lab, free_ports: Ports) -> None:
    with node(lab, free_ports(2), lab.alone()) as running:
        wait_until_ready(running.settings, 1)
        early = over_http(running.port, [lab.row()])
        wait_for(lambda: kept(running) == 1, 10)
        running.kill()
        file = running.settings.feedback_file
        files = [path for path in file.parent.iterdir() if path.name.startswith(file.name)]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        hidden = file.with_name("hidden")
        file.rename(hidden)
        file.mkdir()  # which is no file that SQLite can open
        running.start_again()
        problem = f"the feedback store {file} cannot be used now: "
        wait_for(lambda: f"warning: {problem}" in health(running), 60)
        wait_for(lambda: health(running).startswith("ready"), 60)
        late = over_http(running.port, [lab.row(), lab.row(1)])
        status, _, body = post(running.port, FEEDBACK, late.labels("late"))
        assert (status, json.loads(body)["error"][: len(problem)]) == (503, problem)
        file.rmdir()
        hidden.rename(file)
        wait_for(lambda: kept(running) == 2, 10)
        assert outcomes(send(running.port, [*early.labels("late"), *late.labels("late", "late")])) == (3, 0, 0, 0)


def test_nodes_that_share_postgresql_join_each_others_predictions(
    lab: Lab, free_ports: Ports, short_directory: Callable[[], Any]
) -> None:
    ports = free_ports(5)
    with server(short_directory(), ports[0]) as database:
        shared = {"feedback_store": database.url()}
        with node(lab, ports[1:3], lab.alone(), **shared) as one, node(lab, ports[3:], lab.alone(), **shared) as two:
            for running in (one, two):
                wait_until_ready(running.settings, 1)
            predicted = [over_http(one.port, [lab.row(index)]) for index in range(30)]
            # At the other node, some right after they were made; each is counted there and nowhere else.
            at_two = [label for each in predicted[10:] for label in each.labels("late")]
            assert outcomes(send(two.port, at_two)) == (20, 0, 0, 0)
            one.kill()
            labels = [label for each in predicted for label in each.labels("late")]
            assert outcomes(send(two.port, labels)) == (10, 20, 0, 0)
            expected = confusion_matrix(
                [each.classes[0] for each in predicted], ["late"] * 30, labels=[*CLASSES, OTHER]
            )
            np.testing.assert_array_equal(confusion(two, "1"), expected[:2])
