"""Responses: what is read of their events, and what is written in the place of what may not leave."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guardtrace_proxy.wire.events import Event, EventKind, Phase, SpanKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.responses import ResponsesStream
from tests.wire.replies import response, segments, shown
from tests.wire.response_events import HEAD, Writing, content_of, frame, reply

SECRET = "gAAAAABo" + "Zx9Kq3VbT7mLw2Rc" * 8


def read(*events: dict[str, Any], stream: ResponsesStream | None = None) -> list[Event]:
    stream = stream or response()
    return stream.feed(b"".join(map(frame, events))) + stream.end()


def spans(events: list[Event]) -> list[tuple[str, str]]:
    return [(span.kind.name, span.text) for event in events for part in event.parts for span in part.spans]


def through(stream: ResponsesStream, events: list[Event], gone: str = "") -> list[dict[str, Any]]:
    """What the client gets where the spans that say ``gone`` are replaced."""
    sent = b""
    for event in events:
        texts = ["[gone]" if span.text == gone else span.text for span in event.parts[0].spans]
        if gone in [span.text for span in event.parts[0].spans] or not stream.passes(event):
            sent += stream.rewrite(event, {0: Kept(texts)})
        else:
            sent += event.raw
    return content_of(sent)


def delta(text: Any, **more: Any) -> dict[str, Any]:
    where = {"item_id": "msg_0", "output_index": 0, "content_index": 0}
    return {"type": "response.output_text.delta", "sequence_number": 4, **where, "delta": text, **more}


def logprobs(*tokens: str) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []} for token in tokens]


def test_a_text_is_said_once_however_often_it_is_repeated() -> None:
    events = read(*reply("well then", "four it is").events)
    assert shown(segments(events)) == "T:well then  A:four it is "
    assert {kind for kind, _ in spans(events)} == {"TEXT"}


def test_a_text_that_comes_only_with_its_end_is_text() -> None:
    writing = Writing().begin().item("message", ["fine"]).end()
    events = read(*(event for event in writing.events if "delta" not in event))
    assert spans(events) == [("TEXT", "fine")]


def test_a_repetition_that_says_something_else_is_text_of_its_own() -> None:
    writing = Writing().begin().item("message", ["fine"]).end()
    writing.events[-1]["response"]["output"] = [
        {**writing.output[0], "content": [{"type": "output_text", "text": "bad"}]}
    ]
    events = read(*writing.events)
    assert spans(events) == [("TEXT", "fine"), ("TEXT", "bad")]
    assert events[-1].parts[0].finish_reason == "completed"


def test_two_calls_of_one_name_are_both_text() -> None:
    events = read(*Writing().begin().call("run", ["{}"]).call("run", ["{}"]).end().events)
    assert spans(events) == [("ARGUMENTS", text) for text in ("run", "{}", "run", "{}")]


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (delta("a", vendor="x y"), [("OTHER", "x y"), ("TEXT", "a")]),
        (delta({"content": "We"}), [("OTHER", "We")]),
        (delta("a", logprobs=logprobs("a")), [("TEXT", "a")]),
        (delta("a", logprobs=logprobs("b")), [("TEXT", "a"), ("OTHER", "b")]),
        (delta("a", logprobs=[{"words": "b c"}]), [("TEXT", "a"), ("OTHER", "b c")]),
        (delta("a", obfuscation="x y"), [("TEXT", "a"), ("OTHER", "x y")]),
        (delta("a", item_id="two words"), [("OTHER", "two words"), ("TEXT", "a")]),
        ({"type": "response.vendor.note", "note": {"a b": "c"}}, [("OTHER", "a b"), ("OTHER", "c")]),
        ({"type": "response.web_search_call.searching", "item_id": "ws_1", "output_index": 0}, []),
        (
            {"type": "response.output_text.annotation.added", "annotation": {"type": "url_citation", "title": "x"}},
            [("OTHER", "x")],
        ),
        ({"type": "response.created", "response": {**HEAD, "instructions": "as asked", "output": []}}, []),
        (
            {
                "type": "response.created",
                "response": {**HEAD, "metadata": {"a b": "as asked", "c": "d e"}, "output": []},
            },
            [("OTHER", "a b"), ("OTHER", "d e")],
        ),
        (
            {"type": "response.created", "response": {**HEAD, "vendor": "x", "output": ["y"]}},
            [("OTHER", "x"), ("OTHER", "y")],
        ),
        (
            {"type": "response.failed", "response": {"error": {"code": "x", "message": "m"}}},
            [("OTHER", "x"), ("OTHER", "m")],
        ),
    ],
)
def test_strings_that_nobody_knows_are_text(event: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert sorted(spans(read(event, stream=response(asked=["as asked"])))) == sorted(found)


def test_a_string_that_nobody_knows_is_text_once_at_its_place_in_an_item() -> None:
    part = {"type": "output_text", "text": "", "title": "a page"}
    item = {"id": "msg_0", "type": "message", "content": [part], "note": "x"}
    where = {"output_index": 0, "item_id": "msg_0", "content_index": 0}
    events = read(
        {"type": "response.content_part.done", **where, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "note": "y"}},
        {"type": "response.completed", "response": {**HEAD, "output": [item]}},
    )
    assert spans(events) == [("OTHER", text) for text in ("a page", "x", "y", "x")]


def test_a_string_beside_items_is_text_each_time() -> None:
    note = {"type": "response.vendor.note", "note": "x"}
    assert spans(read(note, note)) == [("OTHER", "x"), ("OTHER", "x")]


def test_the_same_is_known_in_pieces_and_reading_is_not_quadratic_in_strings_that_nobody_knows() -> None:
    events = read(*(delta("a", vendor=f"word {number}") for number in range(2000)))
    assert len(spans(events)) == 4000


@pytest.mark.parametrize("data", [b"data: [1]\n\n", b"data: {}\n\n", b"data: x\n\n", b'data: {"type": 1}\n\n'])
def test_what_is_no_event_ends_the_stream(data: bytes) -> None:
    assert [event.kind for event in response().feed(data)] == [EventKind.MALFORMED]


def test_an_upstreams_error_is_bounded_and_numbered_behind_what_left() -> None:
    stream = response()
    error = {"type": "error", "message": "m" * 600, "code": "x", "raw": "text", "sequence_number": 7}
    text, event, behind = stream.feed(b"".join(map(frame, (delta("a"), error, delta("b", sequence_number=8)))))
    assert event.kind is EventKind.ERROR
    assert stream.passes(text)
    assert not stream.passes(event)
    (content,) = content_of(stream.rewrite(event, {}))
    assert (content["message"], content["code"], content["sequence_number"]) == ("m" * 500, "x", 5)
    assert "raw" not in content
    assert stream.passes(behind)
    (content,) = content_of(stream.error("Broken.", "upstream_error", None))
    assert content["sequence_number"] == 9


def test_an_error_is_numbered_behind_the_frames_of_a_cut() -> None:
    stream = response()
    error, *_ = stream.feed(frame({"type": "error", "message": "m", "sequence_number": 1}))
    stream.cut(0, Cut("Stopped.", "content_filter"))
    (last,) = content_of(stream.usage(None, 0, expose=False))
    (content,) = content_of(stream.rewrite(error, {}))
    assert content["sequence_number"] == last["sequence_number"] + 1


def test_an_event_under_another_name_gets_its_own() -> None:
    data = frame(delta("a")).replace(b"event: response.output_text.delta", b"event: response.completed")
    (event, *_) = response().feed(data)
    assert event.raw == frame(delta("a"))


def test_thinking_between_tags_is_thinking_in_messages_alone() -> None:
    writing = Writing().begin().item("message", ["<think>a</th", "ink>b"]).call("run", ["<think>"]).end()
    assert shown(segments(read(*writing.events))) == "[<think>] T:a [</think>] A:brun<think>"


def test_what_was_replaced_is_replaced_wherever_it_is_said() -> None:
    stream = response()
    writing = Writing(final_ids=False).begin().item("reasoning", ["a ", "bad ", "c"]).item("message", ["fine"]).end()
    found = through(stream, read(*writing.events, stream=stream), "bad ")
    assert "bad" not in json.dumps(found)
    said = [event.get("text") or (event.get("part") or {}).get("text") for event in found]
    assert [text for text in said if text] == ["a [gone]c", "a [gone]c", "fine", "fine"]
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "a [gone]c"
    assert found[-1]["response"]["output"][1] == {**writing.output[1], "id": "msg_1_again"} | {
        "content": [{"type": "output_text", "text": "fine", "annotations": [], "logprobs": []}]
    }


def test_events_without_what_was_replaced_keep_their_bytes() -> None:
    stream = response()
    writing = Writing().begin().item("reasoning", ["bad"]).item("message", ["fine"])
    events = read(*writing.events, stream=stream)
    found = through(stream, events, "bad")
    message = [event for event in writing.events if event.get("output_index") == 1]
    assert [event for event in found if event.get("output_index") == 1] == message


def test_a_delta_of_which_nothing_is_left_is_not_sent() -> None:
    stream = response()
    (event,) = read(delta("a", obfuscation="xyz"), stream=stream)
    assert stream.rewrite(event, {0: Kept([""])}) == b""
    (content,) = content_of(stream.rewrite(event, {0: Kept(["b"])}))
    assert content == delta("b")


@pytest.mark.parametrize("shape", ["content_filter", "refusal", "error"])
def test_a_cut_before_anything_was_begun(shape: Any) -> None:
    stream = response()
    frames = stream.cut(0, Cut("Stopped.", shape))
    if shape == "error":
        (error,) = content_of(frames)
        assert (error["type"], error["error"]["code"]) == ("error", "content_filter")
        return
    found = content_of(frames + stream.usage(None, 3, expose=True))
    assert [event["sequence_number"] for event in found] == list(range(7))
    assert found[-1]["response"]["model"] == "asked-for"
    assert found[-1]["guardtrace"] == {"usage_estimated": True}


def test_parts_that_were_never_announced_are_closed_with_what_they_said() -> None:
    stream = response()
    item = {"type": "message", "id": "msg_0", "role": "assistant", "content": [], "status": "in_progress"}
    added = {"type": "response.output_item.added", "sequence_number": 3, "output_index": 0, "item": item}
    through(stream, read(added, delta("so far"), stream=stream))
    found = content_of(stream.cut(0, Cut("Stopped.", "content_filter")))
    closed = next(event["item"] for event in found if event["type"] == "response.output_item.done")
    assert (closed["status"], closed["content"][0]["text"]) == ("incomplete", "so far")
    assert found[0]["sequence_number"] == 5


def test_encrypted_reasoning_is_taken_out() -> None:
    item = {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": SECRET}
    done = {"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": item}
    stream = response()
    (found,) = through(stream, read(done, stream=stream))
    assert found["item"] == {key: value for key, value in item.items() if key != "encrypted_content"}
    stream = response(keeps_encrypted=True)
    assert through(stream, read(done, stream=stream)) == [done]
    # What is called encrypted and can be read is text.
    readable = {**done, "item": {**item, "encrypted_content": "plain words"}}
    assert spans(read(readable, stream=response(keeps_encrypted=True))) == [("OTHER", "plain words")]


def test_marks_stand_on_the_last_event_alone() -> None:
    stream = response()
    events = read(*reply("", "fine").events, stream=stream)
    assert stream.note(0, {"action": "flag"}) == b""
    found = through(stream, events)
    assert found[-1] == {**reply("", "fine").events[-1], "guardtrace": {"action": "flag"}}
    assert found[:-1] == reply("", "fine").events[:-1]


def test_a_whole_reply_is_one_choice() -> None:
    event = response().completion(json.dumps(reply("hm", "fine").whole(vendor="x y")).encode())
    assert (event.kind, event.parts[0].finish_reason) == (EventKind.COMPLETION, "completed")
    assert spans([event]) == [("TEXT", "hm "), ("TEXT", "fine "), ("OTHER", "x y")]
    assert [segment.phase for segment in event.parts[0].segments][:2] == [Phase.THINKING, Phase.ANSWERING]
    assert SpanKind.OTHER in {span.kind for span in event.parts[0].spans}


@pytest.mark.parametrize("data", [b"x", b"[]", b"{}", b'{"output": 1}'])
def test_what_is_no_response_is_malformed(data: bytes) -> None:
    assert response().completion(data).kind is EventKind.MALFORMED


def test_a_whole_reply_is_rebuilt_without_what_nobody_knows() -> None:
    stream = response()
    event = stream.completion(json.dumps(reply("bad", "fine").whole(vendor="x y")).encode())
    found = json.loads(stream.rewrite(event, {0: Kept(["[gone]", "fine ", "x y"])}))
    assert "vendor" not in found
    assert found["output"][0]["content"][0]["text"] == "[gone]"
    assert found["usage"] == reply("bad", "fine").whole()["usage"]
