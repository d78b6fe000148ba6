"""Bytes of an upstream that are gathered where they arrive: what aiohttp has to do for it, on both event loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy import outgoing
from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.outgoing import chunk_body
from guardtrace_proxy.server.upstream import Upstream
from guardtrace_proxy.server.upstream_reply import UpstreamBroke, UpstreamReply
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.server.running import ask, proxy
from tests.server.scripted import DONE, SSE_HEAD, chunk, model_server

Writes = Callable[[asyncio.StreamWriter], Awaitable[None]]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
PAUSE_SECONDS = 0.02
"""So that two writes come in two reads."""
PAUSES_AT = 2**18 // 16 + 1
"""The first chunk that is too many for aiohttp."""
LOOPS = pytest.mark.parametrize("uvloop", [False, True])


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


FRAMES = [
    lambda size: b"%x" % size,
    lambda size: b"%X" % size,
    lambda size: b"00%x" % size,
    lambda size: b"%x;name=value" % size,
    lambda size: b"%x;name=%x" % (size, size),
]
"""Ways to say how long a chunk is."""
PIECES = st.binary(min_size=1, max_size=20) | st.sampled_from(
    [framed(b"a"), framed(b"a" * 17), b"a5", b"\r\n\r\n1", b"3\r\n", b"\r\n", b"5\r\nhello", b"0\r\n\r\n", b"a" * 300]
)


def one_by_one(pieces: Sequence[bytes], *, head: bytes = CHUNKED) -> Writes:
    async def write(writer: asyncio.StreamWriter) -> None:
        for piece in [head, *pieces]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(PAUSE_SECONDS)

    return write


@asynccontextmanager
async def asked(write: Writes, read_timeout_ms: int = 10_000) -> AsyncIterator[UpstreamReply]:
    """A reply whose head has come. Its connection stays open until it is left."""
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        await write(writer)
        await left.wait()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        upstream = Upstream("default", url, None, ThinkingStyle("field"), read_timeout_ms=read_timeout_ms)
        await upstream.start()
        try:
            async with upstream.ask("/chat/completions", b"{}", {}) as reply:
                yield reply
        finally:
            left.set()
            await upstream.aclose()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What aiohttp is given of replies, in order."""
    found: list[bytes] = []
    parse = ResponseHandler.data_received

    def data_received(self: ResponseHandler, data: bytes) -> None:
        if data:
            found.append(data)
        parse(self, data)

    monkeypatch.setattr(ResponseHandler, "data_received", data_received)
    return found


def run(test: Callable[[], Awaitable[Any]], uvloop: bool) -> Any:
    return anyio.run(test, backend_options={"use_uvloop": uvloop})


class Taker:
    """Gathers as long as ``takes`` says so."""

    def __init__(self, takes: Callable[[bytes], bool]) -> None:
        self.got: list[bytes] = []
        self._takes = takes

    def __call__(self, data: bytes) -> bool:
        if not self._takes(data):
            return False
        self.got.append(data)
        return True


class Seen:
    """All of a reply, what was gathered and what wasn't, in the order in which it came. ``takes``: by its number."""

    def __init__(self, takes: Callable[[int], bool]) -> None:
        self.body = b""
        self._takes = takes
        self._count = 0

    async def read_all(self, reply: UpstreamReply) -> None:
        while data := await reply.read(self._gathers):
            self.body += data

    def _gathers(self, data: bytes) -> bool:
        self._count += 1
        if not self._takes(self._count):
            return False
        self.body += data
        return True


@LOOPS
def test_what_is_gathered_wakes_nobody(uvloop):
    pieces = [b"a", b"b", b"c", b"stop", b"d", b"e"]

    async def test() -> tuple[list[bytes], list[bytes]]:
        taker = Taker(lambda data: data != b"stop")
        async with asked(one_by_one([*map(framed, pieces), END])) as reply:
            assert await reply.read() == b"a"  # it may have come with the head, before anyone waited
            returned = [await reply.read(taker), await reply.read(taker)]
        return returned, taker.got

    assert run(test, uvloop) == ([b"stop", b""], [b"b", b"c", b"d", b"e"])


