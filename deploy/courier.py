"""`shipway courier`: alerts into the ledgers, and copies of the ledgers to MLflow and Grafana. No rollout waits for it.

Copying is done by `shipway deliver`, a process of its own that is started when there is something to copy: mlflow takes
100 MB, and most of the time nothing is to be done. A place that is down is asked again after a pause that grows.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from deploy.errors import AlertsRefused, ShipwayError
from deploy.node.desired import read_desired
from deploy.node.user_files import read_private
from deploy.rollout import alerts
from deploy.rollout.copies import PlaceName, places, waiting
from deploy.settings import Settings
from model_store.files import write_atomically

logger = logging.getLogger(__name__)

LARGEST_MESSAGE_BYTES = 2**20
LOOK_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 60.0
DELIVERY_SECONDS = 600.0
"""The longest that one delivery may take; what it has copied by then stays copied."""


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT. Raises EdgeFileInvalid for a token that others can read."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(settings, _token(settings.courier_token)))


async def _run(settings: Settings, token: str) -> None:
    runner = web.AppRunner(app(settings, token), access_log=None)
    await runner.setup()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await web.TCPSite(runner, "127.0.0.1", settings.courier_port).start()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_deliver(settings, name)) for name in places(settings)]
            await stopped.wait()
            for task in tasks:
                task.cancel()
    finally:
        await runner.cleanup()


def app(settings: Settings, token: str) -> web.Application:
    """POST /alerts for Alertmanager, with the token; GET /livez for whoever supervises."""

    async def receive(request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return web.Response(status=401, text=f"the token of {settings.courier_token} is wanted as a bearer token\n")
        try:
            noted = await asyncio.to_thread(_note, settings, await request.read())
        except AlertsRefused as error:
            return web.Response(status=400, text=f"{error}\n")
        except ShipwayError as error:
            logger.error("%s", error)
            return web.Response(status=503, text=f"{error}\n")  # Alertmanager sends it again
        return web.json_response(asdict(noted))

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="live\n")

    made = web.Application(client_max_size=LARGEST_MESSAGE_BYTES)
    made.router.add_post("/alerts", receive)
    made.router.add_get("/livez", livez)
    return made


def _note(settings: Settings, body: bytes) -> alerts.Noted:
    served = {endpoint.model for endpoint in read_desired(settings.desired_file).endpoints}
    return alerts.note(settings.rollouts_dir, body, served, time.time())


async def _deliver(settings: Settings, name: PlaceName) -> None:
    """Keep one place up to date."""
    pause = 0.0
    while True:
        failed = await asyncio.to_thread(waiting, settings.rollouts_dir, name) and await _command(name) != 0
        pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if failed else 0.0
        await asyncio.sleep(max(pause, LOOK_SECONDS))


async def _command(name: PlaceName) -> int:
    """Run `shipway deliver`, whose words go where ours go; its exit code."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "deploy.cli", "deliver", "--to", name)
    try:
        return await asyncio.wait_for(process.wait(), DELIVERY_SECONDS)
    except TimeoutError:
        logger.error("the delivery to %s was ended after %g s", name, DELIVERY_SECONDS)
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _token(path: Path) -> str:
    if not path.exists():
        write_atomically(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    return read_private(path).strip()
