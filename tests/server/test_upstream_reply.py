"""Replies that come compressed, grow without end, or whose framing breaks: read within bounds, or refused."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib

import pytest

from guardtrace_proxy.server import upstream_reply
from tests.server.running import ask, connected, proxy
from tests.server.scripted import CHUNKED_HEAD, HEAD, chunk, completion, http, in_chunks, model_server, stream

FRAMES = stream("All is fine here.", "Four.")
HARM = stream("All is fine, then HARM in steps.", "No.")
PACK = {"gzip": gzip.compress, "deflate": zlib.compress}
SSE = b"Content-Type: text/event-stream\r\n"


def replay(*parts: bytes):
    return lambda _: parts


def coded(coding: str, kind: bytes = SSE) -> bytes:
    return HEAD + kind + f"Content-Encoding: {coding}\r\n\r\n".encode()


def flushed(frames: list[bytes]) -> list[bytes]:
    """The frames in gzip as a server sends them: each as soon as it is there."""
    packer = zlib.compressobj(wbits=31)
    return [*[packer.compress(frame) + packer.flush(zlib.Z_SYNC_FLUSH) for frame in frames], packer.flush()]


@pytest.mark.parametrize("coding", PACK)
def test_a_compressed_stream_is_read_and_passes_uncompressed(coding):
    parts = flushed(FRAMES) if coding == "gzip" else [zlib.compress(b"".join(FRAMES))]
    with proxy(replay(coded(coding), *parts)) as running:
        reply = running.raw(ask(stream=True))
        assert running.upstream.requests[0][1]["accept-encoding"] == "identity"
    assert reply.content == b"".join(FRAMES)
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("coding", PACK)
def test_a_compressed_whole_reply_is_read_and_passes_uncompressed(coding):
    body = completion("All is fine.", "Four.").partition(b"\r\n\r\n")[2]
    head = coded(coding, b"Content-Type: application/json\r\n")
    with proxy(replay(head, PACK[coding](body))) as running:
        reply = running.raw(ask())
    assert (reply.status_code, reply.content) == (200, body)
    assert "content-encoding" not in reply.headers


def test_what_is_compressed_is_audited_too():
    with proxy(replay(coded("gzip"), *flushed(HARM))) as running:
        text = running.raw(ask(stream=True)).text
    assert "HARM" not in text
    assert "content_filter" in text


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
@pytest.mark.parametrize("streamed", [True, False])
def test_other_codings_are_refused_by_name(coding, streamed):
    with proxy(replay(coded(coding), b"".join(FRAMES))) as running:
        reply = running.raw(ask(stream=streamed))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "upstream_unreadable")
    assert coding in error["message"]


@pytest.mark.parametrize("coding", ["br", "gzip"])
def test_a_refusal_keeps_its_status_whatever_its_coding(coding):
    body = json.dumps({"error": {"message": "Slow down."}}).encode()
    head = b"HTTP/1.1 429 X\r\nConnection: close\r\nRetry-After: 3\r\nContent-Encoding: " + coding.encode()
    with proxy(replay(head + b"\r\n\r\n", gzip.compress(body))) as running:
        reply = running.raw(ask(stream=True))
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "3")
    assert ("Slow down." in reply.text) == (coding == "gzip")


def test_a_gzip_body_that_was_cut_off_never_looks_whole():
    """aiohttp's own decoding would take both for whole."""
    with proxy(replay(coded("gzip"), *flushed(FRAMES)[:-2])) as running:
        text = running.raw(ask(stream=True)).text
    assert "broke off" in text
    assert "[DONE]" not in text
    body = completion("All is fine.", "Four.").partition(b"\r\n\r\n")[2]
    with proxy(replay(coded("gzip", b""), gzip.compress(body)[:-8])) as running:
        assert running.raw(ask()).status_code == 502