@LOOPS
def test_chunks_that_come_by_themselves_pass_aiohttp_by(uvloop, parsed):
    """Until one doesn't, or isn't taken: that, and the first one behind it, are aiohttp's."""
    pieces = [b"a", b"b", b"c", b"stop", b"d", b"e", b"f"]
    split = [framed(b"g")[:4], framed(b"g")[4:]]

    async def test() -> tuple[list[bytes], list[bytes]]:
        taker = Taker(lambda data: data != b"stop")
        async with asked(one_by_one([*map(framed, pieces), *split, framed(b"h"), framed(b"i"), END])) as reply:
            assert await reply.read() == b"a"
            parsed.clear()
            returned = [await reply.read(taker), await reply.read(taker)]
        return returned, taker.got

    returned, got = run(test, uvloop)
    assert returned == [b"stop", b""]
    assert b"".join(got) == b"bcdefghi"
    assert parsed == [*map(framed, [b"b", b"stop", b"d"]), *split, framed(b"h"), END]


@LOOPS
def test_what_looks_like_a_chunk_in_the_middle_of_another_isnt_one(uvloop):
    """The second read but two: the rest of one chunk, and of the next as much as the read's own first line says."""
    reads = [framed(b"x"), b"2\r\na", b"5\r\n5\r\n\r\n\r\n", b"1\r\n0\r\n", b"\r\n"]

    async def test() -> bytes:
        seen = Seen(lambda _: True)
        async with asked(one_by_one(reads)) as reply:
            with anyio.fail_after(5):
                await seen.read_all(reply)
        return seen.body

    assert run(test, uvloop) == b"x" + b"a5" + b"\r\n\r\n1"


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"1\r\na\r\n", b"a"),
        (b"A\r\n0123456789\r\n", b"0123456789"),
        (b"2\r\n\r\n\r\n", b"\r\n"),
        (END, b""),
        (b"", b""),
        (b"\r\n", b""),
        (b"1\r\n", b""),
        (b"1\r\na", b""),
        (b"1\r\nab\r\n", b""),
        (b"2\r\na\r\n", b""),
        (b"01\r\na\r\n", b""),
        (b"+1\r\na\r\n", b""),
        (b"0x1\r\na\r\n", b""),
        (b"1;name=value\r\na\r\n", b""),
        (b"1\na\n", b""),
        (b"1\r\nab\n", b""),
        (framed(b"a") + framed(b"b"), b""),
        (framed(b"a") + END, b""),
    ],
)
def test_the_body_of_one_whole_chunk(data, body):
    assert chunk_body(data) == body


@LOOPS
def test_the_end_is_seen_where_it_comes_with_what_is_gathered(uvloop):
    async def test() -> bytes:
        async with asked(one_by_one([framed(b"a"), framed(b"b") + END])) as reply:
            await reply.read()
            with anyio.fail_after(5):
                return await reply.read(lambda _: True)

    assert run(test, uvloop) == b""


@LOOPS
@pytest.mark.parametrize("raised", [RuntimeError("bug"), OSError("bug"), KeyError("bug")])
def test_what_the_taker_raises_reaches_who_reads_as_it_is(uvloop, raised):
    def gathers(_: bytes) -> bool:
        raise raised

    async def test() -> None:
        async with asked(one_by_one([framed(b"a"), framed(b"b")])) as reply:
            await reply.read()
            with pytest.raises(type(raised), match="bug"):
                await reply.read(gathers)

    run(test, uvloop)


@LOOPS
@pytest.mark.parametrize("last", [framed(b"b")[:3], b"zz\r\n"])
def test_a_connection_that_breaks_while_bytes_are_gathered_is_told_at_once(uvloop, last):
    async def breaks(writer: asyncio.StreamWriter) -> None:
        await one_by_one([framed(b"a"), framed(b"b"), last])(writer)
        writer.close()

    async def test() -> float:
        async with asked(breaks) as reply:
            await reply.read()
            began = time.monotonic()
            with pytest.raises(UpstreamBroke):
                await reply.read(lambda _: True)
            with pytest.raises(UpstreamBroke):
                await reply.read(lambda _: True)
            return time.monotonic() - began

    assert run(test, uvloop) < 8  # silence is one for 10 s


