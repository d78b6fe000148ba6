"""HTTP's manners on both sides: connections that are used again, HEAD, Expect, old clients, slow clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.client import HTTPResponse

import pytest

from tests.server.running import Connection, Running, ask, connected, proxy
from tests.server.scripted import CHUNKED_HEAD, DONE, SSE_HEAD, chunk, completion, http, in_chunks, stream

FINE = stream("All is fine here.", "Four.")
HARM = stream("All is fine, then HARM in steps and more of it.", "No.")
CONFIG = {"server": {"max_body_bytes": 20_000}}


def lasting(frames: list[bytes]) -> list[bytes]:
    return [CHUNKED_HEAD, *in_chunks(*frames)]


def by_question(request):
    """What the question names."""
    if not request:
        return [http(200, '{"data": []}')]
    text = request["messages"][0]["content"]
    replies = {
        "fine": lasting(FINE),
        "cut": lasting(HARM),
        "broken": [SSE_HEAD, *FINE[:3]],
        "malformed": lasting([FINE[0], b"data: {nope}\n\n"]),
        "refused": [http(429, json.dumps({"error": {"message": "Slow down."}}))],
        "whole": [completion("Fine.", "Four.")],
    }
    return replies[text]


@pytest.fixture(scope="module")
def running():
    with proxy(by_question, config=CONFIG) as running:
        yield running


def question(text: str, **more) -> dict:
    return {**ask(stream=text != "whole", **more), "messages": [{"role": "user", "content": text}]}


def is_fine(client: Connection) -> bool:
    """Whether the connection serves another stream."""
    return client.send_chat(question("fine")).read() == b"".join(FINE)


@pytest.mark.parametrize("text", ["fine", "cut", "broken", "malformed", "refused", "whole"])
def test_a_clients_connection_is_used_again_whatever_the_reply_was(running, text):
    with connected(running) as client:
        client.send_chat(question(text)).read()
        assert is_fine(client)
        client.send_chat(question(text)).read()
        assert is_fine(client)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{nope", {}, 400),
        (b"x" * 500_000, {}, 413),
        (question("fine"), {"authorization": "Bearer wrong"}, 401),
        (question("fine"), {"content_encoding": "gzip"}, 415),
    ],
)
def test_a_clients_connection_is_used_again_after_a_refusal(running, body, headers, status):
    with connected(running) as client:
        reply = client.send_chat(body, **headers)
        assert (reply.status, bool(reply.read())) == (status, True)
        assert is_fine(client)


def test_a_chunked_body_over_the_limit_is_refused_and_the_connection_used_again(running):
    with connected(running) as client:
        client.request("POST", "/v1/chat/completions", iter([b"x" * 9_000] * 40), encode_chunked=True, headers={"transfer-encoding": "chunked"})  # fmt: skip
        reply = client.getresponse()
        assert (reply.status, bool(reply.read())) == (413, True)
        assert is_fine(client)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "GZIP"])
def test_compressed_requests_are_refused(running, coding):
    reply = running.raw(question("fine"), headers={"content-encoding": coding})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_content_encoding")
    assert reply.headers["accept-encoding"] == "identity"


def test_a_request_whose_coding_is_identity_passes(running):
    assert running.raw(question("fine"), headers={"content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models"])
def test_head_is_get_without_its_body(running, path):
    with connected(running) as client:
        for method in ("GET", "HEAD"):
            client.request(method, path)
            reply = client.getresponse()
            assert reply.status == 200
            assert int(reply.headers["content-length"]) > 0
            assert bool(reply.read()) == (method == "GET")
        assert is_fine(client)


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "/v1/chat/completions"), ("HEAD", "/v1/chat/completions"), ("OPTIONS", "*")]
)
def test_other_methods_are_unknown_and_leave_the_connection_open(running, method, path):
    with connected(running) as client:
        client.request(method, path)
        reply = client.getresponse()
        assert reply.status == 404
        reply.read()
        assert is_fine(client)


def test_connection_close_closes_after_the_stream(running):
    with connected(running) as client:
        reply = client.send_chat(question("fine"), connection="close")
        assert (reply.read(), reply.headers["connection"]) == (b"".join(FINE), "close")
        assert reply.isclosed()


@pytest.mark.parametrize("text", ["whole", "refused"])
def test_http_1_0_gets_a_reply_of_known_length_and_a_closed_connection(running, text):
    body = json.dumps({**question(text), "stream": False}).encode()
    status, rest = bare(
        running, f"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )
    assert status == (200 if text == "whole" else 429)
    assert b"transfer-encoding" not in rest
    assert b"connection: close" in rest


def bare(running: Running, request: bytes) -> tuple[int, bytes]:
    """The status, and everything until the server closes."""
    with connected(running) as client:
        client.sock.sendall(request)
        data = b""
        while more := client.sock.recv(65_536):
            data += more
    return int(data.split()[1]), data


def expecting(body: bytes, length: int) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + body


def test_expect_is_answered_with_continue(running):
    body = json.dumps(question("fine")).encode()
    with connected(running) as client:
        client.sock.sendall(expecting(b"", len(body)))
        assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sock.sendall(body)
        reply = HTTPResponse(client.sock)
        reply.begin()
        assert reply.read() == b"".join(FINE)
        assert is_fine(client)


def test_expect_is_answered_with_the_refusal_of_a_body_that_is_too_large_before_it_is_sent(running):
    status, rest = bare(running, expecting(b"", 500_000))
    assert status == 413
    # Whether the body follows is open, so the connection can't be used again.
    assert b"connection: close" in rest


def test_the_upstreams_connection_is_used_again_after_a_whole_stream():
    with proxy(by_question) as running, connected(running) as client:
        assert all(is_fine(client) for _ in range(3))
        assert running.upstream.connections == 1


def test_the_upstreams_connection_is_used_again_though_the_end_comes_after_done():
    reached = threading.Event()

    def late_end(_):
        frames = in_chunks(*FINE)
        yield b"".join([CHUNKED_HEAD, *frames[:-1]])
        assert reached.wait(20)
        yield frames[-1]

    with proxy(late_end) as running, connected(running) as client:
        for _ in range(5):
            reached.clear()
            reply = client.send_chat(ask(stream=True))
            data = b""
            while not data.endswith(DONE):
                data += reply.read1()
            reached.set()
            assert reply.read() == b""
            time.sleep(0.05)  # the client has its end before the upstream's is read
        assert running.upstream.connections < 5


def test_a_slow_client_slows_the_upstream_down_and_still_gets_everything():
    """Nothing is held here but what the client doesn't take: 1 MiB of it, and what sockets buffer."""
    sent = 0
    enough = threading.Event()
    frame = chunk({"reasoning": "x"}, ballast=[7] * 20_000)  # many bytes, little to audit

    def endless(_):
        nonlocal sent
        yield SSE_HEAD
        while not enough.is_set():
            sent += 1
            yield frame
        yield from [chunk({}, "stop"), DONE]

    policy = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}}
    with proxy(endless, policy=policy) as running, connected(running) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reply = client.send_chat(ask(stream=True))
        stalled = last = 0
        while stalled < 10 and sent < 2_000:
            time.sleep(0.05)
            stalled, last = (stalled + 1 if sent == last else 0), sent
        assert 0 < sent * len(frame) < 40_000_000
        enough.set()
        data = reply.read()
    assert data == frame * sent + chunk({}, "stop") + DONE
