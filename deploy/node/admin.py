"""Envoy's admin socket: what is active, what is in flight, and the two calls that drain it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from deploy.node.envoy import EDGE
from deploy.node.peers import PEER
from deploy.node.tls import TRUST


class Admin:
    def __init__(self, socket: Path) -> None:
        # limit 0: as many connections as callers; a scrape must never wait for a drain's poll.
        self._client = aiohttp.ClientSession(
            "http://envoy",
            connector=aiohttp.UnixConnector(str(socket), limit=0),
            timeout=aiohttp.ClientTimeout(total=10),
        )

    async def close(self) -> None:
        await self._client.close()

    async def live(self) -> bool:
        """Whether Envoy listens for clients."""
        try:
            async with self._client.get("/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def wait_until_live(self) -> None:
        """Return once it is. The caller watches the process and the clock."""
        while not await self.live():
            await asyncio.sleep(0.05)

    async def active_clusters(self) -> set[str]:
        """Names of the dynamic clusters that requests can go to now."""
        dump = await self._dump("dynamic_active_clusters")
        return {config["cluster"]["name"] for config in dump}

    async def active_routes(self) -> str:
        """Version of the routes in force; empty before the first."""
        dump = await self._dump("dynamic_route_configs")
        return next((str(config["version_info"]) for config in dump), "")

    async def active_secret(self) -> str:
        """Version of the certificate in force; empty before the first."""
        # Not from the dump, which has the version of one that was refused.
        return await self._version("sds.server")

    async def active_trust(self) -> str:
        """Version in force of what other nodes' certificates must be; empty while none of them is asked."""
        return await self._version(f"sds.{TRUST}")

    async def active_filter(self, name: str) -> str:
        """Version in force of a filter that is a file of its own; empty before the first."""
        return await self._version(f"extension_config_discovery.http_filter.{name}")

    async def gauge(self, name: str) -> int:
        """The value of one statistic, 0 where it does not exist."""
        async with self._client.get("/stats", params={"format": "json", "filter": f"^{name}$"}) as response:
            found = [entry["value"] for entry in (await response.json())["stats"] if entry.get("name") == name]
        return int(found[0]) if found else 0

    async def in_flight(self) -> int:
        """Requests that clients, and other nodes, wait for."""
        return sum([await self.gauge(f"http.{name}.downstream_rq_active") for name in (EDGE, PEER)])

    async def connections(self) -> int:
        """Clients' open connections."""
        return await self.gauge(f"http.{EDGE}.downstream_cx_active")

    async def prometheus(self, pattern: str) -> str:
        """Statistics whose name matches `pattern`, in Prometheus' text format."""
        async with self._client.get("/stats/prometheus", params={"filter": pattern}) as response:
            return await response.text()

    async def tell_clients_to_reconnect(self) -> None:
        """From now on every answer says `Connection: close` or GOAWAY; the listener stays open."""
        await self._post("/healthcheck/fail")

    async def close_peer_listener(self) -> None:
        """Other nodes are not taken any more; those that are connected are answered."""
        await self._post("/drain_listeners?inboundonly")

    async def close_listeners(self) -> None:
        """Accept no more connections; those that are open go on."""
        await self._post("/drain_listeners")

    async def reopen_logs(self) -> None:
        """Go on in a new file where the access log was."""
        await self._post("/reopen_logs")

    async def _version(self, subscription: str) -> str:
        name = f"{subscription}.version_text"
        async with self._client.get("/stats", params={"format": "json", "filter": f"^{name}$"}) as response:
            found = [entry["value"] for entry in (await response.json())["stats"] if entry.get("name") == name]
        return str(found[0]) if found else ""

    async def _post(self, path: str) -> None:
        async with self._client.post(path) as response:
            response.raise_for_status()

    async def _dump(self, resource: str) -> list[dict[str, Any]]:
        async with self._client.get("/config_dump", params={"resource": resource}) as response:
            if response.status != 200:
                return []
            document = json.loads(await response.read())
        configs: list[dict[str, Any]] = document.get("configs", [])
        return configs
