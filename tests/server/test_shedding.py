"""Load is turned away before it overwhelms; clients that stop are let go."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import anyio
import httpx
import pytest

from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.shedding import WATCH_SECONDS, Shedding
from tests.server.running import Connection, Running, ask, connected, proxy
from tests.server.scripted import DONE, SSE_HEAD, chunk, completion, held_up, http, stream
from tests.telemetry.scraping import LISTENING, scrape
from tests.waiting import eventually
from tests.wire import response_events

FINE = [completion("well then", "fine")]
FRAMES = stream("All is quite fine with this one here.", "Four.")


def is_idle(running: Running) -> bool:
    service = running.app.service
    return (service.shedding.running, service.budget.total) == (0, 0)


def test_the_lag_is_that_of_the_loop():
    async def run() -> float:
        shedding = Shedding(10, HeldBytes(10), 100)
        shedding.start()
        time.sleep(WATCH_SECONDS + 0.3)
        await anyio.sleep(0)
        late = shedding.lag_ms
        with shedding.request():  # nothing ran, so it isn't the load that the loop is late for
            with pytest.raises(ApiError) as caught, shedding.request():
                pass
        assert (caught.value.status, "server.max_lag_ms" in caught.value.message) == (503, True)
        with anyio.fail_after(60):  # a busy machine may be late once more
            while shedding.lag_ms >= 100:
                await anyio.sleep(WATCH_SECONDS)
        with shedding.request(), shedding.request():
            shedding.stop()
        return late

    assert 300 <= anyio.run(run) < 100_000  # milliseconds


def test_beyond_so_many_at_once_new_requests_are_told_to_come_back_and_running_ones_go_on():
    end = threading.Event()

    with proxy(held_up(FRAMES, end), config={"server": {"max_concurrent": 1}}) as running:
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=ask(stream=True), trust_env=False, timeout=30) as first:
            refused = running.raw(ask(stream=True))
            client = anthropic.Anthropic(base_url=running.url, api_key="none", max_retries=0)
            with pytest.raises(anthropic.InternalServerError) as overloaded:
                client.messages.create(model="m", max_tokens=5, messages=[{"role": "user", "content": "?"}])
            end.set()
            assert first.read() == b"".join(FRAMES)
        assert running.raw(ask(stream=True)).status_code == 200
        assert eventually(lambda: is_idle(running))
        assert running.app.service.shedding.shed == 2
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "overloaded"
    assert overloaded.value.response.status_code == 529
    assert overloaded.value.body["error"]["type"] == "overloaded_error"


def test_bodies_count_while_they_come():
    with proxy(lambda _: FINE, config={"server": {"max_total_bytes": 100_000}}) as running:
        with connected(running) as client:
            client.putrequest("POST", "/v1/chat/completions")
            client.putheader("content-length", "99000")
            client.endheaders(b"x" * 60_000)
            assert eventually(lambda: running.app.service.budget.total == 60_000)
            refused = running.raw(ask(user="x" * 50_000))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert eventually(lambda: is_idle(running))
        assert running.raw(ask(user="x" * 50_000)).status_code == 200


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "event"])
def test_replies_count_while_they_come(streams):
    """A reply that isn't whole yet, or an event of a stream without its end."""
    end = threading.Event()
    head, size = (SSE_HEAD + b"data: ", 90_000) if streams else (http(200, " " * 200_000)[:-110_000], 90_000)

    def half(_: dict[str, Any]) -> Iterator[bytes]:
        yield head + b"x" * size if streams else head
        end.wait(30)

    with proxy(half, config={"server": {"max_total_bytes": 80_000}}) as running:
        with connected(running) as client:
            client.request("POST", "/v1/chat/completions", json.dumps(ask(stream=streams)))
            try:
                assert eventually(lambda: running.app.service.budget.total >= size)
                refused = running.raw(ask())
            finally:
                end.set()
        assert (refused.status_code, "server.max_total_bytes" in refused.text) == (503, True)
        assert eventually(lambda: is_idle(running))


