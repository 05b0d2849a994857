"""Explanations: attributions add up to the difference of the program's own outputs, and name what they belong to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch
from torch import nn

from handlers import explain
from handlers.answer import HTTP, ROWS
from handlers.base import BaseHandler
from handlers.errors import ArchiveUnusable
from handlers.schema import CategoryColumn, NumberColumn, OutputColumn, TableSchema
from handlers.slots import counters_directory, read_counts
from handlers.tabular import TabularHandler
from model_store.network import Cycle, TabularNetwork
from monitoring.profile import Profile
from tests.unit.handlers.archives import Start, write
from tests.unit.handlers.tiny import Answer, Request, ask, exposition, write_archive

SCHEMA = TableSchema(
    numbers=(
        NumberColumn("hour"),
        NumberColumn("delay", nullable=True),
        NumberColumn("constant"),
        NumberColumn("rain"),
    ),
    categories=(CategoryColumn("carrier", ("AA", "B6", "UA")), CategoryColumn("origin", ("EWR", "JFK"), other=False)),
    outputs=(OutputColumn("probability"), OutputColumn("twice")),
)
ROW = {"hour": 17.5, "delay": 42.0, "constant": 1.0, "rain": 0.5, "carrier": "UA", "origin": "EWR"}
ROW_COUNT = 500


class Network(nn.Module):
    """The real tabular network with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        centre, scale = np.array([12, 10, 1, 0], np.float32), np.array([6, 30, 1, 1], np.float32)
        self.inner = TabularNetwork(centre, scale, [Cycle(0, 24.0)], [3, 2], embedding=4, hidden=(16, 8))
        with torch.no_grad():  # as far from linear as a trained one
            for parameter in self.inner.parameters():
                parameter.mul_(2.5)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probability = self.inner(numbers, codes)
        return probability, 2 * probability


class Reversed(Network):
    """Looks the categories up in another order than they come in."""

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probability = torch.sigmoid(self.inner.embeddings(codes.flip(1)).sum(dim=(1, 2)) + 0 * numbers[:, 0])
        return probability, probability


class Counting(Network):
    """Reads a category otherwise than by an embedding."""

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probability = torch.sigmoid(self.inner(numbers, codes) + codes[:, 0])
        return probability, probability


def profile() -> Profile:
    random = np.random.default_rng(4)
    dry = np.arange(ROW_COUNT) % 10 < 7
    numbers = {
        "hour": np.arange(ROW_COUNT, dtype=np.float32) % 24,
        "delay": np.where(random.random(ROW_COUNT) < 0.2, np.nan, np.arange(ROW_COUNT)).astype(np.float32),
        "constant": np.ones(ROW_COUNT, np.float32),
        "rain": np.where(dry, 0, random.random(ROW_COUNT)).astype(np.float32),
    }
    codes = {"carrier": np.arange(ROW_COUNT) % 3, "origin": (np.arange(ROW_COUNT) % 4 > 0).astype(np.int64)}
    categories = {column.name: (codes[column.name], column.vocabulary) for column in SCHEMA.categories}
    outputs = {column.name: random.random(ROW_COUNT).astype(np.float32) for column in SCHEMA.outputs}
    return Profile.build(numbers, categories, outputs)


def unpack(directory: Path, network: nn.Module) -> Path:
    golden = [{"name": "rain", "data": [0.0, 0.3]}, {"name": "delay", "data": [None, 3.0]}]
    files = {
        "profile.json": profile().to_json(),
        "golden.json": orjson.dumps({"request": {"inputs": golden}}),
    }
    example = (torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.int64))
    return write(directory, network, example, SCHEMA.to_json(), files=files)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("table"), Network())


@pytest.fixture
def handler(explainer: Start, table: Path) -> BaseHandler:
    return explainer(TabularHandler, table)


def plain(*rows: dict[str, Any], **headers: str) -> Request:
    named = {f"explain-{name}": value for name, value in headers.items()}
    return Request(ROWS, orjson.dumps(rows if len(rows) > 1 else rows[0]), "application/json", named)


