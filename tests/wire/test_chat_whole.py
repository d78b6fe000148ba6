"""Replies that aren't streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from guardtrace_proxy.wire.events import Event, EventKind, Span, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.replies import HEAD, dialect, segments, shown

HEAD_OF_WHOLE = {**HEAD, "object": "chat.completion"}
COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
MESSAGE = "Stopped by policy."


def reply(*messages: Any, **beside: Any) -> dict[str, Any]:
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
        for index, message in enumerate(messages)
    ]
    return {**HEAD_OF_WHOLE, "choices": choices, "usage": COUNTS, **beside}


def read(content: Any, style: ThinkingStyle | None = None) -> Event:
    return dialect(style).completion(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "assistant", "content": "yes"}, "A:yes"),
        ({"role": "assistant", "content": "yes", "reasoning": "hm"}, "T:hm A:yes"),
        ({"role": "assistant", "content": "yes", "reasoning_content": "hm"}, "T:hm A:yes"),
        ({"role": "assistant", "content": "<think>hm</think>yes <"}, "[<think>] T:hm [</think>] A:yes <"),
        ({"role": "assistant", "content": "<think>hm", "reasoning": "hm"}, "T:hm A:<think>hm"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "A:no"),
        ({"content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}, "A:f{}"),
        ({"content": "yes", "annotations": [{"type": "url", "title": "t"}]}, "A:yest"),
        (None, ""),
    ],
)
def test_a_message_is_read_like_a_delta(message: Any, expected: str) -> None:
    event = read(reply(message))
    assert (event.kind, event.usage) == (EventKind.COMPLETION, COUNTS)
    assert shown(segments([event])) == expected


def test_the_body_stays_as_it_came() -> None:
    # DeepSeek keeps the connection alive with empty lines: https://api-docs.deepseek.com/quick_start/rate_limit
    body = b"\n\n" + json.dumps(reply({"content": "yes"}), indent=1).encode() + b"\n"
    event = dialect().completion(body)
    assert (event.kind, event.raw) == (EventKind.COMPLETION, body)


def test_every_choice_is_finished() -> None:
    content = reply({"content": "a"}, {"content": "b"}, {"content": "c"})
    content["choices"][1]["finish_reason"] = None
    content["choices"][2]["finish_reason"] = "length"
    assert [part.finish_reason for part in read(content).parts] == ["stop", "stop", "length"]


def test_paths_lead_into_the_message() -> None:
    (part,) = read(reply({"content": "a", "reasoning": "b"})).parts
    assert part.spans == [Span(("message", "reasoning"), "b"), Span(("message", "content"), "a")]
    (part,) = read(reply({"content": "a"}, note="n")).parts
    assert part.spans[1] == Span(("..", "note"), "n", SpanKind.OTHER)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"error": {"message": "m"}}',
        b'{"choices": null}',
        b'{"choices": {}}',
        b'{"choices": [3]}',
        b'{"choices": [{"index": 0}, {"index": 0}]}',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_what_is_no_completion_is_malformed(body: bytes) -> None:
    event = dialect().completion(body)
    assert event.kind is EventKind.MALFORMED
    assert event.detail


# Logprobs


def sampled(*tokens: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.1, "bytes": None, "top_logprobs": []} for token in tokens]}


CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "logprobs", "beside"),
    [
        ({"content": "yes"}, sampled("y", "es", "<|im_end|>"), ""),
        ({"content": "yes", "reasoning": "hm"}, sampled("hm", "\n", "</think>", "\n\n", "yes"), ""),
        ({"content": "<think>hm</think>yes"}, sampled("<think>", "hm", "</think>", "yes"), ""),
        ({"content": None, "refusal": "no"}, {"content": None, "refusal": sampled("no")["content"]}, ""),
        ({"content": "yes"}, sampled("token_id:7", "token_id:8"), ""),
        ({"content": "yes"}, sampled("yes", " STOP"), " STOP"),
        ({"content": "yes"}, {**sampled("yes"), "refusal": sampled("no")["content"]}, "no"),
        ({"content": "yes", "reasoning": "hm"}, sampled("hm", "</think>", "yes", "<|im_end|>", "more"), "more"),
        ({"content": None, "tool_calls": CALLS}, sampled("<tool_call>", "{}", "</tool_call>", " More."), " More."),
        ({"content": None}, sampled("more"), "more"),
        (None, sampled("more"), "more"),
    ],
)
def test_what_tokens_say_beside_the_message_is_text(message: Any, logprobs: dict[str, Any], beside: str) -> None:
    content = reply(message)
    content["choices"][0]["logprobs"] = None
    (said,) = read(content).parts
    content["choices"][0]["logprobs"] = logprobs
    event = read(content)
    expected = [Span(("logprobs",), beside, SpanKind.OTHER)] if beside else []
    assert event.parts[0].spans == [*said.spans, *expected]
    assert event.raw == json.dumps(content).encode()


def test_tokens_go_with_a_redaction() -> None:
    message = {"role": "assistant", "content": "yes"}
    content = reply(message)
    content["choices"][0] |= {"logprobs": sampled("yes", " more"), "token_ids": [1, 2]}
    assert rewritten(content, {0: Kept(["yes", ""])})["choices"] == reply(message)["choices"]


# Rewritten


def rewritten(content: dict[str, Any], fates: dict[int, Any]) -> dict[str, Any]:
    stream = dialect()
    body = stream.rewrite(stream.completion(json.dumps(content).encode()), fates)
    shown = json.loads(body)
    ChatCompletion.model_validate(shown)
    return shown


@pytest.mark.parametrize(
    ("cut", "content", "refusal"),
    [
        (Cut(MESSAGE, "content_filter"), MESSAGE, None),
        (Cut(MESSAGE, "content_filter", False, "</think>"), MESSAGE, None),
        (Cut(MESSAGE, "refusal"), None, MESSAGE),
    ],
)
def test_a_cut_choice_is_the_message_alone(cut: Cut, content: str | None, refusal: str | None) -> None:
    shown = rewritten(reply({"content": "bad", "reasoning": "bad"}, vendor="v"), {0: cut})
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "content_filter"}
    assert shown == {**HEAD_OF_WHOLE, "choices": [choice], "usage": COUNTS}


def test_a_note_says_what_was_cut() -> None:
    note = {"action": "cut", "phase": "answering", "level": 1}
    shown = rewritten(reply({"content": "bad"}), {0: Cut(MESSAGE, "content_filter", note=note)})
    assert shown["guardtrace"] == note


def test_an_error_is_the_whole_body() -> None:
    stream = dialect()
    event = stream.completion(json.dumps(reply({"content": "good"}, {"content": "bad"})).encode())
    body = stream.rewrite(event, {0: Kept(), 1: Cut(MESSAGE, "error")})
    assert json.loads(body)["error"] == {
        "message": MESSAGE,
        "type": "content_filter",
        "param": None,
        "code": "content_filter",
    }


def test_each_choice_has_its_own_fate() -> None:
    good = {"role": "assistant", "content": "good", "vendor": "v"}
    half = {"role": "assistant", "reasoning": "bad", "content": "good", "vendor": "v"}
    fates = {0: Kept(), 1: Kept(["[…]", "good", ""]), 2: Cut(MESSAGE, "content_filter")}
    choices = rewritten(reply(good, half, {"content": "bad"}), fates)["choices"]
    assert choices[0] == reply(good)["choices"][0]
    assert choices[1]["message"] == {"role": "assistant", "reasoning": "[…]", "content": "good"}
    assert choices[2]["message"]["content"] == MESSAGE


def test_a_message_always_has_content() -> None:
    shown = rewritten(reply({"role": "assistant", "reasoning": "bad"}), {0: Kept(["[…]"])})
    assert shown["choices"][0]["message"] == {"role": "assistant", "reasoning": "[…]", "content": None}
