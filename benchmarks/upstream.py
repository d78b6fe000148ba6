"""A thinking model's server that follows the script: ``python -m benchmarks.upstream PORT TOKENS steps|flood``.

``steps``: like a batching engine it makes one token for every running stream, writes each by itself, and makes the
next step as soon as the proxy has gone to sleep, that is, has dealt with the last. So every proxy gets its events one
a read, however fast or slow it is. ``flood``: it doesn't wait, and a slow proxy finds many events in one read.

``GET /pace/RATE/TOKENS`` makes it write each stream by itself from then on, TOKENS long at RATE a second; each token
says when it was sent (`benchmarks/stamps.py`). RATE 0 brings the steps back.

``GET /watch/PID`` names the proxy's process. A step begins when as many streams run as ``GET /streams/N`` said.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.raw_http import reply, serve
from benchmarks.script import HEAD, events, http_chunk, thinking_tokens, token_event
from benchmarks.stamps import stamp

LAST_CHUNK = b"0\r\n\r\n"
NAP_SECONDS = 0.00005
"""Between two looks at the proxy, so that looking doesn't take the core that it runs on."""
STEP_SECONDS = 5.0
"""A proxy that is busy for so long with one step is stuck: go on, and let the load find out."""


class Engine:
    """Streams begin together and end together."""

    def __init__(self, tokens: int, waits: bool) -> None:
        self._script = [http_chunk(event) for event in events(tokens)]
        self._waits = waits
        self._streams = 1
        self._watched: Path | None = None
        self._ready: list[asyncio.Transport] = []
        self._running: set[asyncio.Task[None]] = set()
        self._rate = 0.0
        self._paced_tokens = 0

    def answer(self, transport: asyncio.Transport, path: str, body: bytes) -> None:
        command, _, value = path.strip("/").partition("/")
        if command == "watch":
            self._watched = Path(f"/proc/{value}/stat")
            transport.write(reply(b"{}"))
        elif command == "streams":
            self._streams = int(value)
            transport.write(reply(b"{}"))
        elif command == "pace":
            rate, _, tokens = value.partition("/")
            self._rate, self._paced_tokens = float(rate), int(tokens)
            transport.write(reply(b"{}"))
            self._ready.clear()
        elif not path.endswith("/chat/completions"):
            transport.write(reply(b"{}"))
        elif self._rate:
            transport.write(HEAD)
            self._keep(self._pace(transport))
        else:
            self._begin(transport)

    def _begin(self, transport: asyncio.Transport) -> None:
        transport.write(HEAD)
        self._ready.append(transport)
        if len(self._ready) == self._streams:
            batch, self._ready = self._ready, []
            self._keep(self._run(batch))

    def _keep(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _pace(self, transport: asyncio.Transport) -> None:
        tokens, seconds = self._paced_tokens, 1 / self._rate
        thinking = thinking_tokens(tokens)
        first, finish, done = self._script[0], *self._script[-2:]
        transport.write(first)
        due = time.monotonic() + seconds * random.random()  # streams don't march in step
        for position in range(tokens):
            due += seconds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            transport.write(http_chunk(token_event(stamp(time.monotonic_ns()), position < thinking)))
        transport.write(finish + done + LAST_CHUNK)

    async def _run(self, batch: list[asyncio.Transport]) -> None:
        for piece in [*self._script, LAST_CHUNK]:
            for transport in batch:
                transport.write(piece)
            await self._until_taken()

    def _until_taken(self) -> Awaitable[None]:
        deadline = time.monotonic() + STEP_SECONDS
        while self._waits and self._watched is not None and time.monotonic() < deadline:
            time.sleep(NAP_SECONDS)
            if _sleeps(self._watched):
                break
        return asyncio.sleep(0)


def _sleeps(stat: Path) -> bool:
    """Whether the process waits for something: proc(5), the field after the name in parentheses."""
    return stat.read_bytes().rpartition(b") ")[2].startswith(b"S")


def main() -> None:
    port, tokens, mode = sys.argv[1:]
    serve(Engine(int(tokens), mode == "steps").answer, int(port))


if __name__ == "__main__":
    main()
