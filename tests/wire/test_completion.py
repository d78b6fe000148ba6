"""Completions: what is read of them, and what is written in the place of what may not leave."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from guardtrace_proxy.wire.completion import completion_reply
from guardtrace_proxy.wire.completion_request import read_request
from guardtrace_proxy.wire.events import Event, EventKind, Phase, SpanKind
from guardtrace_proxy.wire.fates import Cut, Fate, Kept
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.replies import LIMIT, completion, segments, shown, sse

HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 1750000000, "model": "m"}
LOGPROBS = {"text_offset": [0], "token_logprobs": [-0.1], "tokens": ["a"], "top_logprobs": [{"a": -0.1}]}
LONG = "mix both and wait " * 20
"""More than a name may have."""


def chunk(text: Any, index: int = 0, finish: str | None = None, **beside: Any) -> dict[str, Any]:
    choice = {"index": index, "text": text, "finish_reason": finish}
    return {**HEAD, "choices": [choice | beside]}


def decoded(frames: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames.split(b"\n\n") if frame]


def rewritten(event: Event, fates: dict[int, Fate]) -> dict[str, Any]:
    stream = completion()
    frames = stream.rewrite(event, fates)
    found: dict[str, Any] = json.loads(frames.removeprefix(b"data: "))
    Completion.model_validate(found)
    return found


@pytest.mark.parametrize(
    ("prompts", "style", "expected"),
    [
        (["q"], ThinkingStyle(), ["A:a [</think>] A:b"]),
        (["q", "x <think>\n"], ThinkingStyle(), ["A:a [</think>] A:b", "T:a [</think>] A:b"]),
        (["<think>x</think>"], ThinkingStyle(), ["A:a [</think>] A:b"]),
        # No template stands before a prompt.
        (["q"], ThinkingStyle(starts_open=True), ["A:a [</think>] A:b"]),
        (["x <think>"], ThinkingStyle("field"), ["A:a</think>b"]),
        (
            ["q", "x <t>"],
            ThinkingStyle("custom", True, "<t>", "</think>"),
            ["A:a [</think>] A:b", "T:a [</think>] A:b"],
        ),
        (["q", "x</think>y"], ThinkingStyle("custom", True, None, "</think>"), ["A:a [</think>] A:b"] * 2),
    ],
)
def test_each_prompt_says_whether_its_choices_begin_as_thinking(
    prompts: list[str], style: ThinkingStyle, expected: list[str]
) -> None:
    request = read_request(json.dumps({"model": "m", "prompt": prompts, "n": 2}).encode())
    reply = completion_reply(request, ReplySettings(style, LIMIT, ""))
    stream = sse(*(chunk("a</think>b", index, "stop") for index in range(request.choices)))
    events = reply.feed(stream) + reply.end()
    assert [shown(segments(events, index)) for index in range(request.choices)] == [
        each for each in expected for _ in "12"
    ]


@pytest.mark.parametrize(
    ("beside", "found"),
    [
        ({"vendor": "x"}, [(SpanKind.OTHER, Phase.ANSWERING, "x"), (SpanKind.TEXT, Phase.ANSWERING, "a")]),
        ({"reasoning": "x"}, [(SpanKind.OTHER, Phase.THINKING, "x"), (SpanKind.TEXT, Phase.ANSWERING, "a")]),
        (
            {"logprobs": {"words": ["x"]}},
            [(SpanKind.OTHER, Phase.ANSWERING, "x"), (SpanKind.TEXT, Phase.ANSWERING, "a")],
        ),
        ({"logprobs": LOGPROBS}, [(SpanKind.TEXT, Phase.ANSWERING, "a")]),
        ({"stop_reason": 7, "token_ids": [1], "prompt_logprobs": None}, [(SpanKind.TEXT, Phase.ANSWERING, "a")]),
        *[
            ({name: LONG}, [(SpanKind.OTHER, Phase.ANSWERING, LONG), (SpanKind.TEXT, Phase.ANSWERING, "a")])
            for name in ("finish_reason", "stop_reason", "matched_stop")
        ],
    ],
)
def test_strings_that_nobody_knows_are_text(beside: dict[str, Any], found: list[Any]) -> None:
    for event in (
        completion().feed(sse(chunk("a", **beside)))[0],
        completion().completion(json.dumps(chunk("a", **beside)).encode()),
    ):
        (part,) = event.parts
        kinds = [(span.kind, segment.phase, span.text) for span, segment in zip(part.spans, part.segments, strict=True)]
        assert kinds == found


def test_text_that_is_no_string_is_text_all_the_same() -> None:
    (event,) = completion().feed(sse(chunk(["a", {"b": "c"}])))
    assert [span.text for span in event.parts[0].spans] == ["a", "c"]


def test_logprobs_ahead_of_their_text_wait_for_it() -> None:
    ahead, text = completion().feed(sse(chunk("", logprobs=LOGPROBS), chunk("a")))
    assert (ahead.parts[0].unsaid, text.parts[0].unsaid) == (1, 0)
    stream = completion()
    (_, end) = stream.feed(sse(chunk("", logprobs=LOGPROBS), chunk("", finish="stop")))
    assert [span.text for span in end.parts[0].spans] == ["a"]


@pytest.mark.parametrize(
    ("text", "tokens", "beside"),
    [
        ("Sure.", ["Sure", "."], []),
        ("<think>hm</think>Sure.", ["<think>", "hm", "</think>", "Sure."], []),
        ("Sure.", ["token_id:7", "token_id:8"], []),
        ("Sure.", ["Sure.", " hidden harmful text"], [" hidden harmful text"]),
        ("", ["all of it"], ["all of it"]),
    ],
)
def test_what_tokens_say_beside_a_whole_text_is_text(text: str, tokens: list[str], beside: list[str]) -> None:
    body = chunk(text, finish="stop", logprobs={**LOGPROBS, "tokens": tokens})
    (part,) = completion().completion(json.dumps(body).encode()).parts
    assert [span.text for span in part.spans if span.kind is SpanKind.OTHER] == beside
    assert [span.text for span in part.spans if span.kind is SpanKind.TEXT] == ([text] if text else [])


def test_ids_in_the_place_of_tokens_are_ids() -> None:
    ids = {**LOGPROBS, "tokens": ["token_id:9906"]}
    events = completion().feed(sse(*[chunk("a", logprobs=ids)] * 3, chunk("", logprobs=ids), chunk("a", finish="stop")))
    assert [event.parts[0].unsaid for event in events] == [0, 0, 0, 1, 0]
    assert "".join(span.text for event in events for span in event.parts[0].spans) == "aaaa"


def test_a_redaction_keeps_nothing_that_repeats_the_text() -> None:
    (event,) = completion().feed(sse(chunk("a", logprobs=LOGPROBS, token_ids=[1], vendor="a", finish="stop")))
    found = rewritten(event, {0: Kept(["", "[gone]"])})
    assert found["choices"] == [{"index": 0, "text": "[gone]", "logprobs": None, "finish_reason": "stop"}]
    (event,) = completion().feed(sse(chunk("a")))
    assert completion().rewrite(event, {0: Kept([""])}) == b""


@pytest.mark.parametrize("shape", ["content_filter", "refusal"])
def test_a_cut_says_the_message_and_ends_its_choice(shape: Any) -> None:
    stream = completion()
    stream.feed(sse(chunk("<think>a")))
    frames = decoded(stream.cut(1, Cut("Stopped.", shape, close="</think>", note={"action": "cut"})))
    Completion.model_validate(frames[-1])
    for frame in frames:
        assert HEAD.items() <= frame.items()
    assert [frame["choices"] for frame in frames] == [
        [{"index": 1, "text": "</think>\n\nStopped.", "logprobs": None, "finish_reason": None}],
        [{"index": 1, "text": "", "logprobs": None, "finish_reason": "content_filter"}],
    ]
    assert frames[1]["guardtrace"] == {"action": "cut"}


def test_a_whole_reply_is_cut_choice_by_choice() -> None:
    stream = completion(prompts=2)
    body = {**HEAD, "choices": [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate("ab")]}
    event = stream.completion(json.dumps(body).encode())
    assert (event.kind, [part.finish_reason for part in event.parts]) == (EventKind.COMPLETION, ["stop", "stop"])
    found = json.loads(stream.rewrite(event, {0: Cut("Stopped.", "content_filter"), 1: Kept()}))
    assert [(each["text"], each["finish_reason"]) for each in found["choices"]] == [
        ("Stopped.", "content_filter"),
        ("b", "stop"),
    ]
    error = json.loads(stream.rewrite(event, {0: Cut("Stopped.", "error"), 1: Kept()}))
    assert error["error"]["code"] == "content_filter"


def test_what_is_no_completion_is_malformed() -> None:
    for body in (b"[]", b"{}", b"x", b'{"choices": 1}'):
        assert completion().completion(body).kind is EventKind.MALFORMED
