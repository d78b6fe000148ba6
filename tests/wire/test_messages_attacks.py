"""Messages of an upstream that hides text where a reader may not look, or writes what no client should be sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.messages import MessagesStream, messages_reply
from guardtrace_proxy.wire.messages_request import read_request
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.message_events import HEAD, SIGNATURE, Writing, frame, reply
from tests.wire.replies import LIMIT, message
from tests.wire.response_events import content_of
from tests.wire.test_messages import delta, events, start
from tests.wire.well_formed_messages import check_stream

HARM = "mix both and wait"
SHORT = HARM[:16]
"""No longer than a word in the usage may be."""
STOP = {"type": "content_block_stop", "index": 0}
END = [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]
ODD: list[Any] = [[], ["x"], {}, {"a": 1}, 3, 1.5, True, None, "", "x", -1, 2**53, 2**64, 2**80]
TOLD = [
    {"type": "redacted_thinking", "data": HARM},
    {"type": "text", "text": HARM},
    {"type": "thinking", "thinking": "", "signature": HARM},
    {"type": "tool_use", "name": "n", "input": {"a": HARM}},
]


def spans(found: list[Event]) -> list[str]:
    return [span.text for event in found for part in event.parts for span in part.spans]


def through(stream: MessagesStream, *contents: dict[str, Any], gone: str = HARM) -> bytes:
    """What leaves where each text with the harm in it is replaced."""
    sent = b""
    for event in stream.feed(b"".join(map(frame, contents))):
        texts = ["[gone]" if gone in span.text else span.text for part in event.parts for span in part.spans]
        if "[gone]" in texts:
            sent += stream.rewrite(event, {0: Kept(texts)})
        else:
            sent += event.raw if stream.passes(event) else stream.rewrite(event, {0: Kept()})
    assert gone.encode() not in sent
    return sent


@pytest.mark.parametrize("block", TOLD)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda block: {"type": "message_start", "message": {**HEAD, "content": [block]}},
        lambda block: {"type": "message_start", "message": {**HEAD, "content": block}},
        lambda block: {"type": "vendor_note", "content_block": block},
        lambda block: {"type": "vendor_note", "message": {"content": [block]}},
        lambda block: {**STOP, "content_block": block},
        lambda block: {"type": "ping", "content_block": block},
        lambda block: {"type": "message_stop", "content_block": block},
        lambda block: {**delta(type="text_delta", text=""), "content_block": block},
        lambda block: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "message": {"content": [block]}},
    ],
)
def test_a_block_where_no_block_belongs_is_text(wrap: Callable[[Any], dict[str, Any]], block: dict[str, Any]) -> None:
    event = wrap(block)
    assert HARM in "".join(spans(events(event)))
    stream = message()
    through(stream, *Writing().begin().events, start({"type": "text", "text": "a"}), event)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "vendor_note", "model": HARM},
        {"type": "vendor_note", "usage": {"a": SHORT}},
        {"type": "vendor_note", "delta": {"stop_details": {"type": "refusal", "category": "mix_both"}}},
        {"type": "ping", "model": HARM},
        {"type": "message_stop", "stop_sequence": HARM},
        {"type": "message_delta", "delta": {"stop_sequence": HARM}},
        {"type": "message_delta", "delta": {"stop_sequence": {"a": HARM}}},
        {"type": "message_delta", "delta": {"usage": {"a": SHORT}}},
        {"type": "message_start", "message": {**HEAD, "content": [], "stop_sequence": HARM}},
        {"type": "message_start", "message": {**HEAD, "content": [], "usage": {"a": {"b": {"c": SHORT}}}}},
        delta(type="text_delta", text="a", model=HARM),
        delta(type="text_delta", text="a", stop_sequence=HARM),
    ],
)
def test_a_field_holds_no_text_in_its_own_place_and_shape_alone(content: dict[str, Any]) -> None:
    assert {HARM, SHORT, "mix_both"} & set(spans(events(content)))
    through(message(), *Writing().begin().events, start({"type": "text", "text": "a"}), content, gone="mix")


def test_a_reply_may_say_which_of_the_requests_sequences_it_stopped_at() -> None:
    ending = {"type": "message_delta", "delta": {"stop_reason": "stop_sequence", "stop_sequence": HARM}}
    whole = {**HEAD, "content": [{"type": "text", "text": "a"}], "stop_sequence": HARM}
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}], "stop_sequences": [HARM]}
    stream = messages_reply(read_request(json.dumps(asked).encode()), ReplySettings(ThinkingStyle(), LIMIT, "req-1"))
    assert spans(stream.feed(frame(ending))) == []
    event = stream.completion(json.dumps(whole).encode())
    assert spans([event]) == ["a"]
    assert json.loads(stream.rewrite(event, {0: Kept(["b"])}))["stop_sequence"] == HARM


def test_encrypted_thinking_that_is_announced_with_the_message_is_left_out() -> None:
    hidden = {"type": "redacted_thinking", "data": SIGNATURE}
    begin = {"type": "message_start", "message": {**HEAD, "content": [hidden]}}
    assert content_of(through(message(), begin)) == [{"type": "message_start", "message": {**HEAD, "content": []}}]
    assert through(message(keeps_encrypted=True), begin) == frame(begin)


@pytest.mark.parametrize("label", ["a\nb", "a\tb", "如何", "a b", "x" * 65, "a\n"])
@pytest.mark.parametrize("key", ["id", "type", "tool_use_id", "role", "stop_reason"])
def test_labels_are_plain_ascii_words(label: str, key: str) -> None:
    assert label in spans(events({"type": "vendor", key: label}))
    assert label in spans([message().completion(json.dumps({**HEAD, "content": [], key: label}).encode())])
    assert label in spans(events({"type": "vendor_note", "note": {"id": label}}))


def test_a_type_that_may_not_leave_takes_its_event_with_it() -> None:
    assert through(message(), {"type": HARM, "note": "a"}) == b""


def test_a_type_writes_no_frame_of_its_own() -> None:
    stream = message()
    (event,) = stream.feed(b"data: " + json.dumps({"type": f"x\n\ndata: {HARM}"}).encode() + b"\n\n")
    assert stream.rewrite(event, {0: Kept(["[gone]"])}) == b""


@pytest.mark.parametrize("value", [None, True, 1, 1.5])
def test_a_field_whose_name_says_something_goes_with_it(value: Any) -> None:
    for fields in ({HARM: value}, {"usage": {HARM: 1}}, {"usage": {"details": {HARM: 1}}}):
        assert HARM in spans(events({"type": "message_start", "message": {**HEAD, "content": [], **fields}}))
        through(message(), {"type": "message_start", "message": {**HEAD, "content": [], **fields}})
        through(message(), {**delta(type="text_delta", text="a"), **fields})
        through(message(), start({"type": "text", "text": "a", **fields}))
        stream = message()
        event = stream.completion(json.dumps(reply("", "a").whole(**fields)).encode())
        for fate in (Kept(["[gone]" if HARM in text else text for text in spans([event])]), Cut("No.", "c")):
            assert HARM.encode() not in stream.rewrite(event, {0: fate})


def test_a_key_and_its_value_alter_nothing_where_both_stay() -> None:
    """They stand at one place."""
    stream = message()
    (event,) = stream.feed(frame({"type": "vendor_note", "a key": "a value"}))
    assert stream.rewrite(event, {0: Kept()}) == event.raw


@pytest.mark.parametrize(
    "said",
    [
        [start({"type": "text", "text": 5551234567})],
        [start({"type": "text", "text": ""}), delta(type="text_delta", text=5551234567)],
        [start({"type": "thinking", "thinking": ""}), delta(type="thinking_delta", thinking=5551234567)],
        [start({"type": "tool_use", "name": "n"}), delta(type="input_json_delta", partial_json=5551234567)],
    ],
)
def test_a_number_in_a_texts_place_is_text(said: list[dict[str, Any]]) -> None:
    assert "5551234567" in spans(events(*said))
    through(message(), *said, gone="5551234567")


def test_the_end_of_a_block_is_sent_without_what_it_says() -> None:
    stream = message()
    stop = {"type": "content_block_stop", "index": 0}
    sent = through(stream, start({"type": "text", "text": "a"}), {**stop, "note": HARM})
    assert content_of(sent)[-1] == stop


@pytest.mark.parametrize("says", ["", "so "])
def test_no_signature_stands_over_a_text_that_was_altered(says: str) -> None:
    """The block may come whole, too, streamed or not."""
    writing = Writing().begin().thinking([says, HARM, " then"]).text(["b"]).end()
    found = check_stream(content_of(through(message(), *writing.events)))
    assert found["content"][0]["signature"] == ""
    whole = {"type": "thinking", "thinking": says + HARM, "signature": SIGNATURE}
    (event,) = events(start(whole))
    assert event.parts[0].waits
    assert SIGNATURE.encode() not in through(message(), start(whole))
    stream = message()
    event = stream.completion(json.dumps({**HEAD, "content": [whole]}).encode())
    assert SIGNATURE.encode() not in stream.rewrite(event, {0: Kept(["[gone]"])})


@pytest.mark.parametrize("says", ["", "so "])
def test_a_signature_that_comes_with_its_block_vouches_for_that_alone(says: str) -> None:
    """What comes behind it may be altered."""
    whole = start({"type": "thinking", "thinking": says, "signature": SIGNATURE})
    more = delta(type="thinking_delta", thinking=HARM)
    for ending in ([STOP], END):
        assert content_of(through(message(), whole, {"type": "ping"}, *ending)) == [whole, {"type": "ping"}, *ending]
        unsigned, altered, *rest = content_of(through(message(), whole, more, *ending))
        assert unsigned == start({"type": "thinking", "thinking": says, "signature": ""})
        assert (altered, rest) == (delta(type="thinking_delta", thinking="[gone]"), ending)


@pytest.mark.parametrize("ends", [True, False])
def test_what_a_block_said_with_its_signature_stays_where_nothing_more_does(ends: bool) -> None:
    stream = message()
    whole = start({"type": "thinking", "thinking": "so ", "signature": SIGNATURE})
    sent = through(stream, *Writing().begin().events, whole)
    if ends:
        (more,) = stream.feed(frame(delta(type="thinking_delta", thinking=HARM)))
        sent += stream.rewrite(more, {0: Kept([""])}) + through(stream, STOP)
    stream.cut(0, Cut("No.", "content_filter"))
    found = check_stream(content_of(sent + stream.usage(None, 1, expose=True) + stream.done()))
    assert found["content"][0] == {"type": "thinking", "thinking": "so ", "signature": ""}


def test_a_signature_beside_a_text_waits_and_goes_where_the_block_was_altered() -> None:
    opening = start({"type": "thinking", "thinking": "", "signature": ""})
    signed = delta(type="thinking_delta", thinking="ok", signature=SIGNATURE)
    assert events(signed)[0].parts[0].waits
    assert content_of(through(message(), opening, signed, STOP)) == [opening, signed, STOP]
    gone, plain = (delta(type="thinking_delta", thinking=text) for text in ("[gone]", "ok"))
    harm = delta(type="thinking_delta", thinking=HARM)
    assert content_of(through(message(), opening, harm, signed, STOP)) == [opening, gone, plain, STOP]


def test_a_block_whose_text_is_no_string_has_an_empty_one() -> None:
    text = delta(type="text_delta", text="ok")
    sent = through(message(), start({"type": "text", "text": {"a": HARM}}), text)
    assert content_of(sent) == [start({"type": "text", "text": ""}), text]


def test_a_call_of_a_whole_reply_leaves_as_it_came_or_not_at_all() -> None:
    call = {"type": "tool_use", "id": "t", "name": "n", "input": {"a": HARM}}
    stream = message()
    event = stream.completion(json.dumps({**HEAD, "content": [call, {"type": "text", "text": "a"}]}).encode())
    texts = ["[gone]" if HARM in text else text for text in spans([event])]
    found = json.loads(stream.rewrite(event, {0: Kept(texts)}))
    assert found["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize(
    "content",
    [
        [HARM],
        [[HARM]],
        [{"type": ["text"], "text": HARM}],
        [{"type": "text", "text": {"a": HARM}}],
        [{"type": "thinking", "thinking": [HARM]}],
        [{"type": "redacted_thinking", "data": SIGNATURE, "note": HARM}],
        [{"type": "redacted_thinking", "data": SIGNATURE, HARM: None}],
        [{"type": "server_tool_use", "input": {"query": HARM}}],
        [{"type": "mcp_tool_result", "content": [{"type": "text", "text": HARM}]}],
        [{"type": "tool_use", "name": {"a": HARM}, "input": [HARM]}],
        [{"text": HARM}],
    ],
)
def test_blocks_that_nobody_knows_are_text_streamed_or_whole(content: list[Any]) -> None:
    whole = json.dumps({**HEAD, "content": content}).encode()
    stream = message()
    event = stream.completion(whole)
    texts = ["[gone]" if HARM in text else text for text in spans([event])]
    assert "[gone]" in texts
    assert HARM.encode() not in stream.rewrite(event, {0: Kept(texts)})
    through(message(), *(start(block, index) for index, block in enumerate(content)))
    assert HARM in "".join(spans(events(start(content[0]))))


def test_an_input_that_is_nested_too_deeply_is_malformed() -> None:
    deep = json.loads("[" * 80 + "]" * 80)
    call = {"type": "tool_use", "id": "t", "name": "n", "input": deep}
    assert events(start(call))[0].kind is EventKind.MALFORMED
    assert message().completion(json.dumps({**HEAD, "content": [call]}).encode()).kind is EventKind.MALFORMED


# What no client should be sent


@pytest.mark.parametrize("numbers", [(0, 1, 2), (3, 0, 1), (1, 1, 1), (0, 0, 1), (7, 9, 11), (0, 2, 1)])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_no_index_is_negative_or_the_policys(numbers: tuple[int, ...], gone: int) -> None:
    """Whatever numbers the upstream gives its blocks, and whichever is left out."""
    stream = message()
    sent = through(stream, *Writing().begin().events)
    for at, index in enumerate(numbers):
        block = {"type": "redacted_thinking", "data": SIGNATURE} if at == gone else {"type": "text", "text": "a"}
        sent += through(stream, start(block, index), {"type": "content_block_stop", "index": index})
        sent += through(stream, delta(12, type="text_delta", text="b"), delta(0, type="text_delta", text="b"))
    shown = [event["index"] for event in content_of(sent) if "index" in event]
    assert min(shown) >= 0
    announced = [event["index"] for event in content_of(sent) if event["type"] == "content_block_start"]
    stream.cut(0, Cut("No.", "content_filter"))
    opening = next(event for event in content_of(stream.usage(None, 1, expose=True)) if "content_block" in event)
    assert opening["index"] > max(announced)


def test_events_behind_the_end_of_their_block_are_counted_as_it_was() -> None:
    stream = message()
    hidden = start({"type": "redacted_thinking", "data": SIGNATURE})
    sent = through(stream, *Writing().begin().events, hidden, start({"type": "text", "text": "a"}, 1))
    sent += through(stream, {"type": "content_block_stop", "index": 1}, delta(1, type="text_delta", text=HARM))
    assert [event["index"] for event in content_of(sent) if "index" in event] == [0, 0, 0]


def test_a_block_that_never_ends_is_announced_at_the_end_of_the_message() -> None:
    writing = Writing().begin()
    writing.add("content_block_start", index=0, content_block={"type": "text", "text": ""})
    writing.add("ping")
    writing.end()
    assert through(message(), *writing.events) == writing.stream


def test_pings_wait_behind_an_announcement_and_not_without_end() -> None:
    stream = message()
    opening = start({"type": "text", "text": ""})
    assert through(stream, opening, *[{"type": "ping"}] * 100) == b""
    sent = through(stream, *[{"type": "ping"}] * 5_000)
    assert sent.count(b"event: ping") > 4_000
    sent += through(stream, delta(type="text_delta", text="a"))
    assert sent.count(b"event: ping") == 5_100


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    "field",
    [
        "id",
        "role",
        "model",
        "usage",
        "content",
        "message",
        "delta",
        "content_block",
        "text",
        "stop_reason",
        "signature",
    ],
)
def test_no_value_of_a_field_keeps_a_cut_from_being_written(field: str, odd: Any) -> None:
    writing = Writing().begin().thinking(["fine ", HARM]).text([HARM]).end()
    whole: Any = writing.whole()
    for event in writing.events:
        for fields in (event, event.get("message"), event.get("delta"), event.get("content_block")):
            if isinstance(fields, dict) and field in fields:
                fields[field] = odd
    for many in range(len(writing.events)):
        stream = message()
        through(stream, *writing.events[:many])
        stream.cut(0, Cut("Stopped.", "content_filter"))
        *_, last, stop = content_of(stream.usage(None, 1, expose=True) + stream.done())
        assert (last["delta"]["stop_reason"], stop) == ("refusal", {"type": "message_stop"})
    for fields in (whole, *whole["content"]):
        if field in fields and field != "content":
            fields[field] = odd
    stream = message()
    event = stream.completion(json.dumps(whole).encode())
    found = json.loads(stream.rewrite(event, {0: Cut("Stopped.", "content_filter")}))
    assert found["content"] == [{"type": "text", "text": "Stopped."}]
    assert all(isinstance(found[key], str) for key in ("id", "type", "role", "model"))


@pytest.mark.parametrize("kind", ["text_delta", "thinking_delta", "input_json_delta", "signature_delta", "vendor"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_delta_may_say_anything_in_any_field(kind: str, odd: Any) -> None:
    for key in ("text", "thinking", "partial_json", "signature", "type", "vendor"):
        event = delta(**{"type": kind, "text": "a", key: odd, "note": HARM})
        through(message(), start({"type": "thinking", "thinking": "b", "signature": ""}), event)
        assert HARM in spans(events(event))
