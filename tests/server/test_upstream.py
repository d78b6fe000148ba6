"""The upstream's connections: used again after a whole reply, closed by leaving early; nothing is kept between requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from guardtrace_proxy.outgoing import BadCaFile
from guardtrace_proxy.server.config import load_config
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.forwarded import with_own_id
from guardtrace_proxy.server.upstream import MAX_ERROR_BYTES, Upstream
from guardtrace_proxy.server.upstream_reply import UpstreamBroke, read_bounded
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.ports import free_port
from tests.server.scripted import Server, http, model_server
from tests.tls import private_authority

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
                with anyio.fail_after(20):
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


# Asked again, before the first byte


async def tries(
    first: bytes, retries: int, *, again: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
) -> object:
    """The body, or the error's code, and how many connections it took, where the first one gets ``first`` and closes."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(first if connections == 1 else again)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        upstream = Upstream("default", url, None, ThinkingStyle("field"), retries=retries)
        await upstream.start()
        try:
            async with upstream.ask("/chat/completions", b"{}", ID) as reply:
                return await read_bounded(reply, 100), connections
        except UpstreamBroke:
            return "broke", connections
        except ApiError as error:
            return error.code, connections
        finally:
            await upstream.aclose()


@pytest.mark.parametrize(
    ("first", "retries", "expected"),
    [
        (b"", 1, (b"{}", 2)),
        (b"", 0, ("upstream_unreachable", 1)),
        # Something has come.
        (b"H", 3, ("upstream_unreachable", 1)),
        (b"HTTP/1.1 200 OK\r\ncontent-le", 3, ("upstream_unreachable", 1)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", 3, ("broke", 1)),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{", 3, ("broke", 1)),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", 3, ("upstream_error", 1)),
        (b"no HTTP\r\n\r\n", 3, ("upstream_unreachable", 1)),
    ],
)
def test_it_is_asked_again_only_where_not_a_byte_has_come(first, retries, expected):
    assert anyio.run(tries, first, retries) == expected


def test_each_try_has_a_name_of_its_own():
    names: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.extend(re.findall(rb"x-request-id: (\S+)", await reader.readuntil(b"\r\n\r\n{}")))
        if len(names) == 3:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            upstream = Upstream("default", url, None, ThinkingStyle("field"), retries=2)
            await upstream.start()
            async with upstream.ask("/chat/completions", b"{}", with_own_id({"x-request-id": "mine"})):
                await upstream.aclose()

    anyio.run(run)
    assert len(set(names)) == 3
    assert all(re.fullmatch(rb"mine-[0-9a-f]{16}", name) for name in names)


def test_an_upstream_that_is_just_being_restarted_is_found_again():
    async def run() -> bytes:
        port = free_port()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
            writer.close()

        upstream = Upstream("default", f"http://127.0.0.1:{port}/v1", None, ThinkingStyle("field"), retries=5)
        await upstream.start()
        asking = asyncio.get_running_loop().create_task(body_of(upstream))
        await asyncio.sleep(0.3)
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            body = await asking
        await upstream.aclose()
        return body

    async def body_of(upstream: Upstream) -> bytes:
        async with upstream.ask("/chat/completions", b"{}", ID) as reply:
            return await read_bounded(reply, 100)

    assert anyio.run(run) == b"{}"


def test_silence_isnt_asked_again():
    async def run() -> tuple[object, int]:
        connections = 0

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            upstream = Upstream("default", url, None, ThinkingStyle("field"), read_timeout_ms=100, retries=3)
            await upstream.start()
            with pytest.raises(ApiError) as caught:
                async with upstream.ask("/chat/completions", b"{}", ID):
                    pass
            await upstream.aclose()
            return caught.value.code, connections

    assert anyio.run(run) == ("upstream_timeout", 1)


async def reads_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, given_up: asyncio.Event) -> None:
    await given_up.wait()
    while await reader.read(65_536):
        pass


