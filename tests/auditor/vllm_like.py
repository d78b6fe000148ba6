"""A server that answers as vLLM does, or as one that isn't, with one token a character and probabilities from a table."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

END = 2
IMAGE_TOKENS = 16


@dataclass
class VllmLike:
    """``first`` and ``second`` are the probabilities at the label's place and after ``0``; ``spells`` turns a label into
    its tokens. ``requests`` are the bodies of chat completions."""

    first: dict[str, float] = field(default_factory=lambda: {"0": 0.7, "1": 0.2})
    second: dict[str, float] = field(default_factory=lambda: {".": 0.25, "end": 0.75})
    knows_logprob_token_ids: bool = True
    takes_priority: bool = True
    joins_space: bool = False
    drops_images: bool = False
    counts_images: bool = True
    counts_tokens: bool = True
    context: int = 4096
    keeps: int | None = None
    """Tokens of a prompt that are read, where what is over them is dropped unsaid."""
    is_vllm: bool = True
    pause: float = 0.0
    """Seconds that a chat completion takes."""
    status: int = 200
    is_away: bool = False
    """A gateway answers in its place."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    tokenized: int = 0

    def tokens(self, body: dict[str, Any]) -> list[int]:
        ids: list[int] = []
        for message in body["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            ids.append(1)
            for part in parts:
                text = part.get("text", "")
                ids += map(ord, text.replace(" 0", "\ue000").replace(" 1", "\ue001") if self.joins_space else text)
                if part["type"] == "image_url" and not self.drops_images:
                    ids += [3] * IMAGE_TOKENS
            ids.append(END)
        return ids[:-1] if body.get("continue_final_message") else ids

    async def tokenize(self, request: web.Request) -> web.Response:
        self.tokenized += 1
        if self.is_away or not self.is_vllm:
            return web.json_response({"error": {"message": "no such route"}}, status=404)
        ids = self.tokens(json.loads(await request.read()))
        return web.json_response({"count": len(ids), "max_model_len": self.context, "tokens": ids})

    async def chat(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.requests.append(body)
        await asyncio.sleep(self.pause)
        if self.is_away:
            return web.json_response({"error": {"message": "bad gateway"}}, status=502)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        if body.get("priority") and not self.takes_priority:
            return web.json_response({"error": {"message": "not priority scheduling"}}, status=400)
        if self.keeps is None and len(self.tokens(body)) + body["max_tokens"] > self.context:
            return web.json_response({"error": {"message": "longer than the maximum context length"}}, status=400)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"content": "“Judgment”: 1"}}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": self.positions(body)}
        answer: dict[str, Any] = {"choices": [choice]}
        if self.counts_tokens:
            answer["usage"] = self.usage(body)
        return web.json_response(answer)

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.tokens(body)[: self.keeps]
        images = {"image": ids.count(3)} if ids.count(3) else None
        details = {"cached_tokens": 0, "multimodal_tokens": images} if self.counts_images else None
        return {"prompt_tokens": len(ids), "prompt_tokens_details": details}

    def positions(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        last = body["messages"][-1]["content"]
        tables = [self.second] if last.endswith("0") else [self.first, self.second][: body["max_tokens"]]
        return [self.position(table, body) for table in tables]

    def position(self, table: dict[str, float], body: dict[str, Any]) -> dict[str, Any]:
        by_id = {self.id_of(name): share for name, share in table.items()}
        best = max(by_id, key=lambda token: by_id[token])
        asked = body.get("logprob_token_ids", []) if self.knows_logprob_token_ids else []
        shown = [
            {"token": f"token_id:{token}", "logprob": math.log(by_id.get(token, 0) or 1e-300)}
            for token in [best, *asked]
        ]
        return {**shown[0], "top_logprobs": shown if asked else []}

    def id_of(self, name: str) -> int:
        if name == "end":
            return END
        return {"0": 0xE000, "1": 0xE001}.get(name, ord(name)) if self.joins_space else ord(name)


@asynccontextmanager
async def serving(server: VllmLike) -> AsyncIterator[str]:
    """Yields the URL that ends in ``/v1``."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/tokenize", server.tokenize)
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
