"""The proxy that anyone writes first: Starlette and httpx. ``python -m benchmarks.forwarder PORT UPSTREAM``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route


def make_app(upstream: str) -> Starlette:
    """Forward chat completions to ``upstream``, a base URL ending in ``/v1``."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as app.state.client:
            yield

    async def forward(request: Request) -> StreamingResponse:
        client: httpx.AsyncClient = request.app.state.client
        headers = {"content-type": "application/json"}
        body = await request.body()
        sent = client.build_request("POST", f"{upstream}/chat/completions", content=body, headers=headers)
        response = await client.send(sent, stream=True)
        return StreamingResponse(
            response.aiter_raw(),
            response.status_code,
            media_type=response.headers.get("content-type"),
            background=BackgroundTask(response.aclose),
        )

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)


def main() -> None:
    port, upstream = sys.argv[1:]
    uvicorn.run(
        make_app(upstream),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
