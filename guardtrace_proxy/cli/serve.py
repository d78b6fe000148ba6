"""``guardtrace serve``: the reverse proxy."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn

from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import load_config
from guardtrace_proxy.telemetry.logs import configure_logging

log = structlog.get_logger("guardtrace")

LAST_SECONDS = 5
"""What replies have to end once ``server.drain_ms`` is over: the text that is held is judged first."""
IDLE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which load balancers close theirs, so that none
sends a request into a connection that is just being closed."""
YOUNG_OBJECTS = 100_000
"""How many new objects start the cycle collector. Held events live on as Python objects: at its default of 700 it walks
them over and over, which took a fifth of the CPU time."""


class DrainingServer(uvicorn.Server):
    """Lets replies go on for ``seconds`` once it was told to stop; then it ends them."""

    def __init__(self, config: uvicorn.Config, app: GuardTraceApp, seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("shutting down", running=self._app.service.shedding.running, seconds=self._seconds)
        timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        await super().shutdown(sockets)
        timer.cancel()

    def _end(self) -> None:
        log.warning("ended replies that still ran", replies=self._app.service.drain.end())


def serve(
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
    host: Annotated[str | None, typer.Option(help="In place of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="In place of server.port.", min=0, max=65535)] = None,
) -> None:
    """Serve the proxy until it is told to stop."""
    try:
        settings = load_config(config, os.environ)
        configure_logging(settings.logging.format, settings.logging.level)
        app = GuardTraceApp(settings, file=config)
    except (ConfigError, AuditorSettingsError) as error:
        fail(error, 2)
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.server.host if host is None else host,
            port=settings.server.port if port is None else port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            lifespan="on",
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.server.drain_ms / 1000) + LAST_SECONDS,
        ),
        app,
        settings.server.drain_ms / 1000,
    )
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is heard
    # uvicorn raises the signal again that ended it, once every reply has ended: that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.freeze()  # what is loaded now stays
    gc.set_threshold(YOUNG_OBJECTS)
    with suppress(KeyboardInterrupt, SystemExit):
        server.run()
    if not server.started:
        fail(f"The server didn't start: {app.startup_error or 'the log says why'}", 2)
