"""A scripted server of chat completions, on a real socket in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

DIALECTS: dict[str, Callable[[str, str], dict[str, str]]] = {
    "reasoning": lambda thinking, answer: {"reasoning": thinking, "content": answer},
    "reasoning_content": lambda thinking, answer: {"reasoning_content": thinking, "content": answer},
    "think": lambda thinking, answer: {"content": f"<think>{thinking}</think>\n\n{answer}"},
    "kimi": lambda thinking, answer: {"content": f"◁think▷{thinking}◁/think▷{answer}"},
    "glm": lambda thinking, answer: {"content": f"<think>{thinking}</think><answer>{answer}</answer>"},
    "closed only": lambda thinking, answer: {"content": f"{thinking}\n</think>\n\n{answer}"},
}


@dataclass
class Said:
    """One reply. ``status`` other than 200 sends ``error``; ``raw`` is sent as it is instead of all."""

    answer: str = "Yes."
    thinking: str = ""
    dialect: str = "reasoning"
    finish: str = "stop"
    status: int = 200
    error: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    raw_type: str = "text/event-stream"
    wait: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, str]:
        return DIALECTS[self.dialect](self.thinking, self.answer)

    def whole(self) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", **self.fields}, "finish_reason": self.finish}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return {"id": "c", "object": "chat.completion", "choices": [choice | self.extra], "usage": usage}

    def events(self) -> list[dict[str, Any]]:
        """In pieces of three characters, so that tags are torn."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for name, text in self.fields.items():
            deltas += [{name: text[start : start + 3]} for start in range(0, len(text), 3)]
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": self.finish} | self.extra)
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        return [{"id": "c", "choices": [choice]} for choice in choices] + [{"id": "c", "choices": [], "usage": usage}]


Script = Callable[[dict[str, Any], int], Said]


class Scripted:
    """``script`` gets each request's body and how many came before it. ``bodies`` keeps them all."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.base_url = ""
        self.busy = 0
        self.busiest = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def endpoint(self, name: str = "m", **fields: Any) -> dict[str, Any]:
        """Settings of an endpoint that is served here; ``model`` is its name."""
        return {"name": name, "base_url": self.base_url, "model": name, "attempts": 1, **fields}

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        number = len(self.bodies)
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            return await self._say(request, body, self.script(body, number))
        finally:
            self.busy -= 1

    async def _say(self, request: web.Request, body: dict[str, Any], said: Said) -> web.StreamResponse:
        if said.wait:
            await asyncio.sleep(said.wait)
        if said.status != 200:
            return web.Response(status=said.status, text=said.error, headers=said.headers)
        if said.raw is not None:
            return web.Response(body=said.raw, content_type=said.raw_type)
        if not body.get("stream"):
            return web.json_response(said.whole())
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in said.events():
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response