def test_the_text_of_a_response_counts_to_its_end_though_it_has_left():
    end = threading.Event()
    *frames, last = response_events.reply("", "word " * 2_000).frames

    def paused(_: dict[str, Any]) -> Iterator[bytes]:
        yield SSE_HEAD + b"".join(frames)
        end.wait(30)
        yield last

    body = {"model": "thinker", "input": "Please help.", "stream": True}
    config = {"server": {"max_total_bytes": 80_000}}
    with proxy(paused, policy={"extends": "monitor"}, config=config) as running:
        with httpx.stream("POST", running.url + "/v1/responses", json=body, trust_env=False, timeout=30) as reply:
            came, data = reply.iter_bytes(), b""
            try:
                while frames[-1] not in data:
                    data += next(came)
                refused = running.raw(ask())
            finally:
                end.set()
            assert data + b"".join(came) == b"".join(frames) + last
        assert (refused.status_code, "server.max_total_bytes" in refused.text) == (503, True)
        assert eventually(lambda: is_idle(running))


@contextmanager
def unread(**server: Any) -> Iterator[tuple[Running, Connection]]:
    """A whole reply of 10 MB for a tenant that may have one at once, and its client, which has read the head."""
    settings = {
        **LISTENING,
        "server": {"max_stream_bytes": 2**24, **server},
        "tenants": {"all": {"policy": "test", "limits": {"concurrent": 1}}},
    }
    reply = completion("fine", "word " * 2_000_000)
    with proxy(lambda _: [reply], policy={"extends": "monitor"}, config=settings) as running:
        with connected(running) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            client.send_chat(ask())
            yield running, client


def test_a_whole_reply_counts_until_its_client_has_read_it():
    with unread() as (running, client):
        assert running.app.service.budget.total > 10_000_000
        assert running.raw(ask()).status_code == 429
        client.close()
        assert eventually(lambda: is_idle(running))
        assert eventually(lambda: running.app.service.limits.running("all") == 0)


def test_a_whole_reply_that_its_client_doesnt_read_ends_at_the_clients_time():
    with unread(client_timeout_ms=300) as (running, _):
        assert eventually(lambda: is_idle(running))
        assert eventually(lambda: running.app.service.limits.running("all") == 0)
        # All of it was judged and sent, but not taken.
        [labels] = scrape(running.app.service).labels("guardtrace_replies_total")
    assert (labels["action"], labels["end"]) == ("pass", "left")


def test_a_client_that_stops_in_its_body_is_told_and_let_go():
    with proxy(lambda _: FINE, config={"server": {"client_timeout_ms": 200}}) as running:
        with connected(running) as client:
            client.sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n{")
            told = b""
            while more := client.sock.recv(65_536):
                told += more
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in told
        assert is_idle(running)


def test_a_client_that_takes_nothing_loses_its_reply_and_the_upstream_is_closed():
    frame = chunk({"reasoning": "x"}, ballast=[7] * 20_000)

    def endless(_: dict[str, Any]) -> Iterator[bytes]:
        yield SSE_HEAD
        while True:
            yield frame

    policy = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}}
    settings = {"server": {"client_timeout_ms": 300}}
    with proxy(endless, policy=policy, config=settings) as running, connected(running) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.send_chat(ask(stream=True))
        assert running.upstream.left.wait(20)
        assert eventually(lambda: is_idle(running))


def test_a_client_that_takes_its_time_keeps_its_reply():
    frames = [chunk({"reasoning": "x"}, ballast=[7] * 20_000) for _ in range(60)] + [chunk({}, "stop"), DONE]
    policy = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}}
    settings = {"server": {"client_timeout_ms": 1500}}
    with proxy(lambda _: [SSE_HEAD, *frames], policy=policy, config=settings) as running, connected(running) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reply = client.send_chat(ask(stream=True))
        data = b""
        while more := reply.read1(400_000):
            data += more
            time.sleep(0.05)
    assert data == b"".join(frames)