def oip(rows: list[dict[str, Any]], **document: Any) -> Request:
    text = {column.name for column in SCHEMA.categories}
    inputs = [
        {
            "name": name,
            "datatype": "BYTES" if name in text else "FP32",
            "shape": [len(rows)],
            "data": [row[name] for row in rows],
        }
        for name in SCHEMA.names
    ]
    return Request(HTTP, orjson.dumps({"inputs": inputs, **document}), "application/json")


def explained(answer: Answer) -> Any:
    assert answer.status == 200, answer.error
    return json.loads(answer.body)


def outputs(handler: BaseHandler, row: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The program's own outputs for one row."""
    columns: dict[str, list[object]] = {name: [row[name]] for name in SCHEMA.names}
    numbers, codes = SCHEMA.encode(columns)
    return np.array([output[0] for output in handler.execute([numbers, codes])])


def test_attributions_add_up_to_the_difference_of_the_programs_outputs(handler: BaseHandler) -> None:
    found = explained(ask(handler, plain(ROW))[0])
    assert found["output"] == "probability"
    medians = {"hour": 11.0, "delay": pytest.approx(255, abs=15), "constant": 1.0, "rain": 0.0}
    assert found["baseline"] == {**medians, "carrier": "other", "origin": "JFK"}
    value = outputs(handler, ROW)[0]
    baseline = outputs(handler, {**found["baseline"], "carrier": "nobody"})[0]
    assert found["value"] == pytest.approx(value, rel=1e-6)
    assert found["baseline_value"] == pytest.approx(baseline, rel=1e-6)
    assert abs(value - baseline) > 0.01, "this test would show nothing"
    total = sum(found["attributions"].values())
    assert total == pytest.approx(value - baseline, abs=found["tolerance"])
    assert found["gap"] == pytest.approx(total - (value - baseline), abs=1e-6)
    assert found["within_tolerance"]
    assert found["tolerance"] <= 0.01 * abs(value - baseline) + 1e-4
    assert found["attributions"]["constant"] == 0
    assert all(found["attributions"][name] != 0 for name in SCHEMA.names if name != "constant")


def test_missing_number_stays_missing_and_earns_nothing(handler: BaseHandler) -> None:
    row = {**ROW, "delay": None}
    found = explained(ask(handler, plain(row))[0])
    assert found["attributions"]["delay"] == 0
    assert found["baseline"]["delay"] is None
    assert found["value"] == pytest.approx(outputs(handler, row)[0], rel=1e-6)
    assert found["within_tolerance"]


def test_category_like_the_baseline_earns_nothing(handler: BaseHandler) -> None:
    found = explained(ask(handler, plain({**ROW, "origin": "JFK", "carrier": "unheard of"}))[0])
    assert found["attributions"]["origin"] == found["attributions"]["carrier"] == 0


def test_oip_request_names_output_and_steps_and_gets_a_list(handler: BaseHandler) -> None:
    other = {**ROW, "hour": 3.0, "carrier": "B6"}
    request = oip([ROW, other], id="7", parameters={"output": "twice", "steps": 64})
    document = explained(ask(handler, request)[0])
    assert {name: document[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "tiny",
        "model_version": "3",
        "id": "7",
    }
    assert [found["value"] for found in document["explanations"]] == pytest.approx(
        [outputs(handler, row)[1] for row in (ROW, other)], rel=1e-6
    )
    for found in document["explanations"]:
        assert (found["output"], found["steps_asked"]) == ("twice", 64)
        assert found["within_tolerance"]
    by_name = explained(ask(handler, oip([ROW], outputs=[{"name": "twice"}]))[0])
    assert by_name["explanations"][0]["output"] == "twice"


def test_plain_rows_name_them_by_headers(handler: BaseHandler) -> None:
    found = explained(ask(handler, plain(ROW, ROW, output="twice", steps="16"))[0])
    assert [(one["output"], one["steps_asked"]) for one in found] == [("twice", 16)] * 2


def test_more_steps_are_taken_where_the_gap_is_too_wide(handler: BaseHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "RELATIVE_TOLERANCE", 1e-5)
    monkeypatch.setattr(explain, "ABSOLUTE_TOLERANCE", 1e-5)
    found = explained(ask(handler, plain(ROW, steps="8"))[0])
    assert found["steps_asked"] == 8
    assert found["steps"] > 8
    assert found["within_tolerance"] == (abs(found["gap"]) <= found["tolerance"])
    monkeypatch.setattr(explain, "BUDGET_SECONDS", 0.0)
    hurried = explained(ask(handler, plain(ROW, steps="8"))[0])
    assert (hurried["steps"], hurried["within_tolerance"]) == (8, False)
    assert "found 1 of 2 rows within 0 s; allowed: fewer rows or steps" in ask(handler, plain(ROW, ROW))[0].error


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (plain({**ROW, "hour": "x"}), "column 'hour', row 0: wrong type; found 'x'"),
        (plain(ROW, output="odds"), "output: unknown output; found 'odds'; allowed: probability, twice"),
        (plain(ROW, steps="7"), "steps: wrong value; found '7'; allowed: 8 to 1024"),
        (plain(ROW, steps="many"), "steps: wrong value; found 'many'; allowed: 8 to 1024"),
        (oip([ROW], parameters={"steps": True}), "steps: wrong value; found true; allowed: 8 to 1024"),
        (oip([ROW], parameters={"steps": 4096}), "steps: wrong value; found 4096; allowed: 8 to 1024"),
        (oip([ROW], parameters={"target": 1}), "target: this output has one value only; found 1; allowed: no target"),
        (plain(*[ROW] * 33), "rows: too many to explain at once; found 33 rows; allowed: at most 32"),
    ],
)
def test_wrong_request_is_refused_in_words(handler: BaseHandler, request_: Request, words: str) -> None:
    (answer,) = ask(handler, request_)
    assert (answer.status, answer.error) == (400, words) or answer.error.startswith(words)


