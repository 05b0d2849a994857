"""The model `delays`: how many minutes late will a flight that has left the gate arrive? Linear regression."""

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from handlers.schema import NumberColumn, OutputColumn, TableSchema
from model_store import flights, tables
from model_store.profiling import Reference
from model_store.registering import Trained, array_type
from model_store.registry import TensorType

SCHEMA = TableSchema(
    numbers=tuple(NumberColumn(name) for name in flights.NUMBERS if name not in flights.NULLABLE),
    categories=(),
    outputs=(OutputColumn(flights.DELAY),),
)
GOLDEN_ROWS = 128


class LinearRegression(nn.Module):
    """One weight a column and a constant: minutes, float32 [n], from numbers float32 [n, F]."""

    def __init__(self, weights: torch.Tensor, constant: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.constant = nn.Parameter(constant)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """`codes`, int64 [n, 0], are what every table has; there are no categories here."""
        return torch.addmv(self.constant, numbers, self.weights) + codes.sum(1)


def train(console: Console, plan: None = None) -> Trained:
    """Least squares on the flights of January to April, judged on May. There is nothing to plan.

    Raises DataMissing.
    """
    del plan
    with console.status("Reading the flights"):
        data = flights.load()
        training, validation = data.rows(*flights.TRAINING_MONTHS), data.rows(*flights.VALIDATION_MONTHS)
    numbers, codes = SCHEMA.encode({name: training[name].to_numpy() for name in SCHEMA.names})
    network = fitted(numbers, np.array(training[flights.DELAY], np.float64))
    shown = {name: validation[name].to_numpy() for name in SCHEMA.names}
    with torch.inference_mode():
        predicted = network(*map(torch.from_numpy, SCHEMA.encode(shown))).numpy()
    actual = np.array(validation[flights.DELAY])
    metrics = {
        "mean_absolute_error": float(np.abs(predicted - actual).mean()),
        "baseline_mean_absolute_error": float(np.abs(validation["dep_delay"] - actual).mean()),
        "r2": float(1 - ((predicted - actual) ** 2).sum() / ((actual - actual.mean()) ** 2).sum()),
    }
    console.print(_report(metrics))
    chosen = np.linspace(0, len(validation) - 1, GOLDEN_ROWS).astype(np.int64)
    return Trained(
        network=network,
        example=(numbers[:2], codes[:2]),
        inputs=(array_type("numbers", numbers), array_type("codes", codes)),
        outputs=(TensorType(flights.DELAY, "float32", (-1,)),),
        schema=SCHEMA.to_json(),
        golden=tables.golden_inputs(flights.to_columns(validation.iloc[chosen], SCHEMA.names), SCHEMA),
        data_digest=data.digest,
        reference=Reference((numbers, codes), times=training[flights.DEPARTED].to_numpy()),
        metrics=metrics,
        params={"training_rows": len(training), "validation_rows": len(validation)},
    )


def fitted(numbers: tables.Numbers, minutes: npt.NDArray[np.float64]) -> LinearRegression:
    """Least squares of `minutes` [n] on numbers [n, F]."""
    with_constant = np.column_stack((numbers.astype(np.float64), np.ones(len(numbers))))
    solution = torch.from_numpy(np.linalg.lstsq(with_constant, minutes)[0].astype(np.float32))
    return LinearRegression(solution[:-1].clone(), solution[-1].clone()).eval()  # no memory shared, for the export


def _report(metrics: dict[str, float]) -> Table:
    table = Table(title="Validation: flights of May", show_header=False)
    table.add_row("mean absolute error", f"{metrics['mean_absolute_error']:.2f} minutes")
    table.add_row("of the departure delay itself", f"{metrics['baseline_mean_absolute_error']:.2f} minutes")
    table.add_row("R²", f"{metrics['r2']:.4f}")
    return table
