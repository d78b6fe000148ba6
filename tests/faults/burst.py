"""Many streams at once over bare sockets, and how each ended. What no verdict allowed is looked for in every byte."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.faults.peer import DONE, MARKER
from tests.faults.rig import LONGEST_SECONDS, Rig

REFUSED = {429: "rate_limit_exceeded", 503: "overloaded"}
"""Both with `retry-after`."""
FILES_BESIDE = 500
"""What a proxy has open beside two connections a stream: the auditor's, the log, the loop's own."""


def allow_open_files(needed: int) -> None:
    """Of this process and of those that it starts; skips where the machine doesn't."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} open files (ulimit -Hn)")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def ask_all(running: Rig, models: Sequence[str], keys: Sequence[str] = ("",)) -> Counter[str]:
    """A stream of each model, all at once, the keys in turn; how many ended how."""
    port = int(running.proxy.url.rpartition(":")[2])
    asking = (one(port, model, len(models), keys[number % len(keys)]) for number, model in enumerate(models))
    return Counter(await asyncio.gather(*asking))


async def one(port: int, model: str, streams: int, key: str = "") -> str:
    """How one stream of so many ended."""
    content = {"model": model, "messages": [{"role": "user", "content": "Please help."}], "stream": True}
    body = json.dumps(content).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    head += f"authorization: Bearer {key}\r\n" if key else ""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"\r\n" + body)
    # Many at once take their time on few cores; a stream that hangs takes for ever.
    data = await asyncio.wait_for(reader.read(), LONGEST_SECONDS + streams / 10)
    writer.close()
    assert MARKER.encode() not in data, "a marker leaked"
    status = int(data.split()[1])
    if status in REFUSED:
        assert f'"{REFUSED[status]}"'.encode() in data
        assert b"\r\nretry-after: " in data.partition(b"\r\n\r\n")[0]
        return REFUSED[status]
    if DONE in data:
        return "cut" if b"content_filter" in data else "fine"
    return "upstream_timeout" if b'"upstream_timeout"' in data else "upstream_error"
