"""Messages over real sockets: blocks add up whatever is taken out of them, errors are in Anthropic's words."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.running import Running, proxy
from tests.server.scripted import SSE_HEAD, Script, http, paced
from tests.wire.message_events import SIGNATURE, Writing, reply, words
from tests.wire.response_events import content_of
from tests.wire.well_formed_messages import check_stream

MESSAGE = "This response was stopped by policy."
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGM4AQAAygDJmcpdfgAAAABJRU5ErkJggg=="
ASK: dict[str, Any] = {"model": "thinker", "max_tokens": 900, "messages": [{"role": "user", "content": "Please help."}]}
VERSION = {"anthropic-version": "2023-06-01"}
LEAK = "one two three four five six seven eight HARM and so on and on and on"
REDACT = {"actions": {"potentially_harmful": "redact"}}
KEY = "gt-key"
TENANTS: dict[str, Any] = {
    "tenants": {"acme": {"policy": "test", "keys": ["sha256:" + hashlib.sha256(KEY.encode()).hexdigest()]}},
    "anonymous_tenant": None,
}


def streaming(writing: Writing) -> Script:
    return lambda _: [SSE_HEAD, *writing.frames]


def whole(writing: Writing, **more: Any) -> Script:
    return lambda _: [http(200, json.dumps(writing.whole(**more)))]


def post(running: Running, headers: dict[str, str] | None = None, path: str = "", **more: Any) -> httpx.Response:
    return running.raw({**ASK, **more}, "/messages" + path, headers={**VERSION, **(headers or {})})


def received(running: Running) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events, and the message that they add up to."""
    found = content_of(post(running, stream=True).content)
    return found, check_stream(found)


def test_a_benign_stream_is_byte_identical_and_so_is_its_request() -> None:
    writing = (
        Writing().begin().thinking(words("well then")).text(words("four it is")).call("add", ['{"a":', "2}"]).end()
    )
    with proxy(streaming(writing)) as running:
        answer = post(running, stream=True)
        assert answer.content == writing.stream
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert [path for path, _, _ in running.upstream.requests] == ["/v1/messages"]
        assert running.upstream.bodies == [{**ASK, "stream": True}]


def test_a_cut_in_the_thinking_closes_its_block_and_says_the_message_in_one_of_its_own() -> None:
    with proxy(paced(reply(LEAK, "fine").frames[:-1])) as running:
        found, message = received(running)
    assert "HARM" not in json.dumps(found)
    thinking, text = message["content"]
    assert LEAK.startswith(thinking["thinking"].strip())
    assert thinking["signature"] == ""
    assert text == {"type": "text", "text": MESSAGE}
    assert (message["id"], message["stop_reason"]) == ("msg_1", "refusal")
    assert message["usage"]["input_tokens"] == 9
    assert message["usage"]["output_tokens"] > 1
    assert [event["type"] for event in found[-2:]] == ["message_delta", "message_stop"]
    assert found[-2]["guardtrace"] == {"action": "cut", "phase": "thinking", "level": 1.0, "usage_estimated": True}


def test_a_cut_at_the_last_verdict_keeps_the_upstreams_usage() -> None:
    with proxy(streaming(reply("", "HARM")), policy={"boundary": {"first": 400, "max": 400}}) as running:
        found, message = received(running)
    assert message["content"] == [{"type": "text", "text": MESSAGE}]
    assert message["usage"]["output_tokens"] == 12
    assert "usage_estimated" not in found[-2]["guardtrace"]


def test_a_refusal_says_the_message_where_the_api_explains_its_own() -> None:
    with proxy(streaming(reply("well then", LEAK)), policy={"cut_shape": "refusal"}) as running:
        _, message = received(running)
    assert message["stop_details"] == {"type": "refusal", "category": None, "explanation": MESSAGE}
    assert MESSAGE not in json.dumps(message["content"])


def test_a_cut_with_an_error_ends_the_stream() -> None:
    with proxy(streaming(reply(LEAK, "fine")), policy={"cut_shape": "error"}) as running:
        streamed = post(running, stream=True)
    assert content_of(streamed.content)[-1] == failure("invalid_request_error", MESSAGE, streamed)
    with proxy(whole(reply(LEAK, "fine")), policy={"cut_shape": "error"}) as running:
        answer = post(running)
    assert answer.status_code == 400
    assert answer.json() == failure("invalid_request_error", MESSAGE, answer)


