"""Runs ASGI apps on free loopback ports, in a thread of their own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from guardtrace_proxy.server.http1 import http_settings

START_SECONDS = 120.0


class ServerDidNotStart(Exception):
    """The server ended or hung while it started; its log says why."""


@contextmanager
def served(app: Any, **settings: Any) -> Iterator[str]:
    """Serve ``app`` while the context lasts, by uvicorn's ``settings``; yields its base URL, ``http://127.0.0.1:PORT``."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = http_settings(app, log_level="error", timeout_graceful_shutdown=2, **settings)
        server = uvicorn.Server(config)
        started = threading.Event()
        startup = server.startup

        async def startup_then_tell(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets)
            started.set()

        server.startup = startup_then_tell  # type: ignore[method-assign]

        def run() -> None:
            # uvicorn exits the process where an app doesn't start; here its thread ends.
            with suppress(SystemExit):
                server.run([listener])
            started.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            if not started.wait(START_SECONDS) or not server.started:
                reason = getattr(app, "startup_error", None) or f"it had {START_SECONDS:.0f} s"
                raise ServerDidNotStart(f"{type(app).__name__} didn't start: {reason}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)
