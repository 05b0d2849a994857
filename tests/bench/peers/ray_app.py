"""Ray Serve with its own batching, behind the HAProxy that it starts where RAY_SERVE_ENABLE_HA_PROXY says so."""

import json
import signal
from pathlib import Path

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from task import Task

SETTINGS = json.loads(Path("settings.json").read_bytes())
PACKAGE = Path.cwd()


@serve.deployment(
    num_replicas=SETTINGS["workers"],
    max_ongoing_requests=4 * SETTINGS["batch_size"],
    ray_actor_options={"num_cpus": SETTINGS["threads"]},
    logging_config={"log_level": "ERROR", "enable_access_log": False},
)
class Model:
    def __init__(self) -> None:
        self.task = Task(PACKAGE)

    # Ray is not installed where types are checked.
    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=SETTINGS["batch_size"], batch_wait_timeout_s=SETTINGS["batch_delay_ms"] / 1e3
    )
    async def predict(self, bodies: list[bytes]) -> list[bytes]:
        answers: list[bytes] = self.task.predict(bodies)
        return answers

    async def __call__(self, request: Request) -> Response:
        return Response(await self.predict(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    # The processors it may plan with; those that the operating system lets it use are fewer where there are more.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=SETTINGS["scratch"],
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": SETTINGS["port"], "access_log": False},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(Model.bind(), route_prefix="/predict")  # type: ignore[attr-defined]  # the decorator made a deployment of it
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
