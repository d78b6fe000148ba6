"""``guardtrace serve``: the reverse proxy."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn

from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.cli.problems import fail
from guardtrace_proxy.cli.workers import DID_NOT_START, Workers
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import Config, load_config
from guardtrace_proxy.server.http1 import Http1Protocol, http_settings
from guardtrace_proxy.server.reload import SettingsFiles
from guardtrace_proxy.server.service import CLOSE_SECONDS
from guardtrace_proxy.telemetry.logs import configure_logging

log = structlog.get_logger("guardtrace")

LAST_SECONDS = 5
"""What replies have to end once ``server.drain_ms`` is over: the text that is held is judged first."""
IDLE_SECONDS = 75
"""How long a connection without a request stays open: longer than the 60 s after which load balancers close theirs, so
that none sends a request into a connection that is just being closed."""
FILES_BESIDE = 256
"""Open files that aren't a client's or its upstream's: the auditor's connections, those for images, logs."""
LAST_PORT = 65_535
YOUNG_OBJECTS = 100_000
"""How many new objects start the cycle collector. Held events live on as Python objects: at its default of 700 it walks
them over and over, which took a fifth of the CPU time."""


class DrainingServer(uvicorn.Server):
    """Lets replies go on for ``seconds`` once it was told to stop; then it ends them."""

    def __init__(self, config: uvicorn.Config, app: GuardTraceApp, seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._seconds = seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
            self._say_where(sockets or ())
        except OSError:  # it was bound before, but is listened at only now; uvloop doesn't raise, but closes it
            self._app.startup_error = "another process has begun to listen on its port"
            self.started, self.should_exit = False, True
            await self.lifespan.shutdown()

    def _say_where(self, sockets: Sequence[socket.socket]) -> None:
        metrics = self._app.service.metrics_listener
        also = {} if metrics is None else {"metrics_host": metrics.host, "metrics_port": metrics.port}
        for listener in sockets:
            host, port = listener.getsockname()[:2]
            log.info("serving", host=host, port=port, **also)

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
    metrics_port: Annotated[
        int | None, typer.Option(help="In place of metrics.port; workers have the ports from it on.", min=0, max=65535)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port.", min=1, max=256)] = 1,
) -> None:
    """Serve the proxy until it is told to stop."""
    try:
        settings = load_config(config, os.environ)
        files = SettingsFiles(config, settings, os.environ, load_config)
    except (ConfigError, OSError) as error:
        fail(error, 2)
    configure_logging(settings.logging.format, settings.logging.level)
    in_process = [key for key, guard in settings.auditor.guards.items() if guard.backend != "openai"]
    if workers > 1 and in_process:
        fail(f"{in_process[0]}.backend: each worker would load the auditor; serve it (`guardtrace auditor serve`)", 2)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is heard
    most_connections = _most_connections()
    listener = _listen(host or settings.server.host, settings.server.port if port is None else port, settings)
    metrics_port = settings.metrics.port if metrics_port is None else metrics_port
    _check_metrics_ports(metrics_port, workers, listener.getsockname()[1])
    gc.freeze()  # what is loaded now stays
    gc.set_threshold(YOUNG_OBJECTS)

    def work(worker: int) -> int:
        own_metrics_port = metrics_port + worker if metrics_port else metrics_port
        return _serve(files, listener, own_metrics_port, most_connections)

    if workers == 1:
        sys.exit(work(0))
    stop_seconds = settings.server.drain_ms / 1000 + LAST_SECONDS + 4 * CLOSE_SECONDS
    sys.exit(Workers(workers, work, stop_seconds, files.refresh, listener.close).run())


def _most_connections() -> int:
    """Of clients, so that each may have one to the upstream and audits go on. The process takes as many open files as
    the system lets it have: many begin with 1,024."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource  # here, since Windows has none

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some say "unlimited" and refuse it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files - FILES_BESIDE, files // 2) // 2


def _listen(host: str, port: int, settings: Config) -> socket.socket:
    """The socket that all workers accept on."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Of a client that takes nothing only the kernel can drop what waits for it. Accepted sockets inherit this.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2 * settings.server.client_timeout_ms)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # of a name with an empty label, as 127.0..1
        why = getattr(error, "strerror", None) or str(error)
        fail(f"The server can't listen on {host}:{port}: {why.lower()}", 2)
    return listener


def _check_metrics_ports(first: int | None, workers: int, port: int) -> None:
    """Each worker has one, none of them where tenants ask: both could be bound, and neither side would say so."""
    if not first:
        return
    last = first + workers - 1
    if last > LAST_PORT:
        fail(
            f"metrics.port: {workers} workers would need {first} to {last}: choose one up to {LAST_PORT - workers + 1}",
            2,
        )
    if first <= port <= last:
        fail(f"metrics.port: {port} is where tenants ask, and metrics are read on {first} to {last}: choose others", 2)


def _serve(files: SettingsFiles, listener: socket.socket, metrics_port: int | None, most_connections: int) -> int:
    """Serve to the end; the exit status."""
    settings = files.config
    try:
        app = GuardTraceApp(settings, files=files, metrics_port=metrics_port)
    except AuditorSettingsError as error:
        return _did_not_start(str(error))
    server = DrainingServer(
        http_settings(
            app,
            http=partial(Http1Protocol, head_seconds=settings.server.client_timeout_ms / 1000, most=most_connections),
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.server.drain_ms / 1000) + LAST_SECONDS,
        ),
        app,
        settings.server.drain_ms / 1000,
    )
    # uvicorn raises the signal again that ended it, once every reply has ended: that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt, SystemExit):
        server.run([listener])
    return 0 if server.started else _did_not_start(app.startup_error or "the log says why")


def _did_not_start(why: str) -> int:
    typer.echo(f"The server didn't start: {why}", err=True)
    return DID_NOT_START
