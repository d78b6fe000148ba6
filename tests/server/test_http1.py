"""One connection, one idea of where a request ends: what could be read in two ways is refused, and the connection closed."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.cli.serving import serving, write_config
from tests.server.running import ask, proxy
from tests.server.scripted import SSE_HEAD, by_word, chunk, completion, judging, model_server, stream
from tests.server.wires import BODY, read_all, request, wire, written

LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: proxy\r\n\r\n"
HEALTH = request(line=b"GET /healthz HTTP/1.1", body=b"", framed=b"")
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"


@pytest.fixture(scope="module")
def upstream():
    with model_server(lambda _: [completion("Fine.", "Four.")]) as server:
        yield server


@pytest.fixture(scope="module")
def url(tmp_path_factory, upstream):
    """Of `guardtrace serve` in a process of its own."""
    with model_server(judging(by_word)) as auditor:
        config = write_config(tmp_path_factory.mktemp("http1"), upstream.url, auditor.url)
        with serving(config) as running:
            yield running.url


def in_chunks(size_line: bytes, behind: bytes = b"\r\n0\r\n\r\n") -> bytes:
    return request(framed=CHUNKED, body=size_line + BODY + behind)


SIZE = b"%x" % len(BODY)
AMBIGUOUS = {
    "length and chunked": request(framed=LENGTH + b"\r\n" + CHUNKED, body=IN_CHUNKS),
    "chunked and length": request(framed=CHUNKED + b"\r\n" + LENGTH, body=IN_CHUNKS),
    "length and chunked, a request behind": request(framed=b"Content-Length: 6\r\n" + CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "two lengths": request(framed=LENGTH + b"\r\nContent-Length: 5"),
    "one length twice": request(framed=LENGTH + b"\r\n" + LENGTH),
    "a list of lengths": request(framed=LENGTH + b", %d" % len(BODY)),
    "a signed length": request(framed=b"Content-Length: +%d" % len(BODY)),
    "a negative length": request(framed=b"Content-Length: -1"),
    "a hexadecimal length": request(framed=b"Content-Length: 0x%x" % len(BODY)),
    "an endless length": request(framed=b"Content-Length: " + b"9" * 40),
    "an empty length": request(framed=b"Content-Length: "),
    "a space before the colon": request(framed=b"Content-Length : %d" % len(BODY)),
    "a space before the colon of chunked": request(framed=LENGTH + b"\r\nTransfer-Encoding : chunked", body=IN_CHUNKS),
    "another coding": request(framed=b"Transfer-Encoding: xchunked", body=IN_CHUNKS),
    "chunked, then another": request(framed=b"Transfer-Encoding: chunked, identity", body=IN_CHUNKS),
    "chunked twice": request(framed=CHUNKED + b"\r\n" + CHUNKED, body=IN_CHUNKS),
    "identity": request(framed=b"Transfer-Encoding: identity", body=IN_CHUNKS),
    "a vertical tab before chunked": request(framed=b"Transfer-Encoding: \x0bchunked", body=IN_CHUNKS),
    "a NUL behind chunked": request(framed=CHUNKED + b"\0", body=IN_CHUNKS),
    "a folded coding": request(framed=b"Transfer-Encoding:\r\n chunked", body=IN_CHUNKS),
    "a chunk's size with 0x": in_chunks(b"0x" + SIZE + b"\r\n"),
    "a chunk's size with a sign": in_chunks(b"+" + SIZE + b"\r\n"),
    "a negative chunk": in_chunks(b"-1\r\n"),
    "a space behind a chunk's size": in_chunks(SIZE + b" \r\n"),
    "a space before a chunk's size": in_chunks(b" " + SIZE + b"\r\n"),
    "a chunk's size with an underscore": in_chunks(b"1_0\r\n"),
    "a chunk's size that overflows": in_chunks(b"f" * 17 + b"\r\n"),
    "no chunk's size": in_chunks(b"\r\n"),
    "a chunk's size that ends in LF": in_chunks(SIZE + b"\n"),
    "a chunk's extension that ends in LF": in_chunks(SIZE + b";a\n"),
    "a chunk that doesn't end": in_chunks(SIZE + b"\r\n", b"0\r\n\r\n"),
    "a chunk that ends otherwise": in_chunks(SIZE + b"\r\n", b"XX0\r\n\r\n"),
    "a length in the trailers": in_chunks(SIZE + b"\r\n", b"\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "a fold": request(b"X-A: b\r\n c"),
    "a fold with a coding in it": request(b"X-A: b\r\n Transfer-Encoding: chunked"),
    "a fold before the first header": request(line=b"POST /v1/chat/completions HTTP/1.1\r\n X-A: b"),
    "lines that end in LF": request().replace(b"\r\n", b"\n"),
    "LF in a value": request(b"X-A: b\nX-Request-Id: smuggled"),
    "CR in a value": request(b"X-A: b\rX-Request-Id: smuggled"),
    "NUL in a value": request(b"X-Request-Id: b\0c"),
    "NUL in a name": request(b"X\0A: b"),
    "a space in a name": request(b"X A: b"),
    "no name": request(b": b"),
    "no colon": request(b"XAb"),
    "DEL in a name": request(b"X\x7fA: b"),
    "no ASCII in a name": request("Xé: b".encode()),
    "a space in the target": request(line=b"POST /v1/chat/completions x HTTP/1.1"),
    "NUL in the target": request(line=b"POST /v1/chat/completions\0 HTTP/1.1"),
    "a tab in the line": request(line=b"POST\t/v1/chat/completions HTTP/1.1"),
    "an unknown version": request(line=b"POST /v1/chat/completions HTTP/1.2"),
    "a method in lower case": request(line=b"post /v1/chat/completions HTTP/1.1"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": request(line=b"CONNECT example.com:80 HTTP/1.1", body=b"", framed=b""),
    "an upgrade with a body": request(UPGRADE),
    "an upgrade with a body in chunks": request(UPGRADE, framed=CHUNKED, body=IN_CHUNKS),
    "a websocket with a body": request(b"Connection: Upgrade\r\nUpgrade: websocket"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_read(url, upstream, name):
    before = len(upstream.requests)
    came = written(url, AMBIGUOUS[name] + SMUGGLED, closes=True)
    assert (came.statuses, came.closed) == ([400], True)
    assert json.loads(came.data.partition(b"\r\n\r\n")[2])["error"]["code"] == "malformed_http"
    assert len(upstream.requests) == before


def test_a_body_behind_an_upgrade_is_no_request(url):
    """It comes in a packet of its own, where uvicorn would begin to read a new request."""
    for way in (b"h2c", b"websocket"):
        upgrade = b"Connection: Upgrade\r\nUpgrade: " + way
        head, _, body = request(upgrade, body=HEALTH).partition(b"\r\n\r\n")
        came = written(url, head + b"\r\n\r\n", body, closes=True)
        assert (came.statuses, came.closed) == ([400], True)


def test_what_needs_no_key_fills_no_log(tmp_path):
    handshake = request(b"Connection: Upgrade\r\nUpgrade: websocket", line=b"GET /v1/x HTTP/1.1", body=b"", framed=b"")
    with serving(write_config(tmp_path, "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1")) as running:
        for _ in range(5):
            assert written(running.url, b"\x16\x03\x01 TLS", closes=True).statuses == [400]
            assert written(running.url, handshake).statuses == [404]
        said = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert [line["status"] for line in said if line["event"] == "malformed HTTP"] == [400]
    assert not [line for line in said if line.get("logger", "").startswith("uvicorn")]


def test_an_upgrade_without_a_body_is_passed_over(url):
    came = written(url, request(UPGRADE, line=b"GET /healthz HTTP/1.1", body=b"", framed=b""))
    assert came.statuses == [200]
    handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    for path in (b"/v1/chat/completions", b"/v1/realtime"):
        came = written(url, request(handshake, line=b"GET " + path + b" HTTP/1.1", body=b"", framed=b""))
        assert came.statuses == [404]


@pytest.mark.parametrize("trailer", [b"Authorization: Bearer wrong", b"X-Request-Id: trailing", b"Content-Encoding: gzip", b"Expect: 100-continue"])  # fmt: skip
def test_trailers_are_no_headers(url, upstream, trailer):
    came = written(url, in_chunks(SIZE + b"\r\n", b"\r\n0\r\n" + trailer + b"\r\n\r\n"))
    assert came.statuses == [200]
    assert upstream.requests[-1][1]["x-request-id"] != "trailing"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://elsewhere.example/v1/chat/completions", 200),
        (b"/v1/chat/completions?api-version=1&x=%0d%0aX-A:%20b", 200),
        (b"/v1%2Fchat%2Fcompletions", 200),
        (b"/%761/chat/completions", 200),
        (b"//v1/chat/completions", 404),
        (b"/v1//chat/completions", 404),
        (b"/v1/chat/completions/", 404),
        (b"/v1/embeddings/../chat/completions", 404),
        (b"/v1/chat/completions/../embeddings", 404),
        (b"/v1/%2e%2e/chat/completions", 404),
        (b"/v1/chat/completions%0d%0aX-A:%20b", 404),
        (b"/v1/chat/completions%00", 404),
        (b"/v1/chat/completions;x=1", 404),
        (b"/v1/chat\\completions", 404),
        (b"/V1/chat/completions", 404),
    ],
)
def test_however_the_target_is_written_the_upstream_gets_one_path(url, upstream, target, status):
    before = len(upstream.requests)
    came = written(url, request(line=b"POST " + target + b" HTTP/1.1"))
    assert came.statuses == [status]
    assert b"x-a:" not in came.data.lower().partition(b"\r\n\r\n")[0]
    assert [path for path, _, _ in upstream.requests[before:]] == ["/v1/chat/completions"] * (status == 200)


REFUSED = {
    400: request(body=b"{nope"),
    401: request(b"Authorization: Bearer wrong"),
    404: request(line=b"POST /v1/embeddings HTTP/1.1"),
    413: request(body=b"x" * 33_554_433),
    415: request(b"Content-Encoding: gzip"),
}


@pytest.mark.parametrize("status", REFUSED)
def test_requests_behind_a_refused_one_are_read_where_they_begin(url, upstream, status):
    before = len(upstream.requests)
    came = written(url, REFUSED[status] + request() + HEALTH, replies=3)
    assert (came.statuses, came.closed) == ([status, 200, 200], False)
    assert len(upstream.requests) == before + 1


def test_nothing_behind_a_refused_head_is_read_where_its_body_stays_out(url):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nContent-Length: 50000000\r\n\r\n"
    came = written(url, head + HEALTH * 3)
    assert came.statuses == [413]


def test_who_has_no_key_sends_no_body(url):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer wrong\r\nContent-Length: 5000\r\n\r\n"
    assert written(url, head).statuses == [401]


def test_a_head_has_a_bound(url):
    for padding in (b"X-A: " + b"a" * 60_000, b"X-A: b\r\n" * 5_000 + b"X-A: b"):
        assert written(url, request(padding)).statuses == [200]
    line = b"GET /healthz?" + b"a" * 70_000 + b" HTTP/1.1"
    for too_large in (request(b"X-A: " + b"a" * 70_000), request(b"X-A: b\r\n" * 9_000), request(line=line, body=b"", framed=b"")):  # fmt: skip
        came = written(url, too_large, closes=True)
        assert (came.statuses, came.closed) == ([431], True)


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /healthz HTTP/1.1\r\nX-A: ", b"a" * 10_000),
        (b"GET /healthz?", b"a" * 10_000),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + CHUNKED + b"\r\n\r\n1;", b"a" * 10_000),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + CHUNKED + b"\r\n\r\n1\r\n{\r\n0\r\nX-A: ", b"a" * 10_000),
        (b"POST /v1/chat/completions HTTP/1.1\r\n" + CHUNKED + b"\r\n\r\n1\r\n{\r\n0\r\n", b"X-A: b\r\n" * 1_000),
    ],
)
def test_what_never_ends_is_broken_off(url, begin, more):
    with wire(url) as connection:
        connection.sendall(begin)
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(more)
                sent += len(more)
        except OSError:
            pass
    assert sent < 20_000_000  # what the kernel takes without being asked


def test_a_head_that_comes_too_slowly_is_broken_off():
    with proxy(lambda _: [completion("Fine.", "Four.")], http={"timeout_keep_alive": 1}) as running:
        for begin, drop in ((b"", b""), (b"\r\n", b"\r\n"), (b"GET /healthz HTTP/1.1\r\n", b"X-A: b\r\n")):
            with wire(running.url) as connection:
                connection.sendall(begin)
                began = time.monotonic()
                drip = threading.Thread(target=dripping, args=(connection, drop))
                if drop:
                    drip.start()
                came = read_all(connection, closes=True)
                assert (came.data, came.closed) == (b"", True)
                assert time.monotonic() - began < 8  # the drip goes on for 10 s
                if drop:
                    drip.join()
        assert written(running.url, request(), HEALTH, pause=0.5, replies=2).statuses == [200, 200]


def dripping(connection, data: bytes) -> None:
    try:
        for _ in range(100):
            connection.sendall(data)
            time.sleep(0.1)
    except OSError:
        pass


def test_a_refused_body_that_drips_on_keeps_no_connection():
    with proxy(lambda _: [], http={"timeout_keep_alive": 1}, config={"server": {"max_body_bytes": 1024}}) as running, wire(running.url) as connection:  # fmt: skip
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nContent-Length: 9999\r\n\r\n")
        drip = threading.Thread(target=dripping, args=(connection, b"x"))
        drip.start()
        data = b""
        began = time.monotonic()
        try:
            while piece := connection.recv(65_536):
                data += piece
        except ConnectionResetError:
            pass
        drip.join()
        assert b"HTTP/1.1 413 " in data
        assert time.monotonic() - began < 8


def test_garbage_behind_a_request_is_never_written_about_into_its_reply():
    end = threading.Event()
    frames = stream("All is fine here.", "Four.")

    def slowly(_):
        yield SSE_HEAD
        yield b"".join(frames[:-2])
        end.wait(20)
        yield b"".join(frames[-2:])

    with proxy(slowly) as running:
        with wire(running.url) as connection:
            connection.sendall(request(body=json.dumps(ask(stream=True)).encode()))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"\0garbage\r\n\r\n")
            came = read_all(connection, closes=True)
        assert came.closed
        assert b"HTTP/1.1" not in came.data
        assert b"malformed" not in came.data
        end.set()


def test_a_client_that_pipelines_and_leaves_stops_every_reply():
    frame = chunk({"reasoning": "on and on "})

    def endless(_):
        yield SSE_HEAD
        while True:
            time.sleep(0.01)
            yield frame

    with proxy(endless) as running:
        with wire(running.url) as connection:
            connection.sendall(request(body=json.dumps(ask(stream=True)).encode()) + HEALTH)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert running.upstream.left.wait(20)
