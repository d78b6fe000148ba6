"""Where Prometheus reads: a listener of its own, so that no tenant's key and no client's route leads there."""

from __future__ import annotations

import anyio.to_thread
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from guardtrace_proxy.telemetry.metrics import Reading

CLOSE_SECONDS = 1.0


class CannotListen(Exception):
    """The address is taken, or isn't this machine's."""


class MetricsListener:
    """Serves ``GET /metrics``, and nothing else, in the event loop that it is started in."""

    def __init__(self, counters: CollectorRegistry, gauges: Collector, host: str, port: int) -> None:
        """``gauges`` are read in the event loop, whose they are; ``counters`` in a thread."""
        self.host = host
        self.port = port
        """Where that was 0, the port that was free; known after ``start``."""
        self._counters = counters
        self._gauges = gauges
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_SECONDS)

    async def start(self) -> None:
        """Listen; raises CannotListen."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except (OSError, UnicodeError) as error:  # of a name with an empty label, as 127.0..1
            await self._runner.cleanup()
            why = getattr(error, "strerror", None) or str(error)
            raise CannotListen(f"metrics: can't listen on {self.host}:{self.port}: {why}") from error
        self.port = int(self._runner.addresses[0][1])

    async def aclose(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        shown = Reading(self._counters, list(self._gauges.collect()))
        # Hundreds of tenants take tens of milliseconds, which the streams wouldn't have.
        body = await anyio.to_thread.run_sync(encode, shown)
        return web.Response(body=body, headers={"content-type": content_type})
