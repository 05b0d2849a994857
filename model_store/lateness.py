"""The model `flights`: will a flight that has left the gate arrive more than 15 minutes late?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table as RichTable

from handlers.schema import TableSchema
from model_store import flights, progress, tables
from model_store.fitting import Epoch, Plan, Table, fit
from model_store.metrics import AucGain, Scores, auc_gain
from model_store.network import Cycle, TabularNetwork
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType

GOLDEN_ROWS = 128
_EXAMPLE_ROWS = 2  # the export makes an axis of length one a constant


@dataclass(frozen=True, eq=False)
class _Data:
    """The flights as this training uses them."""

    schema: TableSchema
    training: Table
    departed: npt.NDArray[np.int64]
    """Unix time of each training row."""
    validation: Table
    validation_frame: pd.DataFrame
    digest: str


def train(console: Console, plan: Plan | None = None, data_dir: Path | None = None) -> Trained:
    """Train on the flights of January to April and validate on May.

    Raises DataMissing.
    """
    plan = plan or Plan()
    data = _read(data_dir, plan, console)
    network, epochs = _fit(data, plan, console)
    scores, gain = _judge(network, data)
    console.print(_report(scores, gain))
    table = data.training
    example = (table.numbers[:_EXAMPLE_ROWS], table.codes[:_EXAMPLE_ROWS])
    chosen = np.linspace(0, len(data.validation_frame) - 1, GOLDEN_ROWS).astype(np.int64)
    return Trained(
        network=network,
        example=example,
        inputs=(array_type("numbers", example[0]), array_type("codes", example[1])),
        outputs=[TensorType(column.name, column.dtype, (-1,)) for column in data.schema.outputs],
        schema=data.schema.to_json(),
        golden=tables.golden_inputs(flights.to_columns(data.validation_frame.iloc[chosen]), data.schema),
        data_digest=data.digest,
        reference=Reference((table.numbers, table.codes), scores.accuracy, data.departed),
        metrics={**scores.as_dict(), **gain.as_dict()},
        params={**plan.as_dict(), "training_rows": len(table.label), "validation_rows": len(data.validation.label)},
        epochs=[_metrics(epoch) for epoch in epochs],
    )


def _read(data_dir: Path | None, plan: Plan, console: Console) -> _Data:
    with console.status("Reading the flights"):
        data = flights.load(data_dir)
        training, validation = data.rows(*flights.TRAINING_MONTHS), data.rows(*flights.VALIDATION_MONTHS)
        schema = flights.schema_of(training)
        training, judged = thinned(training, plan.max_rows), thinned(validation, plan.max_rows)
        training_table, validation_table = _encode(training, schema), _encode(judged, schema)
    console.print(data.dropped)
    console.print(
        f"Training on {len(training_table.label):,} flights of January to April, "
        f"validating on {len(validation_table.label):,} of May"
    )
    departed = training[flights.DEPARTED].to_numpy()
    return _Data(schema, training_table, departed, validation_table, validation, data.digest)


def thinned(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    """At most `rows` rows, evenly spaced."""
    if rows is None or rows >= len(frame):
        return frame
    return frame.iloc[np.linspace(0, len(frame) - 1, rows).astype(np.int64)]


def _encode(frame: pd.DataFrame, schema: TableSchema) -> Table:
    """Rows as the program takes them, by the encoding that the node uses."""
    numbers = {column.name: frame[column.name].to_numpy() for column in schema.numbers}
    categories = {column.name: frame[column.name].tolist() for column in schema.categories}
    label = np.array(frame[flights.LABEL], dtype=np.bool_)  # a copy: pandas hands out memory that is read-only
    return Table(*schema.encode({**numbers, **categories}), label=label)


def _cycles(schema: TableSchema) -> Sequence[Cycle]:
    names = [column.name for column in schema.numbers]
    return [Cycle(names.index(name), period) for name, period in flights.PERIODS.items()]


def _fit(data: _Data, plan: Plan, console: Console) -> tuple[TabularNetwork, list[Epoch]]:
    """Fit with a progress bar; also what every epoch came to."""
    seen: list[Epoch] = []
    with progress.epochs(console, plan.epochs) as advance:

        def on_epoch(epoch: Epoch) -> None:
            seen.append(epoch)
            advance(f"loss {epoch.loss:.4f}, validation {epoch.validation_loss:.4f}, AUC {epoch.scores.roc_auc:.4f}")

        return fit(data.training, data.validation, data.schema, _cycles(data.schema), plan, on_epoch), seen


def _metrics(epoch: Epoch) -> dict[str, float]:
    scores = {f"validation_{name}": value for name, value in epoch.scores.as_dict().items()}
    return {**scores, "loss": epoch.loss, "validation_loss": epoch.validation_loss}


def _judge(network: TabularNetwork, data: _Data) -> tuple[Scores, AucGain]:
    """Score the validation month, against the departure delay alone too."""
    table = data.validation
    with torch.inference_mode():
        probability = network(torch.from_numpy(table.numbers), torch.from_numpy(table.codes)).numpy()
    delay = table.numbers[:, flights.NUMBERS.index("dep_delay")]
    return Scores.of(probability, table.label), auc_gain(probability, delay, table.label)


def _report(scores: Scores, gain: AucGain) -> RichTable:
    table = RichTable(title="Validation: flights of May", show_header=False)
    for name, value in scores.as_dict().items():
        table.add_row(name.replace("_", " ").replace("roc auc", "ROC AUC"), f"{value:.4f}")
    table.add_row("ROC AUC of the departure delay alone", f"{gain.baseline:.4f}")
    table.add_row("gain, 95% interval", f"{gain.gain:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
    table.add_row("beats it beyond chance", "yes" if gain.convincing else "no")
    return table
