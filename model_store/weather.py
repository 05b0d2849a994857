"""The model `weather`: the temperature of the next 24 hours at an airport, from a day to a week of hourly weather."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from handlers.kinds import SequenceSchema, TensorSpec
from model_store import progress, weather_data
from model_store.fitting import one_thread
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType
from model_store.weather_data import FEATURES, HORIZON, MAX_STEPS, MIN_STEPS, TEMPERATURE, FloatArray, Weather, Windows
from model_store.weather_network import WeatherNetwork

INPUT = "history"
OUTPUT = "temperature"
BUCKETS = (24, 48, 72, 96, 120, 144, MAX_STEPS)
_TRAINING_STEPS = (24, 36, 48, 72, 96)
"""Hours of history while training: a state forgets, so that longer ones teach nothing new."""
_GOLDEN_ROWS, _GOLDEN_STEPS = 12, 60
_LONGEST_GRADIENT = 1.0
_REFERENCE_ROWS = 1000


@dataclass(frozen=True)
class Plan:
    """How to fit. The defaults take twenty seconds on two cores."""

    epochs: int = 5
    batches: int = 60
    """Of an epoch."""
    batch_rows: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    seed: int = 0
    judged_every: int = 6
    """Hours between the held-out windows."""

    @classmethod
    def small(cls) -> "Plan":
        """Enough to have a model at all, in seconds: for tests."""
        return cls(epochs=2, batches=20, batch_rows=32, learning_rate=1e-2, judged_every=48)


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors in degrees Fahrenheit, over all forecast hours of the held-out windows."""

    model: float
    persistence: float
    """Of the forecast that the last known temperature stays."""
    day_before: float
    """Of the forecast that every hour is as it was 24 hours before."""

    def as_dict(self) -> dict[str, float]:
        """The errors by the names of metrics."""
        return {f"mae_{name}": value for name, value in asdict(self).items()}


def train(console: Console, plan: Plan | None = None) -> Trained:
    """Train on eight months and judge the other four, one of every season. Raises DataMissing."""
    plan = plan or Plan()
    data = weather_data.load()
    network, losses = _fit(data, plan, console)
    held_out = data.held_out_windows(MAX_STEPS, plan.judged_every)
    errors = judge(network, held_out)
    console.print(_report(errors, len(held_out.future)))
    golden = _golden(data)
    return Trained(
        network=network,
        example=_inputs(golden[:2]),
        inputs=[
            array_type("values", golden, free=(0, 1)),
            TensorType("lengths", "int64", (-1,)),
        ],
        outputs=[TensorType(OUTPUT, "float32", (-1, HORIZON))],
        schema=_schema(),
        golden=[
            {
                "name": INPUT,
                "datatype": "FP32",
                "shape": list(golden.shape),
                "data": weather_data.to_lists(golden),
            }
        ],
        data_digest=data.digest,
        reference=Reference(_reference(data, plan.seed)),
        metrics=errors.as_dict(),
        params={**asdict(plan), "held_out_rows": len(held_out.future)},
        epochs=[{"loss": loss} for loss in losses],
    )


def judge(network: nn.Module, windows: Windows) -> Errors:
    """The network's forecast of these windows beside two that need no network."""
    with torch.inference_mode():
        values, lengths = _inputs(windows.history)
        forecast = network(torch.from_numpy(values), torch.from_numpy(lengths)).numpy()
    before = windows.history[:, :, FEATURES.index(TEMPERATURE)]
    filled = pd.DataFrame(before.T).ffill().to_numpy().T
    return Errors(
        model=_error(forecast, windows.future),
        persistence=_error(filled[:, -1:], windows.future),
        day_before=_error(filled[:, -HORIZON:], windows.future),
    )


def _error(forecast: FloatArray, future: FloatArray) -> float:
    return float(np.nanmean(np.abs(forecast - future)))


