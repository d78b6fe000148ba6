"""What passes from one side to the other is written anew: nothing of a client's ends in the upstream's request line or
headers but what is listed, nothing of an upstream's reply in the client's."""

from __future__ import annotations

import hashlib
import json
import re
import time

import pytest

from tests.server.running import ask, proxy
from tests.server.scripted import CHUNKED_HEAD, stream
from tests.server.wires import BODY, Came, Taken, recording_upstream, request, written

EVIL = "a\r\nX-Smuggled: 1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
FRAMES = b"".join(stream("Fine.", "Four."))
PLAIN = json.dumps(
    {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "thinker",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Four."}, "finish_reason": "stop"}],
    }
).encode()
CLIENTS_KEY = "gt-clients-own-secret"
OWN_KEY = "upstreams-own-secret"
ALLOWED = {
    "authorization",
    "host",
    "accept",
    "accept-encoding",
    "user-agent",
    "content-type",
    "content-length",
    "x-request-id",
}
"""What the upstream gets where the client says nothing that passes."""
CLIENTS_HEADERS = [
    b"Authorization: Bearer " + CLIENTS_KEY.encode(),
    b"Connection: keep-alive, X-Hop, Authorization",
    b"Keep-Alive: timeout=5",
    b"TE: trailers, deflate",
    b"Trailer: X-Late",
    b"X-Hop: 1",
    b"Proxy-Authorization: Basic eDp5",
    b"Proxy-Connection: keep-alive",
    b"Cookie: session=" + CLIENTS_KEY.encode(),
    b"OpenAI-Organization: org-1",
    b"OpenAI-Project: p",
    b"OpenAI-Beta: assistants=v2",
    b"api-key: " + CLIENTS_KEY.encode(),
    b"X-Goog-Api-Key: " + CLIENTS_KEY.encode(),
    b"X-Forwarded-For: 10.0.0.1",
    b"Forwarded: for=10.0.0.1",
    b"X-Real-IP: 10.0.0.1",
    b"X-Forwarded-Host: elsewhere.example",
    b"X-HTTP-Method-Override: DELETE",
    b"X-Original-URL: /admin",
    b"Referer: https://app.example/?q=secret",
    b"User-Agent: client/1",
    b"Accept: text/html",
    b"Accept-Encoding: gzip, br",
    b"Content-Type: text/plain",
    b"Content-Language: en",
    b"Expect: 100-continue",
    b"Range: bytes=0-1",
    b"If-None-Match: x",
    b"Baggage: user=1",
    b"X-Stainless-Lang: python",
    b"Idempotency-Key: 7",
]


def reply(body: bytes, *headers: bytes, kind: bytes = b"application/json", framed: bytes | None = None) -> bytes:
    length = b"Content-Length: %d" % len(body) if framed is None else framed
    head = [b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *headers, *filter(None, [length])]
    return b"\r\n".join([*head, b"", body])


@pytest.fixture(scope="module")
def both():
    """The proxy's URL, and what its upstream takes."""
    tenant = {"policy": "test", "keys": ["sha256:" + hashlib.sha256(CLIENTS_KEY.encode()).hexdigest()]}
    with recording_upstream() as taken:
        upstream = {"base_url": taken.url, "api_key_env": "OWN"}
        config = {"upstreams": {"default": upstream}, "tenants": {"all": tenant}}
        with proxy(lambda _: [], config=config, environ={"OWN": OWN_KEY}) as running:
            yield running.url, taken


@pytest.fixture
def taken(both) -> Taken:
    both[1].begin(lambda _: reply(PLAIN))
    return both[1]


@pytest.fixture
def url(both) -> str:
    return both[0]