def test_a_bomb_in_a_whole_reply_is_refused():
    bomb = gzip.compress(b" " * 50_000_000)
    with proxy(replay(coded("gzip", b""), bomb), config={"server": {"max_stream_bytes": 200_000}}) as running:
        reply = running.raw(ask())
    assert reply.status_code == 502
    assert "200,000 bytes" in reply.json()["error"]["message"]


def test_a_bomb_in_a_stream_is_one_event_too_large():
    packed = gzip.compress(b"data: " + b"x" * 50_000_000)
    with proxy(replay(coded("gzip"), packed), config={"server": {"max_stream_bytes": 200_000}}) as running:
        reply = running.raw(ask(stream=True))
    assert b'"error"' in reply.content
    assert len(reply.content) < 2000


def test_a_bomb_of_many_events_is_held_within_bounds():
    """Every event is fine, all of them together are far more than may be held: reading waits for the auditor."""
    frames = [chunk({"reasoning": "fine " * 2000})] * 400
    held = []
    with proxy(
        replay(coded("gzip"), gzip.compress(b"".join([*frames, *FRAMES]))),
        config={"server": {"max_stream_bytes": 100_000}},
        policy={"thinking": {"mode": "hold"}, "boundary": {"first": 4, "growth": 1.0, "max": 4}},
    ) as running:
        budget = running.app.service.budget
        with running.client.chat.completions.with_streaming_response.create(**ask(stream=True)) as reply:
            size = 0
            for data in reply.iter_bytes():
                size += len(data)
                held.append(budget.total)
    assert size == sum(map(len, [*frames, *FRAMES]))
    assert max(held) < 300_000


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(upstream_reply, "WATCH_SECONDS", 0.05)


BROKEN = [b"zz\r\nhello\r\n", b"5\r\nhelloXX", b"-1\r\n", b"5 5\r\nhello\r\n"]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.usefixtures("quick")
def test_a_malformed_chunk_breaks_a_stream_off(broken):
    """aiohttp 3.14.5 never wakes who reads, and drops its own timer: such a stream waited until its client left."""
    begun = threading.Event()

    def script(_):
        yield b"".join([CHUNKED_HEAD, *in_chunks(FRAMES[0])[:-1]])
        assert begun.wait(20)
        yield broken

    with proxy(script) as running, connected(running) as client:
        reply = client.send_chat(ask(stream=True))
        first = reply.readline()
        begun.set()
        rest = reply.read()
    assert first + b"\n" == FRAMES[0]
    assert b"broke off" in rest
    assert b"[DONE]" not in rest


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.usefixtures("quick")
def test_a_malformed_chunk_ends_a_whole_reply(broken):
    def script(_):
        yield b"".join([CHUNKED_HEAD, *in_chunks(b'{"id": ')[:-1]])
        time.sleep(
            0.2
        )  # so that it comes after the head was read; else the upstream counts as one that can't be reached
        yield broken

    with proxy(script) as running:
        reply = running.raw(ask())
    assert (reply.status_code, reply.json()["error"]["type"]) == (502, "upstream_error")


def silent_after(*before: bytes):
    def script(_):
        yield b"".join(before)
        time.sleep(3)

    return script


def impatient(url: str) -> dict:
    return {"upstreams": {"default": {"base_url": url, "read_timeout_ms": 200}}}


@pytest.mark.parametrize("streamed", [True, False])
def test_a_silent_upstream_is_given_up_after_its_read_timeout(streamed):
    with model_server(silent_after()) as server, proxy(replay(), config=impatient(server.url)) as running:
        reply = running.raw(ask(stream=streamed))
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "upstream_timeout")


def test_a_stream_that_falls_silent_is_broken_off():
    script = silent_after(CHUNKED_HEAD, *in_chunks(*FRAMES[:3])[:-1])
    with model_server(script) as server, proxy(replay(), config=impatient(server.url)) as running:
        text = running.raw(ask(stream=True)).text
    assert "broke off" in text
    assert "[DONE]" not in text


def test_an_error_page_of_any_status_is_an_error():
    with proxy(replay(http(999, "x", "text/plain"))) as running:
        assert running.raw(ask()).status_code == 502