def test_silence_counts_from_what_was_gathered_last():
    async def test() -> tuple[int, float]:
        taker = Taker(lambda _: True)

        async def slow(writer: asyncio.StreamWriter) -> None:
            writer.write(CHUNKED + framed(b"a"))
            for _ in range(8):
                await asyncio.sleep(0.15)
                writer.write(framed(b"b"))

        async with asked(slow, read_timeout_ms=1000) as reply:
            await reply.read()
            began = time.monotonic()
            with pytest.raises(UpstreamBroke, match="ClientPayloadError"):
                await reply.read(taker)
            return len(taker.got), time.monotonic() - began

    gathered, seconds = anyio.run(test)
    assert gathered == 8
    assert seconds > 8 * 0.15 + 0.9


@LOOPS
def test_an_upstream_that_nobody_reads_is_slowed_down_and_loses_nothing(uvloop):
    piece, pieces, sent = b"x" * 100_000, 300, 0

    async def floods(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(pieces):
            writer.write(framed(piece))
            await writer.drain()
            sent += 1
        writer.write(END)

    async def test() -> int:
        seen = Seen(lambda count: count % 3 > 0)
        async with asked(floods) as reply:
            before = -1
            while before < sent:
                before = sent
                await asyncio.sleep(0.3)
            assert sent < pieces / 2
            await seen.read_all(reply)
        return len(seen.body)

    assert run(test, uvloop) == pieces * len(piece)


@LOOPS
def test_more_chunks_than_aiohttp_takes_at_once(uvloop):
    """It pauses, and goes on in the middle of a read."""
    body = bytes(97 + position % 26 for position in range(100_000))

    async def test() -> bytes:
        seen = Seen(lambda count: count % 3 > 0)
        async with asked(one_by_one([b"".join(framed(body[at : at + 1]) for at in range(len(body))) + END])) as reply:
            await seen.read_all(reply)
        return seen.body

    assert run(test, uvloop) == body


async def after_a_pause(chunks: int, behind: Sequence[bytes], *, gathered: bool) -> bytes:
    """All of a reply whose first ``chunks`` came at once, unread, so that aiohttp paused, and the rest one by one."""
    go_on = asyncio.Event()

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + framed(b"a") * chunks)
        await go_on.wait()
        await one_by_one(behind, head=b"")(writer)

    seen = Seen(lambda _: gathered)
    async with asked(write) as reply:
        await asyncio.sleep(0.5)
        while len(seen.body) < PAUSES_AT:
            seen.body += await reply.read()
        go_on.set()
        with anyio.fail_after(5):
            await seen.read_all(reply)
    return seen.body


@LOOPS
@pytest.mark.parametrize("gathered", [False, True])
def test_the_end_is_seen_after_a_pause_at_the_end_of_what_had_come(uvloop, gathered):
    """aiohttp's parser stops once more then, before the end, although the connection doesn't pause."""
    body = run(lambda: after_a_pause(PAUSES_AT, [framed(b"b") + END], gathered=gathered), uvloop)
    assert body == b"a" * PAUSES_AT + b"b"


@LOOPS
def test_after_a_pause_all_chunks_are_aiohttps(uvloop, parsed):
    """Its parser may keep something back, which nothing may overtake."""
    behind = [b"a", b"a", b"b", b"b", b"c"]
    body = run(lambda: after_a_pause(PAUSES_AT + 1, [*map(framed, behind), END], gathered=True), uvloop)
    assert body == b"a" * (PAUSES_AT + 1) + b"".join(behind)
    assert b"".join(parsed).endswith(b"".join(map(framed, behind)) + END)


@given(
    st.lists(st.tuples(PIECES, st.sampled_from(FRAMES)), min_size=1, max_size=12),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
    st.sampled_from(["chunked", "chunked", "length", "close"]),
)
@settings(max_examples=60)
def test_whatever_is_gathered_all_comes_in_order(pieces, cuts, takes, framing):
    """A cut of 0 comes at the end of a chunk."""
    body = b"".join(piece for piece, _ in pieces)
    frames = [b"%s\r\n%s\r\n" % (size(len(piece)), piece) for piece, size in pieces]
    head, wire = CHUNKED, b"".join(frames) + END
    ends = list(accumulate(map(len, frames)))
    if framing != "chunked":
        wire, length = body, b"Content-Length: %d\r\n" % len(body) if framing == "length" else b""
        head = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n"

    async def write(writer: asyncio.StreamWriter) -> None:
        at, turn = 0, 0
        writer.write(head)
        while at < len(wire):
            await asyncio.sleep(0.001)
            cut = cuts[turn % len(cuts)]
            end = at + cut if cut else next((end for end in ends if end > at), len(wire))
            writer.write(wire[at:end])
            at, turn = end, turn + 1
        if framing == "close":
            writer.close()

    async def test() -> bytes:
        seen = Seen(lambda count: takes[count % len(takes)])
        async with asked(write) as reply:
            await seen.read_all(reply)
        return seen.body

    assert anyio.run(test) == body