def test_the_upstream_gets_listed_headers_and_never_the_clients_key(url, taken):
    for extra in (CLIENTS_HEADERS, [b"X-Api-Key: " + CLIENTS_KEY.encode(), *CLIENTS_HEADERS[1:]]):
        came = written(url, request(*extra))
        assert came.statuses[-1] == 200
    written(url, request(*CLIENTS_HEADERS, line=b"GET /v1/models HTTP/1.1", body=b"", framed=b""))
    assert CLIENTS_KEY.encode() not in taken.data
    assert taken.data.count(b"Bearer " + OWN_KEY.encode()) == 3
    assert taken.data.lower().count(b"authorization:") == 3
    for names in taken.names():
        assert names <= ALLOWED


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"])
def test_line_ends_in_a_body_stay_in_the_body(url, taken, path):
    """A model's name, a user's id: whatever a body holds, the upstream gets one request with the same few headers."""
    bodies = {
        "/v1/chat/completions": ask(model=EVIL, user=EVIL, safety_identifier=EVIL, metadata={EVIL: EVIL}, prompt_cache_key=EVIL),
        "/v1/responses": {"model": EVIL, "input": EVIL, "user": EVIL, "safety_identifier": EVIL, "prompt_cache_key": EVIL},
        "/v1/messages": {"model": EVIL, "max_tokens": 9, "messages": [{"role": "user", "content": EVIL}], "metadata": {"user_id": EVIL}},
        "/v1/completions": {"model": EVIL, "prompt": EVIL, "user": EVIL},
    }  # fmt: skip
    body = json.dumps(bodies[path]).encode()
    line = b"POST %b HTTP/1.1" % path.encode()
    written(url, request(b"anthropic-version: 2023-06-01", line=line, body=body))
    [head] = taken.heads()
    assert head[0] == line
    assert taken.names()[0] <= ALLOWED | {"anthropic-version"}
    assert taken.data.endswith(b"}")


@pytest.mark.parametrize("asked", [b"a b", b"a;b", b"a\tb", b'a"b', b"\xc3\xa9", b"a%0d%0aX-Smuggled: 1", b"a, b", b"x" * 129, b"../x"])  # fmt: skip
def test_a_request_id_that_isnt_plain_passes_nowhere(url, taken, asked):
    came = written(url, request(b"X-Request-Id: " + asked))
    made = re.search(rb"x-request-id: (\S+)\r\n", taken.data)
    assert made is not None
    ours, _, behind = made[1].partition(b"-")
    assert re.fullmatch(rb"[0-9a-f]{16} [0-9a-f]{16}", ours + b" " + behind)
    assert b"x-request-id: " + ours + b"\r\n" in came.data.lower()
    assert asked not in came.data + taken.data


FORGED = [
    b"Set-Cookie: a=b",
    b"Connection: close, x-ratelimit-limit-tokens",
    b"Keep-Alive: timeout=5",
    b"Trailer: x-late",
    b"Upgrade: h2c",
    b"Proxy-Authenticate: Basic",
    b"Location: http://elsewhere.example",
    b"Access-Control-Allow-Origin: *",
    b"Strict-Transport-Security: max-age=0",
    b"Content-Disposition: attachment",
    b"X-Request-Id: forged",
    b"x-guardtrace-action: forged",
    b"X-Ratelimit-Limit-Requests: 5\x01",
    b"X-Ratelimit-Limit-Tokens: 5\xe9",
]
OURS = {"content-type", "content-length", "transfer-encoding", "date", "cache-control", "x-accel-buffering"}
OURS |= {"x-request-id"}


@pytest.mark.parametrize("streamed", [True, False])
def test_the_client_gets_no_header_that_isnt_listed(url, taken, streamed):
    body, kind = (FRAMES, b"text/event-stream") if streamed else (PLAIN, b"application/json")
    taken.begin(lambda _: reply(body, *FORGED, b"Retry-After: 7", kind=kind))
    came = written(url, request(body=json.dumps(ask(stream=streamed)).encode()))
    assert (came.statuses, came.closed) == ([200], False)
    lines = came.data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    names = {line.partition(b":")[0].decode().lower() for line in lines}
    assert "retry-after" in names
    assert {name for name in names if not name.startswith("x-guardtrace-")} <= OURS | {"retry-after"}
    assert b"forged" not in came.data


