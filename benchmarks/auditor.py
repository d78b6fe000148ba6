"""A guard model's server that answers at once, always 0, in the published form: ``python -m benchmarks.auditor PORT``.

``GET /count`` tells how many audits it has answered, ``GET /spent`` the nanoseconds that it took for all of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from benchmarks.raw_http import reply, serve
from guardtrace_proxy.auditor.seen_text import OPENING

MESSAGE = {"role": "assistant", "content": "“Analysis”: A plain sum about a timetable.\n“Judgment”: 0"}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "guard",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 900, "completion_tokens": 20, "total_tokens": 920},
}

TRIAL = OPENING.encode()
"""At its start the proxy tries whether all of a long prompt is read."""


def main() -> None:
    verdict = reply(json.dumps(COMPLETION).encode())
    trial = reply(json.dumps({**COMPLETION, "usage": {"prompt_tokens": 8192}}).encode())
    audits = spent = 0

    def answer(transport: asyncio.Transport, path: str, body: bytes) -> None:
        nonlocal audits, spent
        if path in ("/count", "/spent"):
            transport.write(reply(str(audits if path == "/count" else spent).encode()))
            return
        if TRIAL in body:
            transport.write(trial)
            return
        began = time.monotonic_ns()
        audits += 1
        transport.write(verdict)
        spent += time.monotonic_ns() - began

    serve(answer, int(sys.argv[1]))


if __name__ == "__main__":
    main()
