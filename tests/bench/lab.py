"""What the bench keeps between runs, all below one directory: a registry of its own, the models, their archives."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.programs import environment, programs
from deploy.settings import Settings
from model_store.mlflow_environment import ENVIRONMENT
from model_store.signing import create_key
from tests.bench import servers
from tests.bench.servers import Packaged
from tests.stacks import free_stack_ports


@dataclass(frozen=True)
class Lab:
    """A running MLflow, and the keys and archives that belong to it."""

    settings: Settings
    console: Console

    def packaged(self, model: str, train: "Callable[[Lab], object]", *options: str) -> Packaged:
        """The first version of `model`, trained if there is none, packaged with these options of `shipway package`."""
        from model_store.errors import VersionNotFound
        from model_store.registry import Registry

        try:
            Registry(self.settings.mlflow_uri).resolve(f"models:/{model}/1")
        except VersionNotFound:
            self.console.print(f"Making the model {model}, which is kept")
            train(self)
        said = self.shipway("package", f"models:/{model}/1", *options)
        path, digest = said.splitlines()[-2:]
        return Packaged(model, 1, digest, Path(path), self.settings.trust_dir)

    def shipway(self, *words: str) -> str:
        """What a command of the command line printed, which a person sees too.

        Raises subprocess.CalledProcessError; the command has said why.
        """
        self.console.print(f"[bold]shipway {' '.join(words)}")
        command = [str(Path(sys.executable).with_name("shipway")), *words]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SHIPWAY_")}
        given = {**inherited, **self.settings.as_environment()}
        lines = []
        # Line by line, because a training takes minutes.
        with subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                self.console.out(line, end="", highlight=False)
                lines.append(line)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return "".join(lines)


@contextmanager
def open_lab(directory: Path, console: Console) -> Iterator[Lab]:
    """The bench's registry in `directory`, for as long as it is needed."""
    os.environ.update(ENVIRONMENT)  # before mlflow is imported, here and in what is started
    settings = Settings.model_validate({"state_dir": directory, **free_stack_ports()})
    settings.mlflow_dir.mkdir(parents=True, exist_ok=True)
    if not settings.signing_key.exists():
        create_key(settings.signing_key, settings.trust_dir)
    mlflow = next(program for program in programs(settings) if program.name == "mlflow")
    probe = b"GET /health HTTP/1.1\r\nhost: bench\r\n\r\n"
    with servers.running("MLflow", list(mlflow.command), directory, environment(settings), settings.mlflow_port, probe):
        yield Lab(settings, console)


def log_as_users_do(lab: Lab, model: str, network: Any, example: Any, output: Any) -> None:
    """Log a network to MLflow with a signature of tensors, and register it: no file of ours, no code."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(lab.settings.mlflow_uri)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(example.dtype), (-1, *example.shape[1:]), "input")]),
        outputs=Schema([TensorSpec(np.dtype(output.dtype), (-1, *output.shape[1:]), "output")]),
    )
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            network,
            name=model,
            input_example=example,
            signature=signature,
            serialization_format="pt2",
            pip_requirements=["torch"],
            registered_model_name=model,
        )