def test_a_cut_that_the_auditors_failure_asked_for_is_overload() -> None:
    """It would be 503, a status that this API doesn't have."""
    policy = {"cut_shape": "error", "messages": {"auditor_failure": "Not checked."}}

    def failing(_: Any) -> list[bytes]:
        return [http(500, "{}")]

    with proxy(streaming(reply("", "fine")), failing, policy=policy) as running:
        streamed = post(running, stream=True)
    assert content_of(streamed.content)[-1] == failure("overloaded_error", "Not checked.", streamed)
    with proxy(whole(reply("", "fine")), failing, policy=policy) as running:
        answer = post(running)
    assert (answer.status_code, answer.json()) == (529, failure("overloaded_error", "Not checked.", answer))


MEDIA = {
    "block": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "SEEN"}},
    "result": {
        "type": "vendor_tool_result",
        "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "SEEN"}}],
    },
    "url": {"type": "image", "source": {"type": "url", "url": "data:image/png;base64,SEEN"}},
    "speech": {"type": "audio", "data": "SEEN"},
    "file": {"type": "vendor_block", "blob": PNG + "SEEN"},
}


@pytest.mark.parametrize("name", MEDIA)
def test_images_and_speech_never_leave(name: str) -> None:
    writing = Writing().begin().text(["fine"]).other(MEDIA[name]).end()
    with proxy(streaming(writing)) as running:
        streamed = post(running, stream=True)
    assert "SEEN" not in streamed.text
    assert "message_stop" not in streamed.text
    error = failure("api_error", "The upstream sent an event with an image or audio.", streamed)
    assert content_of(streamed.content)[-1] == error
    with proxy(whole(writing)) as running:
        answer = post(running)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    assert "with an image or audio" in answer.text


def test_neither_do_pieces_of_such() -> None:
    begun = Writing().begin().text(["fine"])
    begun.add("content_block_delta", index=0, delta={"type": "image_delta", "data": "SEEN"})
    with proxy(streaming(begun.end())) as running:
        streamed = post(running, stream=True)
    assert "SEEN" not in streamed.text
    assert content_of(streamed.content)[-1]["type"] == "error"


def failure(type: str, message: str, answer: httpx.Response) -> dict[str, Any]:
    """The error that names the answer's request."""
    request_id = answer.headers["request-id"]
    assert request_id
    return {"type": "error", "error": {"type": type, "message": message}, "request_id": request_id}


@pytest.mark.parametrize("first", ['{"to": "one two', ""])
def test_an_open_call_is_never_completed(first: str) -> None:
    pieces = [first, " three four five six seven eight HARM and", '"}']
    writing = Writing().begin().text(words("let me see"))
    writing.call("run", ['{"a": 1}'])
    writing.add(
        "content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "run", "input": {}}
    )
    for piece in pieces:
        writing.add("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": piece})
    with proxy(paced(writing.end("tool_use").frames[:-1])) as running:
        found, message = received(running)
    stopped = {event["index"] for event in found if event["type"] == "content_block_stop"}
    calls = {index: block for index, block in enumerate(message["content"]) if block["type"] == "tool_use"}
    assert [block["input"] for index, block in calls.items() if index in stopped] in ([], ['{"a": 1}'])
    assert calls.keys() - stopped
    assert message["content"][-1]["text"] == MESSAGE
    assert message["stop_reason"] == "refusal"


def test_a_redacted_thinking_block_loses_its_signature_and_a_whole_one_keeps_it() -> None:
    writing = Writing().begin().thinking(words("one HINT two")).text(["well "]).thinking(words("all is fine")).end()
    with proxy(streaming(writing), policy=REDACT) as running:
        _, message = received(running)
    redacted, _, kept = message["content"]
    assert (redacted["thinking"], redacted["signature"]) == ("[withheld by policy]", "")
    assert kept == writing.blocks[2]


@pytest.mark.parametrize("policy", [{"thinking": {"mode": "withhold"}}, {"reasoning_field": "strip"}])
def test_thinking_that_isnt_shown_has_no_block_and_the_others_are_counted_anew(policy: dict[str, Any]) -> None:
    writing = Writing().begin().thinking(words("a secret plan")).text(words("so it is"))
    writing.thinking(words("another plan")).call("add", ['{"a": 2}']).end("tool_use")
    with proxy(streaming(writing), policy=policy) as running:
        found, message = received(running)
    assert "plan" not in json.dumps(found)
    assert SIGNATURE not in json.dumps(found)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    with proxy(whole(writing), policy=policy) as running:
        content = post(running).json()["content"]
    assert content == [writing.blocks[1], writing.blocks[3]]


def test_a_signature_waits_for_the_verdict_on_its_text_where_that_runs_ahead() -> None:
    policy = {"thinking": {"mode": "lag", "max_lag": 64}, "answer": {"mode": "lag", "max_lag": 64}}
    writing = Writing().begin().thinking(["one two", " HARM"]).text(["well"]).end()
    with proxy(streaming(writing), policy=policy) as running:
        found, message = received(running)
    assert "HARM" in json.dumps(found)
    assert SIGNATURE not in json.dumps(found)
    assert message["stop_reason"] == "refusal"


