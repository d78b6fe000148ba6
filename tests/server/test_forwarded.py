"""Headers that pass: request ids and trace context to the upstream, limits and advice on retries to the client."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from guardtrace_proxy.server.forwarded import MAX_PASSED, MAX_VALUE_CHARS, to_client, to_upstream
from tests.server.running import ask, proxy
from tests.server.scripted import HEAD, completion, http, stream

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LIMITS = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-should-retry": "false",
    "x-ratelimit-remaining-tokens": "0",
    "ratelimit-reset": "9",
    "anthropic-ratelimit-tokens-remaining": "0",
    "ratelimit": '"default";r=0;t=9',
}
OTHERS = {
    "set-cookie": "a=b",
    "openai-organization": "x",
    "x-api-key": "k",
    "ratelimitx": "1",
    "content-language": "en",
}


def scope(*headers: tuple[str, str]) -> dict:
    return {"headers": [(name.encode(), value.encode("latin-1")) for name, value in headers]}


def with_headers(head: bytes) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (LIMITS | OTHERS).items())
    first, _, rest = head.partition(b"\r\n")
    return first + b"\r\n" + lines.encode() + rest


@pytest.mark.parametrize("asked", ["a", "abc.1_2-3", "x" * 128, "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"])
def test_a_plain_request_id_is_taken(asked):
    assert to_upstream(scope(("x-request-id", asked))) == {"x-request-id": asked}


@pytest.mark.parametrize("asked", ["", " ", "a b", "x" * 129, "a\tb", "é", "a\n", "a:b", "../x/"])
def test_other_request_ids_are_replaced(asked):
    made = to_upstream(scope(("x-request-id", asked)))["x-request-id"]
    assert made != asked
    assert len(made) == 16


def test_two_request_ids_are_none():
    assert to_upstream(scope(("x-request-id", "a"), ("x-request-id", "b")))["x-request-id"] not in ("a", "b")


def test_trace_context_passes_as_it_is():
    headers = to_upstream(
        scope(("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2"), ("baggage", "x"))
    )
    assert headers.keys() == {"x-request-id", "traceparent", "tracestate"}
    assert (headers["traceparent"], headers["tracestate"]) == (PARENT, "a=1,b=2")


@pytest.mark.parametrize(
    "parent",
    ["", "ff" + PARENT[2:], PARENT.upper(), PARENT + "-x", PARENT[:-1], PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), PARENT.replace("00f067aa0ba902b7", "0" * 16)],
)  # fmt: skip
def test_bad_trace_context_is_dropped_whole(parent):
    assert to_upstream(scope(("traceparent", parent), ("tracestate", "a=1"))).keys() == {"x-request-id"}
    assert to_upstream(scope(("traceparent", PARENT), ("traceparent", PARENT))).keys() == {"x-request-id"}


@pytest.mark.parametrize("state", ["x" * 513, "a=\x01", "a=é"])
def test_a_bad_tracestate_is_dropped_alone(state):
    assert to_upstream(scope(("traceparent", PARENT), ("tracestate", state))).keys() == {"x-request-id", "traceparent"}


@pytest.mark.parametrize("version", ["2023-06-01", "bedrock-2023-05-31"])
def test_anthropics_version_passes(version):
    assert to_upstream(scope(("anthropic-version", version)))["anthropic-version"] == version


@pytest.mark.parametrize("version", ["", "2023 06", "x" * 33, "2023-06-01\n"])
def test_what_is_no_version_doesnt(version):
    assert "anthropic-version" not in to_upstream(scope(("anthropic-version", version)))


def test_of_anthropics_betas_those_pass_that_are_known():
    betas = [
        ("anthropic-beta", "mcp-client-2025-04-04, effort-2025-11-24"),
        ("anthropic-beta", "context-1m-2025-08-07"),
    ]
    assert to_upstream(scope(*betas))["anthropic-beta"] == "effort-2025-11-24,context-1m-2025-08-07"
    assert "anthropic-beta" not in to_upstream(scope(("anthropic-beta", "files-api-2025-04-14,effort-2025-11-24x")))


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=300))))
def test_what_passes_to_the_client_is_plain_and_bounded(pairs):
    headers = CIMultiDict([(f"x-ratelimit-{name}", value) for name, value in pairs] * 3)
    passed = to_client(headers)
    assert len(passed) <= MAX_PASSED
    for name, value in passed:
        assert name.isascii()
        assert len(value) <= MAX_VALUE_CHARS
        assert b"\n" not in name + value
        assert b"\r" not in name + value


ERROR = json.dumps({"error": {"message": "Slow down.", "type": "rate_limit", "param": None, "code": "rate"}})


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("status", [200, 429, 503])
def test_limits_pass_with_replies_and_errors_and_nothing_else_does(status, streamed):
    ok = HEAD + b"Content-Type: text/event-stream\r\n\r\n" + b"".join(stream("Fine.", "Four."))
    upstream = (ok if streamed else completion("Fine.", "Four.")) if status == 200 else http(status, ERROR)
    with proxy(lambda _: [with_headers(upstream)]) as running:
        reply = running.raw(ask(stream=streamed))
    assert reply.status_code == status
    assert {name: reply.headers.get(name) for name in LIMITS} == LIMITS
    assert not OTHERS.keys() & reply.headers.keys()


def test_limits_pass_with_the_list_of_models():
    with proxy(lambda _: [with_headers(http(200, '{"data": []}'))]) as running:
        reply = running.client.models.with_raw_response.list()
    assert reply.headers["retry-after"] == "7"
    assert running.upstream.requests[0][1]["x-request-id"].startswith(reply.headers["x-request-id"] + "-")


def test_the_official_client_obeys_the_upstreams_advice():
    replies = [http(429, ERROR), http(429, ERROR)]
    for advice, expected in ((b"x-should-retry: false", 1), (b"x-should-retry: true\r\nretry-after-ms: 1", 2)):
        head, _, rest = replies[0].partition(b"\r\n")
        answer = head + b"\r\n" + advice + b"\r\n" + rest
        with proxy(lambda _, answer=answer: [answer]) as running, pytest.raises(openai.RateLimitError):
            running.client.with_options(max_retries=1).chat.completions.create(**ask())
        assert len(running.upstream.requests) == expected


def test_the_official_client_reads_the_request_id_that_the_upstreams_begins_with():
    with proxy(lambda _: [completion("Fine.", "Four.")]) as running:
        headers = {"x-request-id": "abc.1", "traceparent": PARENT, "tracestate": "a=1"}
        taken = running.client.chat.completions.create(**ask(), extra_headers=headers)
        made = running.client.chat.completions.create(**ask())
        seen = [sent for _, sent, _ in running.upstream.requests]
    assert taken._request_id == "abc.1"
    assert re.fullmatch("abc\\.1-[0-9a-f]{16}", seen[0]["x-request-id"])
    assert (seen[0]["traceparent"], seen[0]["tracestate"]) == (PARENT, "a=1")
    assert re.fullmatch(f"{made._request_id}-[0-9a-f]{{16}}", seen[1]["x-request-id"])
    assert "traceparent" not in seen[1]


@pytest.mark.parametrize("path", ["/chat/completions", "/models"])
def test_no_client_chooses_the_whole_of_an_id_at_the_upstream(path):
    script = (lambda _: [completion("Fine.", "Four.")]) if path != "/models" else lambda _: [http(200, '{"data": []}')]
    with proxy(script) as running:
        for _ in range(2):
            if path == "/models":
                running.client.models.list(extra_headers={"x-request-id": "same"})
            else:
                running.client.chat.completions.create(**ask(), extra_headers={"x-request-id": "same"})
        first, second = (sent["x-request-id"] for _, sent, _ in running.upstream.requests)
    assert first != second
    assert len(first) == len(second)  # so neither begins with the other


def test_an_error_carries_its_request_id():
    with proxy(lambda _: [http(429, ERROR)]) as running, pytest.raises(openai.RateLimitError) as caught:
        running.client.chat.completions.create(**ask(), extra_headers={"x-request-id": "abc.2"})
    assert caught.value.request_id == "abc.2"


def test_the_same_id_at_the_same_time_disturbs_nobody():
    def echo(request):
        name = request["messages"][0]["content"]
        return [HEAD + b"Content-Type: text/event-stream\r\n\r\n", *stream(f"{name} is read.", f"{name} it is.")]

    def one(number: int) -> bool:
        name = f"{'HARM' if number % 4 == 0 else 'nice'}{number}"
        body = {**ask(stream=True), "messages": [{"role": "user", "content": name}]}
        reply = running.raw(body, headers={"x-request-id": "same"})
        whole = b"".join(stream(f"{name} is read.", f"{name} it is."))
        passes = b"HARM" not in reply.content if number % 4 == 0 else reply.content == whole
        return passes and reply.headers["x-request-id"] == "same"

    with proxy(echo) as running, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(16)))


def test_every_line_of_the_log_has_the_request_id():
    lines: list[dict] = []

    def keep(_, __, event):
        lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    head = HEAD + b"Content-Type: text/event-stream\r\nContent-Length: 99999\r\n\r\n"
    with proxy(lambda _: [head, *stream("Fine.", "Four.")[:3]], lambda _: [http(500, "")]) as running:
        running.raw(ask(stream=True), headers={"x-request-id": "abc.3"})
    of_request = [line for line in lines if line["event"] in ("upstream broke off", "audit failed", "reply", "audit")]
    assert {line["event"] for line in of_request} >= {"upstream broke off", "audit failed", "reply"}
    assert {line.get("request_id") for line in of_request} == {"abc.3"}
