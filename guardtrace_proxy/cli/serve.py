"""``guardtrace serve``: the reverse proxy."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import load_config
from guardtrace_proxy.telemetry.logs import configure_logging

SHUTDOWN_SECONDS = 30
IDLE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which load balancers close theirs, so that none
sends a request into a connection that is just being closed."""
YOUNG_OBJECTS = 100_000
"""How many new objects start the cycle collector. Held events live on as Python objects: at its default of 700 it walks
them over and over, which took a fifth of the CPU time."""


def serve(
    config: Annotated[Path, typer.Option(help="The settings.", exists=True, dir_okay=False)] = Path("guardtrace.yaml"),
    host: Annotated[str | None, typer.Option(help="In place of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="In place of server.port.", min=0, max=65535)] = None,
    metrics_port: Annotated[int | None, typer.Option(help="In place of metrics.port.", min=0, max=65535)] = None,
) -> None:
    """Serve the proxy until it is told to stop."""
    try:
        settings = load_config(config, os.environ)
        configure_logging(settings.logging.format, settings.logging.level)
        if metrics_port is not None:
            settings = replace(settings, metrics=settings.metrics.model_copy(update={"port": metrics_port}))
        app = GuardTraceApp(settings)
    except (ConfigError, AuditorSettingsError) as error:
        fail(error, 2)
    server = uvicorn.Server(
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
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    # uvicorn raises the signal again that ended it, once every reply has ended: that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.freeze()  # what is loaded now stays
    gc.set_threshold(YOUNG_OBJECTS)
    with suppress(KeyboardInterrupt, SystemExit):
        server.run()
    if not server.started:
        fail(f"The server didn't start: {app.startup_error or 'the log says why'}", 2)