def test_explanations_count_as_requests_of_the_explainer_and_never_as_drift(
    handler: BaseHandler, metrics_directory: Path
) -> None:
    ask(handler, plain(ROW))
    ask(handler, plain({**ROW, "hour": "x"}))
    series = exposition(metrics_directory)
    counted = 'shipway_requests_total{{model="tiny-explainer",outcome="{}",protocol="predictions",version="3"}}'
    assert [series[counted.format(outcome)] for outcome in ("ok", "refused")] == [1, 1]
    for model in ("tiny", "tiny-explainer"):
        counters = counters_directory(metrics_directory, model, "3", profile().to_json())
        assert read_counts(counters, profile()).rows == 0


def test_category_is_told_by_what_is_looked_up_for_it(explainer: Start, tmp_path: Path) -> None:
    handler = explainer(TabularHandler, unpack(tmp_path, Reversed()))
    found = explained(ask(handler, plain({**ROW, "origin": "JFK"}))[0])
    assert found["attributions"]["origin"] == 0
    assert found["attributions"]["carrier"] == pytest.approx(found["value"] - found["baseline_value"], rel=0.02)


def test_model_that_gradients_do_not_explain_says_so_with_its_gap(explainer: Start, tmp_path: Path) -> None:
    handler = explainer(TabularHandler, unpack(tmp_path, Counting()))
    found = explained(ask(handler, plain(ROW))[0])
    assert not found["within_tolerance"]
    assert abs(found["gap"]) > found["tolerance"]


def test_lookup_by_a_number_has_no_gradient(explainer: Start, tmp_path: Path) -> None:
    write_archive(tmp_path)
    (tmp_path / "golden.json").write_bytes(b'{"request": {"inputs": []}}')
    row = {"delay": 30, "wind": 1.5, "carrier": "AA", "origin": "EWR"}
    found = explained(ask(explainer(TabularHandler, tmp_path), plain(row))[0])
    assert not found["within_tolerance"]


class Strange(BaseHandler):
    """A handler whose inputs only its author knows."""

    output_names = ("probability",)
    load = read = read_plain = plain_tensors = check = outputs = plain = features = measure = None  # type: ignore[assignment]


def test_handler_that_nobody_knows_cannot_be_explained(table: Path) -> None:
    Strange.__abstractmethods__ = frozenset()
    strange: Any = Strange()
    strange.directory, strange.model, strange.version = table, "tiny", "3"
    with pytest.raises(ArchiveUnusable, match="Strange cannot be explained; allowed are tables, images"):
        explain.Explainer(strange)
