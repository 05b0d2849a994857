"""From data to a registered version: fit, judge, log, and keep what a node will check this version by."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from handlers.program import Program, load_program
from handlers.schema import TableSchema
from model_store import flights
from model_store.fitting import Epoch, Plan, Table, fit
from model_store.golden import ROWS, golden_set
from model_store.metrics import AucGain, Scores, auc_gain
from model_store.network import Cycle, TabularNetwork
from model_store.pt2 import read_program
from model_store.registry import RegisteredVersion, Registry
from monitoring.profile import Profile

LIBRARIES = ("torch", "numpy", "mlflow", "safetensors")
_EXAMPLE_ROWS = 2  # the export makes an axis of length one a constant


@dataclass(frozen=True, eq=False)
class _Data:
    """The flights as this training uses them."""

    schema: TableSchema
    training: Table
    validation: Table
    validation_frame: pd.DataFrame
    digest: str


def train(
    tracking_uri: str,
    *,
    model: str = "flights",
    data_dir: Path | None = None,
    plan: Plan | None = None,
    console: Console | None = None,
) -> RegisteredVersion:
    """Train on the flights of January to April, validate on May, register the result in the MLflow server.

    Raises DataMissing, or RegistryError for a registry that does not answer.
    """
    plan = plan or Plan()
    console = console or Console(quiet=True)
    registry = Registry(tracking_uri)
    data = _read(data_dir, plan, console)
    origin = {
        "git_commit": git_commit(Path(__file__).parent),
        "data_digest": data.digest,
        "libraries": {name: installed_version(name).partition("+")[0] for name in LIBRARIES},
    }
    params = {
        **plan.as_dict(),
        "training_rows": len(data.training.label),
        "validation_rows": len(data.validation.label),
        "data_digest": data.digest,
    }
    with registry.run(model, params, {"git_commit": str(origin["git_commit"])}) as run_id:
        network = _fit(data, plan, registry, run_id, console)
        scores, gain = _judge(network, data, registry, run_id)
        console.print(_report(scores, gain))
        example = (data.training.numbers[:_EXAMPLE_ROWS], data.training.codes[:_EXAMPLE_ROWS])
        outputs = tuple(column.name for column in data.schema.outputs)
        torch_requirement = f"torch=={torch.__version__.partition('+')[0]}"
        model_id = registry.log_model(network, example, outputs, [torch_requirement, f"numpy=={np.__version__}"])
        files = _description(registry, model_id, data)
        registry.log_files(run_id, {**files, "origin.json": json.dumps(origin, indent=1, sort_keys=True).encode()})
        # Last, so that whatever has a version number has everything.
        tags = {"git_commit": str(origin["git_commit"]), "data_digest": data.digest}
        registered = registry.register(model, model_id, run_id, tags)
    console.print(f"Registered {registered.uri} (run {run_id})")
    return registered


def git_commit(directory: Path) -> str:
    """The commit that `directory` is at, with `-dirty` for uncommitted changes; `unknown` outside a checkout."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def _read(data_dir: Path | None, plan: Plan, console: Console) -> _Data:
    with console.status("Reading the flights"):
        data = flights.load(data_dir)
        training, validation = data.rows(*flights.TRAINING_MONTHS), data.rows(*flights.VALIDATION_MONTHS)
        schema = flights.schema_of(training)
        training_table = _encode(training, schema).thinned(plan.max_rows)
        validation_table = _encode(validation, schema).thinned(plan.max_rows)
    console.print(data.dropped)
    console.print(
        f"Training on {len(training_table.label):,} flights of January to April, "
        f"validating on {len(validation_table.label):,} of May"
    )
    return _Data(schema, training_table, validation_table, validation, data.digest)


