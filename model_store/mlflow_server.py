"""`mlflow server` as one process: `python -m model_store.mlflow_server server OPTIONS`.

MLflow starts its web server as a child and waits for it. A parent that is killed leaves the child, which keeps the port
from whoever is started in its place. Here the one becomes the other instead.
"""

import os
from collections.abc import Mapping
from typing import Any, NoReturn


def become(command: list[str], *, extra_env: Mapping[str, str], **_: Any) -> NoReturn:
    """In place of MLflow's own function that runs a command."""
    os.execvpe(command[0], command, {**os.environ, **extra_env})  # noqa: S606 - MLflow's own list of arguments


def main() -> None:
    import mlflow.server
    from mlflow.cli import cli

    if not hasattr(mlflow.server, "_exec_cmd"):
        raise RuntimeError("this version of MLflow starts its web server in another way; shipway knows that of 3.17.2")
    mlflow.server._exec_cmd = become  # noqa: SLF001 - it has no other place for it
    cli()


if __name__ == "__main__":
    main()