def test_encrypted_thinking_passes_only_where_the_operator_allows_it() -> None:
    writing = Writing().begin().redacted().text(["fine"]).end()
    secret = [{"role": "assistant", "content": [writing.blocks[0]]}, ASK["messages"][0]]
    with proxy(streaming(writing)) as running:
        _, message = received(running)
        refused = post(running, messages=secret)
    assert message["content"] == [{"type": "text", "text": "fine"}]
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("messages[0].content[0].data: redacted_thinking")
    with proxy(whole(writing)) as running:
        assert post(running).json()["content"] == [{"type": "text", "text": "fine"}]
    with proxy(streaming(writing)) as behind:
        config = {"upstreams": {"default": {"base_url": behind.upstream.url, "allow_encrypted_reasoning": True}}}
        with proxy(streaming(writing), config=config) as running:
            assert post(running, stream=True, messages=secret).content == writing.stream
            assert behind.upstream.bodies[-1]["messages"] == secret


def test_flags_are_marked_in_a_ping() -> None:
    policy = {"actions": {"potentially_harmful": "flag"}}
    with proxy(streaming(reply("one HINT two", "fine")), policy=policy) as running:
        found, message = received(running)
    assert message["stop_reason"] == "end_turn"
    marks = [event for event in found if "guardtrace" in event]
    assert marks == [{"type": "ping", "guardtrace": {"action": "flag", "phase": "thinking", "level": 0.5}}]


def test_monitored_streams_are_byte_identical() -> None:
    policy = {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}, "expose": {"object": False}}
    writing = reply(LEAK, "HARM again")
    with proxy(streaming(writing), policy=policy) as running:
        assert post(running, stream=True).content == writing.stream


def test_thinking_between_tags_is_closed_before_the_message() -> None:
    writing = Writing().begin().text(["<think>", *words(LEAK)]).end()
    with proxy(paced(writing.frames[:-1])) as running:
        _, message = received(running)
    cut, text = message["content"]
    assert cut["text"].endswith("</think>")
    assert text["text"] == MESSAGE


def test_a_whole_reply_is_byte_identical_cut_or_redacted() -> None:
    writing = Writing().begin().thinking(words("one HINT two")).text(["fine"]).end()
    with proxy(whole(writing), policy={"actions": {"potentially_harmful": "pass"}}) as running:
        assert post(running).content == json.dumps(writing.whole()).encode()
    with proxy(whole(writing), policy=REDACT) as running:
        thinking, text = post(running).json()["content"]
    assert thinking == {"type": "thinking", "thinking": "[withheld by policy]", "signature": ""}
    assert text == {"type": "text", "text": "fine"}
    with proxy(whole(reply(LEAK, "fine"))) as running:
        answer = post(running)
    found = answer.json()
    assert answer.status_code == 200
    assert (found["content"], found["stop_reason"]) == ([{"type": "text", "text": MESSAGE}], "refusal")
    assert found["usage"] == {"input_tokens": 9, "output_tokens": 12}
    assert found["guardtrace"] == {"action": "cut", "phase": "thinking", "level": 1.0}
    assert answer.headers["x-guardtrace-action"] == "cut"


def test_strings_that_nobody_knows_are_audited() -> None:
    citation = {"type": "char_location", "cited_text": "HARM", "document_index": 0}
    writing = Writing().begin()
    writing.add("content_block_start", index=0, content_block={"type": "text", "text": ""})
    writing.add("content_block_delta", index=0, delta={"type": "citations_delta", "citation": citation})
    with proxy(streaming(writing)) as running:
        _, message = received(running)
    assert message["content"] == [{"type": "text", "text": MESSAGE}]


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    writing = reply("well then", "four it is")
    with proxy(lambda _: [SSE_HEAD, *writing.frames[:-2]]) as running:
        answer = post(running, stream=True)
    found = content_of(answer.content)
    assert found[-1] == failure("api_error", found[-1]["error"]["message"], answer)
    with proxy(lambda _: [SSE_HEAD, *writing.frames[:-1]]) as running:
        assert post(running, stream=True).content == writing.stream


