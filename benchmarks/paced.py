"""A model server on uvicorn that writes at a pace: ``python -m benchmarks.paced PORT TOKENS RATE [CONFIG]``.

A bare ASGI app, so that little of its time is its own; with CONFIG the guard stands inside. Each event's ``created``
says when it was sent, in ns of the machine's monotonic clock: a field that is known, and so costs what it always does.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import anyio
import uvicorn

from benchmarks.script import CREATED, DONE, events
from guardtrace_proxy.asgi import GuardTraceMiddleware

STAMP = b'"created":'
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Paced:
    """``rate`` is in tokens a second, of each stream."""

    def __init__(self, tokens: int, rate: float) -> None:
        created = STAMP + str(CREATED).encode()
        self._halves = [event.split(created) for event in events(tokens)[:-1]]
        self._seconds = 1 / rate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        due = time.monotonic()
        for first, second in self._halves:
            due += self._seconds
            await anyio.sleep(max(0.0, due - time.monotonic()))
            event = b"%s%s%d%s" % (first, STAMP, time.monotonic_ns(), second)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": DONE})


def main() -> None:
    port, tokens, rate, *config = sys.argv[1:]
    app: Any = Paced(int(tokens), float(rate))
    if config:
        app = GuardTraceMiddleware(app, config=config[0])
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
