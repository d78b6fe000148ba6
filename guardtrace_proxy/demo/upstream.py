"""A small OpenAI-compatible upstream that replays traces at a human pace, in vLLM's wire format.

It knows a trace by its name, which the request's ``model`` carries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import msgspec

from guardtrace_proxy.demo.traces import DemoTrace, pieces, tokens_in
from guardtrace_proxy.server.asgi_io import Receive, Scope, Send, read_body, respond_json

MAX_BODY_BYTES = 64 * 1024 * 1024


class ReplayUpstream:
    """``pace`` is in tokens a second; 0 sends as fast as the client reads.

    ``connections_closed`` counts the streams whose client left before their end.
    """

    def __init__(self, traces: Sequence[DemoTrace], pace: float) -> None:
        self._traces = {trace.name: trace for trace in traces}
        self._pace = pace
        self.connections_closed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "replay"} for name in self._traces]
            await respond_json(send, 200, {"object": "list", "data": models})
            return
        body = await read_body(scope, receive, MAX_BODY_BYTES)
        try:
            request = msgspec.json.decode(body, type=dict[str, Any])
        except msgspec.MsgspecError:
            error = {"message": "The body is no JSON object.", "type": "BadRequestError", "param": None, "code": 400}
            await respond_json(send, 400, {"error": error})
            return
        trace = self._traces.get(str(request.get("model")))
        if trace is None or scope["path"] != "/v1/chat/completions":
            error = {"message": "No such trace.", "type": "NotFoundError", "param": "model", "code": 404}
            await respond_json(send, 404, {"error": error})
        elif request.get("stream"):
            await self._stream(trace, receive, send)
        else:
            await respond_json(send, 200, _completion(trace))

    async def _stream(self, trace: DemoTrace, receive: Receive, send: Send) -> None:
        ended = False
        async with anyio.create_task_group() as tasks:

            async def leave_with_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if not ended:
                    self.connections_closed += 1
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave_with_client)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for delta in _deltas(trace):
                await send({"type": "http.response.body", "body": _chunk(trace, delta), "more_body": True})
                await self._pause(delta)
            last = _chunk(trace, {}, "stop") + b"data: [DONE]\n\n"
            ended = True
            await send({"type": "http.response.body", "body": last})
            tasks.cancel_scope.cancel()

    async def _pause(self, delta: dict[str, str]) -> None:
        text = delta.get("reasoning") or delta.get("content") or ""
        await anyio.sleep(tokens_in(text) / self._pace if self._pace and text else 0)


def _deltas(trace: DemoTrace) -> Iterator[dict[str, str]]:
    yield {"role": "assistant", "content": ""}
    if trace.raw is not None:
        yield from ({"content": piece} for piece in pieces(trace.raw))
        return
    yield from ({"reasoning": piece} for piece in pieces(trace.thinking))
    yield from ({"content": piece} for piece in pieces(trace.answer))


def _chunk(trace: DemoTrace, delta: dict[str, str], finish: str | None = None) -> bytes:
    chunk = {
        "id": f"chatcmpl-{trace.name}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": trace.name,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _completion(trace: DemoTrace) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": trace.raw or trace.answer}
    if trace.raw is None:
        message["reasoning"] = trace.thinking
    return {
        "id": f"chatcmpl-{trace.name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": trace.name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
