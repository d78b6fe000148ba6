"""Messages: what is text in an event, and what leaves in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire.events import Event, EventKind, Phase, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.messages import MessagesStream
from tests.wire.message_events import SIGNATURE, Writing, frame, reply
from tests.wire.replies import message, segments, shown
from tests.wire.response_events import content_of
from tests.wire.well_formed_messages import check_stream


def events(*contents: dict[str, Any]) -> list[Event]:
    return message().feed(b"".join(map(frame, contents)))


def delta(index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": fields}


def start(block: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def texts(event: Event) -> list[tuple[str, Phase, SpanKind]]:
    (part,) = event.parts
    return [(span.text, segment.phase, span.kind) for span, segment in zip(part.spans, part.segments, strict=True)]


@pytest.mark.parametrize(
    ("content", "text", "phase", "kind"),
    [
        (delta(type="text_delta", text="a"), "a", Phase.ANSWERING, SpanKind.TEXT),
        (delta(type="thinking_delta", thinking="a"), "a", Phase.THINKING, SpanKind.TEXT),
        (delta(type="input_json_delta", partial_json="a"), "a", Phase.ANSWERING, SpanKind.ARGUMENTS),
        (start({"type": "thinking", "thinking": "a", "signature": ""}), "a", Phase.THINKING, SpanKind.TEXT),
        (start({"type": "tool_use", "id": "t", "name": "a", "input": {}}), "a", Phase.ANSWERING, SpanKind.ARGUMENTS),
        (delta(type="text_delta", text="", vendor="a"), "a", Phase.ANSWERING, SpanKind.OTHER),
        (delta(type="signature_delta", signature="so it goes"), "so it goes", Phase.ANSWERING, SpanKind.OTHER),
        (delta(type="thinking_delta", text="a"), "a", Phase.ANSWERING, SpanKind.OTHER),
        (delta(type="citations_delta", citation={"cited_text": "a"}), "a", Phase.ANSWERING, SpanKind.OTHER),
        (start({"type": "redacted_thinking", "data": SIGNATURE, "note": "a"}), "a", Phase.ANSWERING, SpanKind.OTHER),
        (
            start({"type": "tool_use", "id": "x " * 9, "name": "", "input": {}}),
            "x " * 9,
            Phase.ANSWERING,
            SpanKind.OTHER,
        ),
        ({"type": "vendor_note", "note": {"deep": ["a"]}}, "a", Phase.ANSWERING, SpanKind.OTHER),
        ({"type": "ping", "note": "a"}, "a", Phase.ANSWERING, SpanKind.OTHER),
        ({"type": "message_stop", "note": "a"}, "a", Phase.ANSWERING, SpanKind.OTHER),
        (
            {"type": "message_delta", "delta": {"stop_details": {"type": "refusal", "explanation": "a"}}},
            "a",
            Phase.ANSWERING,
            SpanKind.OTHER,
        ),
    ],
)
def test_each_string_that_could_be_text_is_one(
    content: dict[str, Any], text: str, phase: Phase, kind: SpanKind
) -> None:
    (event,) = events(content)
    assert texts(event) == [(text, phase, kind)]
    assert event.raw == frame(content)


def test_a_calls_keys_are_its_input() -> None:
    (event,) = events(start({"type": "tool_use", "id": "t", "name": "n", "input": {"how to": {"id": "do it"}}}))
    assert [text for text, _, _ in texts(event)] == ["n", '{"how to": {"id": "do it"}}']


@pytest.mark.parametrize("signature", ["", SIGNATURE, "0f8e3c5b7a914d2e8b6f1c3d5e7a9b0c"])
def test_a_signature_is_no_text_and_waits(signature: str) -> None:
    (event,) = events(delta(type="signature_delta", signature=signature))
    assert (texts(event), event.parts[0].waits) == ([], True)


def test_the_running_usage_is_that_of_the_end() -> None:
    found = message().feed(reply("hm", "four").stream)
    assert [event.usage for event in found if event.usage] == [{"output_tokens": 12}]
    assert [part.finish_reason for event in found for part in event.parts if part.finish_reason] == ["end_turn"]
    assert found[-1].kind is EventKind.DONE


@pytest.mark.parametrize(
    "data",
    [
        b"data: [1]\n\n",
        b"data: nonsense\n\n",
        b'data: {"note": 1}\n\n',
        frame({"type": "content_block_stop"}),
        frame({"type": "content_block_delta", "index": -1, "delta": {"type": "text_delta", "text": "a"}}),
        frame({"type": "content_block_stop", "index": True}),
        frame({"type": "content_block_stop", "index": 5000}),
        b'data: {"type": "x", "a": ' + b"[" * 200 + b"]" * 200 + b"}\n\n",
    ],
)
def test_what_cant_be_read_ends_the_stream(data: bytes) -> None:
    (event,) = message().feed(data)
    assert event.kind is EventKind.MALFORMED


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"content": "a"}', b'{"content": [' + b"[" * 200 + b"]" * 200 + b"]}"])
def test_a_whole_reply_that_isnt_one_is_malformed(body: bytes) -> None:
    assert message().completion(body).kind is EventKind.MALFORMED


def test_an_event_under_another_name_leaves_under_its_own() -> None:
    wrong = frame({"type": "ping"}).replace(b"event: ping", b"event: error")
    (event,) = message().feed(wrong)
    assert event.raw == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_openais_end_is_ours_unless_ours_was_there() -> None:
    (event,) = message().feed(b"data: [DONE]\n\n")
    assert (event.kind, event.raw) == (EventKind.DONE, frame({"type": "message_stop"}))
    *_, stop, done = message().feed(reply("", "a").stream + b"data: [DONE]\n\n")
    assert (stop.kind, done.raw) == (EventKind.DONE, b"")


def test_tags_in_a_text_are_read() -> None:
    found = message().feed(Writing().begin().text(["<th", "ink>hm</think>", "four"]).end().stream)
    assert shown(segments(found)) == "[<think>] T:hm [</think>] A:four"


# The writer


def leave(stream: MessagesStream, event: Event, *new: str) -> bytes:
    """As the gate does."""
    if not new and stream.passes(event):
        return event.raw
    return stream.rewrite(event, {part.index: Kept(new or None) for part in event.parts})


def test_a_block_is_announced_with_what_it_first_says_and_what_came_between() -> None:
    writing = Writing().begin()
    writing.add("content_block_start", index=0, content_block={"type": "text", "text": ""})
    writing.add("ping")
    writing.add("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
    stream = message()
    sent = [leave(stream, event) for event in stream.feed(writing.stream)]
    assert sent[2:] == [b"", b"", b"".join(writing.frames[2:])]


def test_a_block_that_says_nothing_leaves_as_it_came() -> None:
    writing = Writing().begin().thinking([], SIGNATURE).text([]).end()
    stream = message()
    assert b"".join(leave(stream, event) for event in stream.feed(writing.stream)) == writing.stream


def test_a_ping_that_waits_outlives_a_block_that_is_left_out() -> None:
    writing = Writing().begin()
    writing.add("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""})
    writing.add("ping")
    writing.add("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a"})
    writing.add("content_block_stop", index=0)
    stream = message()
    *_, opening, ping, text, stop = stream.feed(writing.stream)
    assert [leave(stream, opening), leave(stream, ping), leave(stream, text, "")] == [b"", b"", b""]
    assert leave(stream, stop) == ping.raw


def test_a_stream_that_hasnt_begun_begins_with_its_cut() -> None:
    stream = message()
    assert stream.cut(0, Cut("No.", "content_filter", note={"action": "cut"})) == b""
    found = check_stream(content_of(stream.usage(None, 3, expose=True) + stream.done()))
    assert (found["id"], found["model"]) == ("msg_guardtrace", "asked-for")
    assert found["content"] == [{"type": "text", "text": "No."}]
    assert found["usage"] == {"input_tokens": 0, "output_tokens": 3}


def test_nothing_comes_behind_an_error() -> None:
    stream = message()
    assert b"event: error" in stream.cut(0, Cut("No.", "error"))
    assert stream.done() == b""


def test_an_announcement_that_still_waits_at_a_cut_never_comes() -> None:
    stream = message()
    for event in stream.feed(b"".join(Writing().begin().thinking(["a"]).frames[:3])):
        leave(stream, event)
    stream.cut(0, Cut("No.", "content_filter"))
    found = content_of(stream.usage({"output_tokens": 4}, 9, expose=False))
    assert [event.get("index") for event in found] == [0, 0, 0, None]
    assert found[-1] == {
        "type": "message_delta",
        "delta": {"stop_reason": "refusal", "stop_sequence": None},
        "usage": {"output_tokens": 4},
    }


@pytest.mark.parametrize(
    ("type", "code", "theirs"),
    [
        ("upstream_error", "upstream_error", "api_error"),
        ("invalid_request_error", "invalid_value", "invalid_request_error"),
        ("server_error", "overloaded", "overloaded_error"),
        ("upstream_error", "upstream_timeout", "timeout_error"),
        ("upstream_error", 429, "rate_limit_error"),
        ("upstream_error", 503, "overloaded_error"),
        ("internal_error", None, "api_error"),
        ("overloaded_error", None, "overloaded_error"),
    ],
)
def test_errors_in_mid_stream_have_their_types(type: str, code: str | int | None, theirs: str) -> None:
    (found,) = content_of(message().error("no", type, code))
    assert found == {"type": "error", "error": {"type": theirs, "message": "no"}, "request_id": "req-1"}


def test_a_whole_reply_is_built_anew_from_what_is_known() -> None:
    body = {
        **Writing().whole(stop_reason="end_turn"),
        "vendor": "words",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
            {"type": "text", "text": "bad", "citations": [{"type": "char_location", "cited_text": "said"}]},
            {"type": "vendor_result", "content": "more"},
            {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}, "caller": {"type": "direct"}},
        ],
    }
    stream = message()
    event = stream.completion(json.dumps(body).encode())
    new = ["[gone]" if span.text == "bad" else span.text for span in event.parts[0].spans]
    found = json.loads(stream.rewrite(event, {0: Kept(new)}))
    assert found["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
        {"type": "text", "text": "[gone]", "citations": []},
        {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}},
    ]
    assert "vendor" not in found