def _encode(frame: pd.DataFrame, schema: TableSchema) -> Table:
    """Rows as the program takes them, by the encoding that the node uses."""
    numbers = {column.name: frame[column.name].to_numpy() for column in schema.numbers}
    categories = {column.name: frame[column.name].tolist() for column in schema.categories}
    label = np.array(frame[flights.LABEL], dtype=np.bool_)  # a copy: pandas hands out memory that is read-only
    return Table(*schema.encode({**numbers, **categories}), label=label)


def _cycles(schema: TableSchema) -> Sequence[Cycle]:
    names = [column.name for column in schema.numbers]
    return [Cycle(names.index(name), period) for name, period in flights.PERIODS.items()]


def _fit(data: _Data, plan: Plan, registry: Registry, run_id: str, console: Console) -> TabularNetwork:
    """Fit with a progress bar, every epoch logged."""
    bar = Progress(
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=plan.epochs)

        def on_epoch(epoch: Epoch) -> None:
            metrics = {f"validation_{name}": value for name, value in epoch.scores.as_dict().items()}
            metrics |= {"loss": epoch.loss, "validation_loss": epoch.validation_loss}
            registry.log_metrics(run_id, metrics, step=epoch.number)
            words = f"loss {epoch.loss:.4f}, validation {epoch.validation_loss:.4f}, AUC {epoch.scores.roc_auc:.4f}"
            bar.update(task, advance=1, description=words)

        return fit(data.training, data.validation, data.schema, _cycles(data.schema), plan, on_epoch)


def _judge(network: TabularNetwork, data: _Data, registry: Registry, run_id: str) -> tuple[Scores, AucGain]:
    """Score the validation month, against the departure delay alone too, and log it."""
    table = data.validation
    with torch.inference_mode():
        probability = network(torch.from_numpy(table.numbers), torch.from_numpy(table.codes)).numpy()
    delay = table.numbers[:, flights.NUMBERS.index("dep_delay")]
    scores, gain = Scores.of(probability, table.label), auc_gain(probability, delay, table.label)
    comparison = {
        "baseline_roc_auc": gain.baseline,
        "roc_auc_gain": gain.gain,
        "roc_auc_gain_low": gain.low,
        "roc_auc_gain_high": gain.high,
    }
    registry.log_metrics(run_id, {**scores.as_dict(), **comparison})
    return scores, gain


def _report(scores: Scores, gain: AucGain) -> RichTable:
    table = RichTable(title="Validation: flights of May", show_header=False)
    for name, value in scores.as_dict().items():
        table.add_row(name.replace("_", " ").replace("roc auc", "ROC AUC"), f"{value:.4f}")
    table.add_row("ROC AUC of the departure delay alone", f"{gain.baseline:.4f}")
    table.add_row("gain, 95% interval", f"{gain.gain:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
    table.add_row("beats it beyond chance", "yes" if gain.convincing else "no")
    return table


def _description(registry: Registry, model_id: str, data: _Data) -> dict[str, bytes]:
    """Schema, profile and golden set, the outputs by the program as it is stored and as a node will load it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        read_program(registry.download_program(f"models:/{model_id}", directory)).write(directory)
        program = load_program(directory)
    chosen = np.linspace(0, len(data.validation_frame) - 1, ROWS).astype(np.int64)
    columns = flights.to_columns(data.validation_frame.iloc[chosen])
    return {
        "schema.json": data.schema.to_json(),
        "profile.json": _profile(data.schema, data.training, program).to_json(),
        "golden.json": golden_set(columns, data.schema, program),
    }


def _profile(schema: TableSchema, table: Table, program: Program) -> Profile:
    """The training rows as the node would count them."""
    outputs = program(torch.from_numpy(table.numbers), torch.from_numpy(table.codes))
    return Profile.build(
        numbers={column.name: table.numbers[:, index] for index, column in enumerate(schema.numbers)},
        categories={
            column.name: (table.codes[:, index], column.vocabulary) for index, column in enumerate(schema.categories)
        },
        outputs={column.name: output.numpy() for column, output in zip(schema.outputs, outputs, strict=True)},
    )