def _inputs(history: FloatArray) -> tuple[FloatArray, weather_data.IntArray]:
    rows, steps, _ = history.shape
    return history, np.full(rows, steps, dtype=np.int64)


def _fit(data: Weather, plan: Plan, console: Console) -> tuple[WeatherNetwork, list[float]]:
    """A network in evaluation mode, and every epoch's mean absolute error in training. The same for the same seed."""
    hours = data.training_hours()
    losses: list[float] = []
    with one_thread(), torch.random.fork_rng(), progress.epochs(console, plan.epochs) as advance:
        torch.manual_seed(plan.seed)
        network = WeatherNetwork(centre=np.nanmean(hours, axis=0), scale=np.nanstd(hours, axis=0))
        optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, plan.learning_rate, total_steps=plan.epochs * plan.batches
        )
        batches = _batches(data, plan)
        for _ in range(plan.epochs):
            total = 0.0
            for _ in range(plan.batches):
                windows = next(batches)
                forecast = network(*map(torch.from_numpy, _inputs(windows.history)))
                future = torch.from_numpy(windows.future)
                known = ~torch.isnan(future)
                loss = (forecast[known] - future[known]).abs().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), _LONGEST_GRADIENT)
                optimizer.step()
                schedule.step()
                total += loss.item()
            losses.append(total / plan.batches)
            advance(f"off by {losses[-1]:.2f} °F")
    return network.eval(), losses


def _batches(data: Weather, plan: Plan) -> Iterator[Windows]:
    """Random windows, those of a batch with equally long histories, without end."""
    random = np.random.default_rng(plan.seed)
    starts = {steps: data.starts(steps, held_out=False) for steps in _TRAINING_STEPS}
    while True:
        steps = int(random.choice(_TRAINING_STEPS))
        airports = random.integers(0, len(data.values), plan.batch_rows)
        yield data.windows(airports, random.choice(starts[steps], plan.batch_rows), steps)


def _reference(data: Weather, seed: int) -> tuple[FloatArray, weather_data.IntArray]:
    """Histories of the training months, a day to a week long, NaN behind their ends."""
    random = np.random.default_rng(seed)
    starts = random.choice(data.starts(MAX_STEPS, held_out=False), _REFERENCE_ROWS)
    history = data.windows(random.integers(0, len(data.values), _REFERENCE_ROWS), starts, MAX_STEPS).history
    lengths = random.integers(MIN_STEPS, MAX_STEPS, _REFERENCE_ROWS, endpoint=True)
    history[np.arange(MAX_STEPS) >= lengths[:, None]] = np.nan
    return history, lengths


def _golden(data: Weather) -> FloatArray:
    """Held-out histories that fill no bucket; in one a feature is wholly missing, in another its last hours."""
    every = data.held_out_windows(_GOLDEN_STEPS, every=1).history
    golden: FloatArray = every[np.linspace(0, len(every) - 1, _GOLDEN_ROWS).astype(int)]
    golden[0, :, FEATURES.index("pressure")] = np.nan
    golden[1, -6:, FEATURES.index(TEMPERATURE)] = np.nan
    return golden


def _schema() -> bytes:
    return SequenceSchema(
        input=INPUT,
        features=FEATURES,
        min_steps=MIN_STEPS,
        max_steps=MAX_STEPS,
        buckets=BUCKETS,
        outputs=(TensorSpec(name=OUTPUT, datatype="FP32", shape=(HORIZON,)),),
    ).to_json()


def _report(errors: Errors, windows: int) -> Table:
    months = ", ".join(map(str, weather_data.HELD_OUT_MONTHS))
    table = Table(title=f"Forecasts of {HORIZON} hours, {windows:,} of them in the held-out months {months}")
    table.add_column("forecast")
    table.add_column("mean absolute error", justify="right")
    for name, value in (
        ("the network", errors.model),
        ("the temperature stays", errors.persistence),
        ("as 24 hours before", errors.day_before),
    ):
        table.add_row(name, f"{value:.2f} °F")
    return table