def test_the_upstreams_error_in_mid_stream_passes_bounded() -> None:
    writing = reply("well then", "four it is")
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "x" * 900}}
    frames = [*writing.frames[:5], b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"]
    with proxy(lambda _: [SSE_HEAD, *frames]) as running:
        answer = post(running, stream=True)
    assert content_of(answer.content)[-1] == failure("overloaded_error", "x" * 500, answer)


# The request


def test_images_reach_the_auditor_and_thinking_that_was_to_be_omitted_is_audited_and_stripped() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    more = {"messages": [{"role": "user", "content": content}], "thinking": {"type": "adaptive", "display": "omitted"}}
    with proxy(streaming(reply("a plan", "fine"))) as running:
        message = check_stream(content_of(post(running, stream=True, **more).content))
        assert running.upstream.bodies[0]["thinking"] == {"type": "adaptive", "display": "summarized"}
        assert running.upstream.bodies[0]["messages"] == more["messages"]
        asked = json.dumps(running.auditor.bodies)
    assert PNG in asked
    assert "a plan" in asked
    assert message["content"] == [{"type": "text", "text": "fine "}]


def test_a_prefill_is_the_beginning_of_the_trace() -> None:
    messages = [*ASK["messages"], {"role": "assistant", "content": "The answer HARM"}]
    with proxy(streaming(reply("", "is four"))) as running:
        message = check_stream(content_of(post(running, stream=True, messages=messages).content))
    assert message["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "https://a"}]}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]}, "container_upload"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages[0].content[0].source.type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.b"}}]}
                ]
            },
            "messages[0].content[0].source",
        ),
    ],
)
def test_refusals_name_what_isnt_audited(more: dict[str, Any], named: str) -> None:
    with proxy(whole(reply("", "fine"))) as running:
        answer = post(running, **more)
        assert running.upstream.requests == []
    found = answer.json()
    assert (answer.status_code, found["type"], found["error"]["type"]) == (400, "error", "invalid_request_error")
    assert named in found["error"]["message"]
    assert found["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize("path", ["/count_tokens", "/batches"])
def test_routes_beside_it_are_refused_in_its_words(path: str) -> None:
    with proxy(whole(reply("", "fine"))) as running:
        answer = post(running, path=path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert f"/v1/messages{path} is not served" in answer.json()["error"]["message"]


def test_a_version_is_required() -> None:
    with proxy(whole(reply("", "fine"))) as running:
        answer = running.raw(ASK, "/messages")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400,
        "anthropic-version: this header is required.",
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": f"Bearer {KEY}", "x-api-key": KEY}, 200),
        ({"authorization": "Bearer EMPTY", "x-api-key": KEY}, 200),
        ({"authorization": "Bearer other", "x-api-key": KEY}, 401),
        ({"x-api-key": "other"}, 401),
        ({}, 401),
    ],
)
def test_either_header_is_the_tenants_key_and_none_of_them_goes_on(headers: dict[str, str], status: int) -> None:
    with proxy(whole(reply("", "fine"))) as behind:
        upstream = {"base_url": behind.upstream.url, "api_key_env": "UP", "api_key_header": "x-api-key"}
        config = {**TENANTS, "upstreams": {"default": upstream}}
        with proxy(whole(reply("", "fine")), config=config, environ={"UP": "their-key"}) as running:
            answer = post(
                running, {**headers, "anthropic-beta": "interleaved-thinking-2025-05-14,mcp-client-2025-04-04"}
            )
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["type"] == "authentication_error"
            return
        (_, sent, _) = behind.upstream.requests[0]
    sent = {name.lower(): value for name, value in sent.items()}
    assert sent["x-api-key"] == "their-key"
    assert "authorization" not in sent
    assert sent["anthropic-version"] == "2023-06-01"
    assert sent["anthropic-beta"] == "interleaved-thinking-2025-05-14"


@pytest.mark.parametrize(
    ("status", "theirs", "kind"),
    [
        (429, 429, "rate_limit_error"),
        (529, 529, "overloaded_error"),
        (500, 500, "api_error"),
        (403, 403, "permission_error"),
        (503, 529, "overloaded_error"),
        (418, 418, "invalid_request_error"),
    ],
)
def test_the_upstreams_refusals_have_their_status_and_type(status: int, theirs: int, kind: str) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "no"}}
    with proxy(lambda _: [http(status, json.dumps(error))]) as running:
        answer = post(running)
    assert (answer.status_code, answer.json()["error"]) == (theirs, {"type": kind, "message": "no"})


def test_our_own_errors_have_theirs() -> None:
    with proxy(lambda _: [http(200, "<html>", "text/html")]) as running:
        answer = post(running)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    with proxy(whole(reply("", "fine")), config={"server": {"max_body_bytes": 2000}}) as running:
        answer = post(running, system="x" * 3000)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


def test_an_upstream_that_refuses_late_says_so_in_the_stream() -> None:
    def script(_: Any) -> Iterator[bytes]:
        time.sleep(0.2)
        yield http(429, json.dumps({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}))

    with proxy(script, config={"server": {"keepalive_ms": 20}}) as running:
        answer = post(running, stream=True)
    assert content_of(answer.content) == [failure("rate_limit_error", "slow down", answer)]