@LOOPS
def test_a_connection_that_is_used_again_tells_its_own_reply_alone(uvloop):
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for name in (b"1", b"2"):
            await reader.readuntil(b"\r\n\r\n{}")
            await one_by_one([framed(name), framed(name), END])(writer)

    async def test() -> list[list[bytes]]:
        async with await asyncio.start_server(twice, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            upstream = Upstream("default", url, None, ThinkingStyle("field"))
            await upstream.start()
            takers = [Taker(lambda _: True), Taker(lambda _: True)]
            for taker in takers:
                async with upstream.ask("/chat/completions", b"{}", {}) as reply:
                    await reply.read()
                    assert await reply.read(taker) == b""
            await upstream.aclose()
        return [taker.got for taker in takers]

    assert run(test, uvloop) == [[b"1"], [b"2"]]


def test_connections_that_arent_ours_are_read_the_long_way(monkeypatch):
    """As those of an aiohttp that makes its connections elsewhere would be."""
    monkeypatch.setattr(outgoing._Connector, "__init__", aiohttp.TCPConnector.__init__)

    async def test() -> tuple[bytes, list[bytes]]:
        taker = Taker(lambda _: True)
        async with asked(one_by_one([framed(b"a"), framed(b"b"), END])) as reply:
            body = b""
            while data := await reply.read(taker):
                body += data
        return body, taker.got

    assert anyio.run(test) == (b"ab", [])


# In the proxy


TOKENS = [chunk({"reasoning": f"{number:04}"}) for number in range(150)]
STREAM = [chunk({"role": "assistant", "content": ""}), *TOKENS, chunk({"content": "Four."}), chunk({}, "stop"), DONE]
LARGE = {"boundary": {"first": 100, "growth": 1.0, "max": 100, "max_hold_ms": 60_000}}


def slowly(frames: Sequence[bytes], seconds: float) -> Any:
    def script(_: Any) -> Iterator[bytes]:
        yield SSE_HEAD
        for frame in frames:
            yield frame
            time.sleep(seconds)

    return script


def test_most_tokens_of_a_held_stream_wake_no_task(monkeypatch):
    reads, read = [], UpstreamReply.read

    async def counted(self: UpstreamReply, *how: Any) -> bytes:
        data = await read(self, *how)
        reads.append(data)
        return data

    monkeypatch.setattr(UpstreamReply, "read", counted)
    with proxy(slowly(STREAM, 0.002), policy=LARGE) as running:
        assert running.raw(ask(stream=True)).content == b"".join(STREAM)
    assert len(reads) < len(STREAM) / 5


def test_what_is_gathered_is_speech():
    """A comment behind it isn't taken for the only thing that came in a long time."""
    frames = [*STREAM[:100], b": still here\n\n", *STREAM[100:]]

    def config(url: str) -> dict[str, Any]:
        return {"upstreams": {"default": {"base_url": url, "read_timeout_ms": 1500}}}

    with (
        model_server(slowly(frames, 0.02)) as server,
        proxy(slowly([], 0), policy=LARGE, config=config(server.url)) as running,
    ):
        assert running.raw(ask(stream=True)).content == b"".join(STREAM)


def test_a_bug_in_gathering_ends_the_stream_as_one_anywhere_does(monkeypatch):
    def fails(*_: Any) -> bool:
        raise RuntimeError("bug")

    monkeypatch.setattr(StreamGate, "gathers", fails)
    with proxy(slowly(STREAM, 0.002), policy=LARGE) as running:
        with pytest.raises(httpx.RemoteProtocolError):
            running.raw(ask(stream=True))
        assert running.upstream.left.wait(10)
