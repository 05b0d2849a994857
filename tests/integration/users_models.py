"""What users log to MLflow, as MLflow's documentation does it: run by itself, with the address of the server.

It registers `plain`, `weighted` and its copy `copied`, which can be packaged; two copies whose names no node can serve;
and four that say too little.
"""

import sys
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import torch
from mlflow.data.numpy_dataset import from_numpy
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema, TensorSpec
from torch import nn

COMMIT = "0123abc"


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(features)
        return scores


class Weighted(nn.Module):
    def forward(self, values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (values * weights).sum(1), weights > 0


def log_plain(model: str, inputs: npt.NDArray[np.float32], **changes: Any) -> None:
    """Without a run."""
    signature = infer_signature(inputs, np.zeros((len(inputs), 3), np.float32))
    given = {"input_example": inputs, "signature": signature, "pip_requirements": ["torch"], **changes}
    mlflow.pytorch.log_model(Plain().eval(), name="model", registered_model_name=model, **given)


def log_weighted() -> None:
    """In a run that knows its data; MLflow keeps no example of several inputs, nor of torch's own tensors."""
    values, weights = np.full((3, 2), 2, np.float32), np.arange(6, dtype=np.int64).reshape(3, 2)
    signature = ModelSignature(
        Schema([TensorSpec(values.dtype, (-1, 2), "values"), TensorSpec(weights.dtype, (-1, 2), "weights")]),
        Schema([TensorSpec(values.dtype, (-1,), "total"), TensorSpec(np.dtype(np.bool_), (-1, 2), "positive")]),
    )
    with mlflow.start_run():
        mlflow.log_input(from_numpy(values, name="hand-made"))
        mlflow.set_tag("mlflow.source.git.commit", COMMIT)
        mlflow.pytorch.log_model(
            Weighted(),
            name="model",
            registered_model_name="weighted",
            input_example=(torch.from_numpy(values), torch.from_numpy(weights)),
            signature=signature,
            pip_requirements=["torch==2.13.0"],
        )
    for copy in ("copied", "a name", "odd-explainer"):
        mlflow.MlflowClient().copy_model_version("models:/weighted/1", copy)


def main(tracking_uri: str) -> None:
    mlflow.set_tracking_uri(tracking_uri)
    random = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    columns = Schema([ColSpec("double", "a")])
    log_plain("plain", random)
    log_weighted()
    log_plain("unsigned", random, signature=False, serialization_format="pickle")
    log_plain("columns", random, signature=ModelSignature(columns, columns), serialization_format="pickle")
    log_plain("pickled", random, serialization_format="pickle")
    log_plain("lonely", random[:1])


if __name__ == "__main__":
    main(sys.argv[1])