async def drips_its_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, given_up: asyncio.Event) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 600:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("behaves", "body"), [(reads_nothing, b" " * 16_000_000), (drips_its_head, b"{}")])
def test_its_head_comes_in_time_whatever_happens_until_then(behaves, body):
    async def run() -> object:
        handlers = []
        given_up = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.append(asyncio.current_task())
            with suppress(ConnectionError):
                await behaves(reader, writer, given_up)

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            upstream = Upstream("default", url, None, ThinkingStyle("field"), read_timeout_ms=500, retries=3)
            await upstream.start()
            with anyio.fail_after(20), pytest.raises(ApiError) as caught:
                async with upstream.ask("/chat/completions", body, ID):
                    pass
            given_up.set()
            assert len(handlers) == 1
            with anyio.fail_after(20):
                await handlers[0]  # its connection was closed
            await upstream.aclose()
            return caught.value.code

    assert anyio.run(run) == "upstream_timeout"


# Certificates


def models_of(server: Server, ca_file: Path | None) -> bytes:
    async def run() -> bytes:
        path = None if ca_file is None else str(ca_file)
        upstream = Upstream("default", server.url, None, ThinkingStyle("field"), ca_file=path, retries=2)
        await upstream.start()
        try:
            return (await upstream.models(ID))[0]
        finally:
            await upstream.aclose()

    return anyio.run(run)


def test_a_server_of_a_private_authority_is_asked_with_its_file(tmp_path):
    tls = private_authority(tmp_path / "ca.pem")
    both = tmp_path / "both.pem"
    private_authority(both)
    both.write_text(f"# Prüfstelle\n{both.read_text()}{(tmp_path / 'ca.pem').read_text()}", "utf-8")
    with model_server(lambda _: [http(200, '{"data": []}')], tls) as server:
        for ca_file in (tmp_path / "ca.pem", both):
            assert models_of(server, ca_file) == b'{"data": []}'


@pytest.mark.parametrize("ca_file", [None, "other.pem"])
def test_a_certificate_that_isnt_trusted_is_told_and_nothing_is_sent(tmp_path, ca_file):
    tls = private_authority(tmp_path / "ca.pem")
    private_authority(tmp_path / "other.pem")
    with model_server(lambda _: [http(200, "{}")], tls) as server, pytest.raises(ApiError) as caught:
        models_of(server, None if ca_file is None else tmp_path / ca_file)
    assert (caught.value.status, caught.value.code) == (502, "upstream_unreachable")
    assert "its certificate isn't trusted (upstreams.*.ca_file)" in caught.value.message
    assert server.requests == []


def test_a_file_of_authorities_stands_in_place_of_certifis(tmp_path, monkeypatch):
    tls = private_authority(tmp_path / "listed.pem")
    private_authority(tmp_path / "own.pem")
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "listed.pem"))
    with model_server(lambda _: [http(200, "{}")], tls) as server:
        assert models_of(server, None) == b"{}"
        with pytest.raises(ApiError, match="isn't trusted"):
            models_of(server, tmp_path / "own.pem")


def test_what_became_of_the_file_since_the_settings_were_read_changes_nothing(tmp_path):
    ca_file = tmp_path / "ca.pem"
    tls = private_authority(ca_file)
    content = f"upstreams: {{default: {{base_url: 'https://a/v1', ca_file: {ca_file}}}}}\nauditor: {{base_url: 'http://b/v1'}}\ntenants: {{}}\n"
    (tmp_path / "guardtrace.yaml").write_text(content)
    load_config(tmp_path / "guardtrace.yaml", {})
    ca_file.unlink()
    with model_server(lambda _: [http(200, "{}")], tls) as server:
        assert models_of(server, ca_file) == b"{}"


def test_a_file_that_was_never_there_ends_the_start(tmp_path):
    with pytest.raises(BadCaFile, match=r"gone\.pem can't be read: No such file or directory"):
        models_of(Server("https://127.0.0.1:9/v1"), tmp_path / "gone.pem")
