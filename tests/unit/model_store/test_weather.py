"""The model `weather`: its recurrence is what it says, padding and gaps do no harm, and it beats naive forecasts."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from handlers.kinds import SequenceSchema, read_schema
from model_store import weather, weather_data
from model_store.errors import DataMissing
from model_store.registering import Trained
from model_store.weather_data import FEATURES, HORIZON, MAX_STEPS, MIN_STEPS, Weather
from model_store.weather_network import MinGru, WeatherNetwork
from tests.unit.model_store.exporting import exported, golden_outputs, loaded

PLAN = weather.Plan.small()
WIDTH = len(FEATURES)
SAME = 1e-4
"""The same sums in another order; temperatures are some 50 degrees."""


@pytest.fixture(scope="module")
def data() -> Weather:
    return weather_data.load()


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def trained(said: io.StringIO) -> Trained:
    return weather.train(Console(file=said, width=100), PLAN)


@pytest.fixture
def network() -> WeatherNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return WeatherNetwork(np.full(WIDTH, 50, dtype=np.float32), np.full(WIDTH, 10, dtype=np.float32)).eval()


def history(rows: int, steps: int) -> torch.Tensor:
    values = np.random.default_rng(rows * steps).normal(50, 10, (rows, steps, WIDTH))
    values[..., -1] = np.arange(steps) % 24
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("steps", [1, 2, 37, MAX_STEPS])
@torch.inference_mode()
def test_all_steps_at_once_are_the_recurrence_step_by_step(steps: int) -> None:
    cell, inputs = MinGru(4, 6), torch.randn(3, steps, 4)
    gate, candidate = cell.gates(inputs).chunk(2, dim=2)
    state, states = torch.zeros(3, 6), []
    for step in range(steps):
        opened = torch.sigmoid(gate[:, step])
        state = (1 - opened) * state + opened * torch.tanh(candidate[:, step])
        states.append(state)
    torch.testing.assert_close(cell(inputs), torch.stack(states, dim=1))


@torch.inference_mode()
def test_what_stands_behind_a_rows_length_has_no_influence(network: WeatherNetwork) -> None:
    rows, lengths = history(3, 60), torch.tensor([60, 24, 41])
    alone = torch.cat([network(row[None, :end], end[None]) for row, end in zip(rows, lengths, strict=True)])
    for padding in (torch.nan, 0.0, 1e6):
        padded = rows.clone()
        for row, end in zip(padded, lengths, strict=True):
            row[end:] = padding
        torch.testing.assert_close(network(padded, lengths), alone)


@torch.inference_mode()
def test_a_gap_is_the_last_known_value_and_what_was_never_known_the_centre(network: WeatherNetwork) -> None:
    gap, filled = history(1, 30), history(1, 30)
    gap[0, 10:20, 2] = torch.nan
    filled[0, 10:20, 2] = filled[0, 9, 2]
    gap[0, :, 4] = torch.nan
    filled[0, :, 4] = 50
    lengths = torch.tensor([30])
    assert torch.equal(network(gap, lengths), network(filled, lengths))
    assert torch.isfinite(network(torch.full((1, 30, WIDTH), torch.nan), lengths)).all()


def test_every_hour_is_there_once_and_the_missing_ones_are_gaps(data: Weather) -> None:
    assert data.values.shape == (3, len(data.held_out), WIDTH)
    hours = data.values[..., FEATURES.index("hour")]
    assert not np.isnan(hours).any()
    # One hour after the other, but for the two nights in which the clock is changed.
    assert ((np.diff(hours) % 24 != 1).sum(axis=1) == 2).all()
    gaps = np.isnan(data.values[..., 0]).mean()
    assert 0 < gaps < 0.01
    assert np.nanmax(data.values[..., FEATURES.index("wind_speed")]) < 100


def test_no_training_window_touches_a_held_out_hour_and_no_held_out_window_another(data: Weather) -> None:
    length = MIN_STEPS + HORIZON
    for held_out in (False, True):
        starts = data.starts(MIN_STEPS, held_out=held_out)
        assert len(starts) > 1000
        assert (data.held_out[starts[:, None] + np.arange(length)] == held_out).all()


def test_a_window_is_a_history_and_the_temperature_after_it(data: Weather) -> None:
    windows = data.windows(np.array([2]), np.array([100]), steps=30)
    np.testing.assert_array_equal(windows.history[0], data.values[2, 100:130])
    np.testing.assert_array_equal(windows.future[0], data.values[2, 130 : 130 + HORIZON, 0])


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"weather\.csv"):
        weather_data.load(tmp_path)


def test_a_short_training_beats_both_naive_forecasts(trained: Trained, said: io.StringIO) -> None:
    model, persistence, before = (trained.metrics[f"mae_{name}"] for name in ("model", "persistence", "day_before"))
    assert model < 0.9 * min(persistence, before)
    for error in (model, persistence, before):
        assert f"{error:.2f} °F" in said.getvalue()


def test_naive_forecasts_are_judged_as_they_say() -> None:
    class Known(torch.nn.Module):
        """Forecasts 1."""

        def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(values), HORIZON) + 0 * lengths[:, None]

    past = np.zeros((1, 30, WIDTH), dtype=np.float32)
    past[0, :, 0] = np.arange(30)
    past[0, -1, 0] = np.nan  # so that 28 is the last known, twice
    future = np.full((1, HORIZON), 3, dtype=np.float32)
    future[0, 0] = np.nan
    errors = weather.judge(Known(), weather_data.Windows(past, future))
    day_before = np.array([*range(6, 29), 28])[1:] - 3
    expected = {"mae_model": 2, "mae_persistence": 25, "mae_day_before": day_before.mean()}
    assert errors.as_dict() == pytest.approx(expected)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(trained: Trained) -> None:
    plan = weather.Plan(epochs=1, batches=2, batch_rows=4, judged_every=500)
    first, again = (weather.train(Console(quiet=True), plan).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["last.bias"], trained.network.state_dict()["last.bias"])


def test_the_exported_program_takes_any_rows_and_lengths_and_its_handler_answers_the_same(trained: Trained) -> None:
    schema = read_schema(trained.schema)
    assert isinstance(schema, SequenceSchema)
    assert (schema.features, schema.min_steps, schema.max_steps) == (FEATURES, MIN_STEPS, MAX_STEPS)
    stored = exported(trained)
    program = loaded(stored)
    for rows, steps in ((1, MIN_STEPS), (1, MAX_STEPS), (5, 50)):
        values, lengths = history(rows, steps), torch.full((rows,), steps)
        torch.testing.assert_close(
            program(values, lengths)[0], trained.network(values, lengths).detach(), rtol=SAME, atol=SAME
        )
    (golden,) = trained.golden
    assert None in golden["data"]
    assert golden["shape"][1] not in schema.buckets
    values = torch.tensor([torch.nan if value is None else value for value in golden["data"]]).reshape(golden["shape"])
    expected = trained.network(values, torch.full((len(values),), values.shape[1])).detach()
    answer = golden_outputs(trained, stored)["temperature"]
    assert answer["shape"] == [len(values), HORIZON] == [len(values), *schema.outputs[0].shape]
    np.testing.assert_allclose(answer["data"], expected.numpy().ravel(), rtol=SAME, atol=SAME)
