"""The upstream's connections: used again after a whole reply, closed by leaving early; nothing is kept between requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web

from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.upstream import MAX_ERROR_BYTES, Upstream
from guardtrace_proxy.server.upstream_reply import read_bounded
from guardtrace_proxy.wire.tags import ThinkingStyle

ID = {"x-request-id": "a"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def asked(handler: Handler, path: str = "/v1") -> AsyncIterator[Upstream]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    app.router.add_get("/v1/models", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    # A name, not an address: cookie jars ignore addresses anyway.
    upstream = Upstream("default", f"http://localhost:{runner.addresses[0][1]}{path}", None, ThinkingStyle("field"))
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.aclose()
        await runner.cleanup()


def port(request: web.Request) -> int:
    assert request.transport is not None
    return request.transport.get_extra_info("peername")[1]


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1//"])
def test_a_reply_read_to_its_end_gives_its_connection_back(path):
    ports: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        ports.append(port(request))
        return web.json_response({"data": []})

    async def run() -> None:
        async with asked(handler, path) as upstream:
            for _ in range(3):
                async with upstream.ask("/chat/completions", b"{}", ID) as reply:
                    assert await read_bounded(reply, 100) == b'{"data": []}'
            await upstream.models(ID)

    anyio.run(run)
    assert len(ports) == 4
    assert len(set(ports)) == 1


def test_leaving_early_closes_the_connection_at_once():
    ports: list[int] = []

    async def run() -> None:
        gone = asyncio.Event()

        async def endless(request: web.Request) -> web.StreamResponse:
            ports.append(port(request))
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"x")
                    await asyncio.sleep(0.01)
            finally:
                gone.set()

        async with asked(endless) as upstream:
            for _ in range(2):
                async with upstream.ask("/chat/completions", b"{}", ID) as reply:
                    assert await reply.read()
                with anyio.fail_after(2):
                    await gone.wait()
                gone.clear()

    anyio.run(run)
    assert len(set(ports)) == 2


def test_cookies_are_not_kept():
    cookies: list[str | None] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        cookies.append(request.headers.get("cookie"))
        return web.json_response({}, headers={"set-cookie": "seen=1; Path=/"})

    async def run() -> None:
        async with asked(handler) as upstream:
            for _ in range(2):
                await upstream.models(ID)

    anyio.run(run)
    assert cookies == [None, None]


def test_a_refusal_is_read_only_so_far():
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, body=b" " * (MAX_ERROR_BYTES + 1), headers={"retry-after": "7"})

    async def run() -> None:
        async with asked(handler) as upstream:
            with pytest.raises(ApiError, match="without an error object") as caught:
                async with upstream.ask("/chat/completions", b"{}", ID):
                    pass
            assert caught.value.status == 429
            assert caught.value.headers == ((b"retry-after", b"7"),)

    anyio.run(run)


def test_a_reply_that_is_not_http_is_unreachable():
    async def run() -> None:
        async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HARM\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(junk, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            upstream = Upstream("default", url, None, ThinkingStyle("field"))
            await upstream.start()
            with pytest.raises(ApiError) as caught:
                async with upstream.ask("/chat/completions", b"{}", ID):
                    pass
            assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")
            assert "HARM" not in caught.value.message
            await upstream.aclose()

    anyio.run(run)