@pytest.mark.parametrize(
    "line",
    [
        b"Retry-After: 7\nX-Smuggled: 1",
        b"Retry-After: 7\rX-Smuggled: 1",
        b"Retry-After: 7\0X-Smuggled: 1",
        b"Retry-After: 7\r\n X-Smuggled: 1",
        b"Retry-After: 7\r\n\tX-Smuggled: 1",
        b"Retry-After : 7\r\nX Smuggled: 1",
        b"X-Ratelimit-\x01X: 1",
        b"X-Ratelimit-A\xff: 1",
    ],
)
def test_line_ends_in_an_upstreams_headers_make_no_header_of_the_clients(url, taken, line):
    taken.begin(lambda _: reply(PLAIN, line))
    came = written(url, request())
    assert came.statuses in ([200], [502])
    head = came.data.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"^\s*x-smuggled", head, re.MULTILINE | re.IGNORECASE)
    assert all(re.fullmatch(rb"[\x20-\x7e]*", each) for each in head.split(b"\r\n"))


BAD_FRAMES = {
    "too short a length": (reply(PLAIN, framed=b"Content-Length: 40"), {502}),
    "two lengths": (reply(PLAIN, framed=b"Content-Length: 40\r\nContent-Length: %d" % len(PLAIN)), {502}),
    "length and chunked": (
        reply(
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(PLAIN), PLAIN), framed=b"Content-Length: 40\r\nTransfer-Encoding: chunked"
        ),
        {200, 502},
    ),
    "a second reply behind": (reply(PLAIN) + reply(PLAIN.replace(b"Four.", b"Smuggled.")), {200}),
    "bytes behind a chunked reply": (
        reply(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PLAIN), PLAIN), framed=b"Transfer-Encoding: chunked")
        + reply(PLAIN.replace(b"Four.", b"Smuggled.")),
        {200},
    ),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_reply_that_is_framed_wrongly_never_becomes_the_next_requests(url, taken, name):
    """Connections to the upstream are shared by all tenants."""
    first, statuses = BAD_FRAMES[name]
    asked: list[int] = []

    def answer(_: int) -> bytes:
        asked.append(1)
        return first if len(asked) == 1 else reply(PLAIN.replace(b"Four.", b"Second."))

    taken.begin(answer)
    came = [written(url, request()) for _ in range(2)]
    assert set(came[0].statuses) <= statuses
    assert content_of(came[1]) == "Second."
    assert b"Smuggled." not in came[0].data + came[1].data


def test_a_reply_that_nobody_asked_for_is_never_anybodys(url, taken):
    """The upstream writes it on a connection that waits to be used again."""
    taken.begin(lambda number: reply(PLAIN.replace(b"Four.", b"Asked %d." % number)))
    assert content_of(written(url, request())) == "Asked 0."
    taken.sockets[0].sendall(reply(PLAIN.replace(b"Four.", b"Smuggled.")))
    time.sleep(0.2)  # until it lies there
    second = written(url, request())
    assert content_of(second) == "Asked 0."
    assert len(taken.connections) == 2


def content_of(came: Came) -> str:
    body = came.data.partition(b"\r\n\r\n")[2]
    return str(json.loads(body)["choices"][0]["message"]["content"])


def test_after_a_cut_the_rest_of_the_reply_is_nobodys(url, taken):
    harm = b"".join(stream("Fine HARM and more and more and more", "No."))
    asked: list[int] = []

    def answer(_: int) -> bytes:
        asked.append(1)
        return CHUNKED_HEAD + b"%x\r\n%b\r\n" % (len(harm), harm) if len(asked) == 1 else reply(PLAIN)

    taken.begin(answer)
    cut = written(url, request(body=json.dumps(ask(stream=True)).encode()))
    assert b'"content_filter"' in cut.data
    assert content_of(written(url, request())) == "Four."
    assert len(taken.connections) == 2


def test_the_body_goes_on_as_it_came_and_its_length_is_the_proxys(url, taken):
    """Chunked, with extensions and trailers, on this side; one length on the other."""
    pieces = b"".join(
        b"%x;a=b\r\n%b\r\n" % (len(BODY[at : at + 7]), BODY[at : at + 7]) for at in range(0, len(BODY), 7)
    )
    chunked = request(framed=b"Transfer-Encoding: chunked", body=pieces + b"0\r\nX-Late: 1\r\n\r\n")
    assert written(url, chunked).statuses == [200]
    assert taken.data.lower().count(b"content-length: %d\r\n" % len(BODY)) == 1
    assert b"transfer-encoding" not in taken.data.lower()
    assert taken.data.endswith(b"\r\n\r\n" + BODY)
