"""Responses of an upstream that hides text where a reader may not look, or writes what no client should be sent."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from guardtrace_proxy.wire import responses_said
from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.responses import ResponsesStream
from tests.wire.replies import response
from tests.wire.response_events import HEAD, Writing, content_of, frame, reply
from tests.wire.test_responses import delta, logprobs, read, spans, through

HARM = "mix both and wait"
ODD: list[Any] = [[], ["x"], {}, {"a": 1}, 3, 1.5, True, None, "", "x", -1, 2**53, 2**64, 2**80]


def item(**fields: Any) -> dict[str, Any]:
    return {"type": "response.output_item.done", "sequence_number": 3, "output_index": 0, "item": fields}


def fates_of(event: Any, gone: str) -> dict[int, Any]:
    return {0: Kept(["" if span.text == gone else span.text for span in event.parts[0].spans])}


def test_a_name_that_says_something_never_leaves() -> None:
    data = f"event: {HARM}\ndata: [DONE]\n\n".encode()
    assert [event.raw for event in response().feed(data)] == [b"data: [DONE]\n\n"]


def test_tokens_that_may_not_leave_take_their_logprobs_with_them() -> None:
    stream = response()
    found = through(stream, read(delta("a", logprobs=logprobs(HARM)), stream=stream), HARM)
    assert [(event["delta"], event["logprobs"]) for event in found] == [("a", [])]


def test_tokens_of_a_text_that_was_redacted_leave_beside_no_other() -> None:
    stream = response()
    done = {**delta(None), "type": "response.output_text.done", "text": "fine", "logprobs": logprobs(HARM)}
    del done["delta"]
    events = read(delta(HARM), done, stream=stream)
    assert spans(events) == [("TEXT", HARM), ("TEXT", "fine"), ("OTHER", HARM)]
    assert HARM not in json.dumps(through(stream, events, HARM))


def test_a_delta_of_another_shape_says_itself_and_not_what_came_before() -> None:
    stream = response()
    events = read(delta(HARM), delta(" and", vendor=1), delta(" so", logprobs=logprobs("x")), stream=stream)
    assert [event["delta"] for event in through(stream, events, HARM)] == ["[gone]", " and", " so"]


@pytest.mark.parametrize(
    ("echo", "found"),
    [
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}, "truncation": "disabled"}, []),
        ({"tools": [{"type": "function", "name": "look", "strict": True}]}, []),
        ({"tools": HARM.split()}, HARM.split()),
        ({"metadata": dict(enumerate(HARM.split()))}, HARM.split()),
        ({"reasoning": {"summary": HARM.split() * 3}}, HARM.split() * 3),
    ],
)
def test_what_repeats_the_request_says_no_more_of_its_own_than_defaults(echo: dict[str, Any], found: list[str]) -> None:
    created = {"type": "response.created", "sequence_number": 0, "response": {**HEAD, **echo}}
    assert spans(read(created, stream=response(asked=["look"]))) == [("OTHER", word) for word in found]
    stream = response()
    assert HARM.split()[0] not in json.dumps(through(stream, read(created, stream=stream), HARM.split()[0]))


@pytest.mark.parametrize(
    "said",
    [
        {**delta(None), "delta": 5551234567},
        {**delta(None), "type": "response.output_text.done", "text": 5551234567},
        {"type": "response.content_part.done", "part": {"type": "output_text", "text": 5551234567}},
        item(type="function_call", id="fc_0", arguments={"n": 5551234567}),
        item(type="custom_tool_call", id="ct_0", input={"id": "5551234567"}),
        item(type="message", id="msg_0", content=[5551234567]),
    ],
)
def test_what_stands_in_a_texts_place_is_text(said: dict[str, Any]) -> None:
    stream = response()
    events = read(said, stream=stream)
    assert ("OTHER", "5551234567") in spans(events)
    assert "5551234567" not in json.dumps(through(stream, events, "5551234567"))


@pytest.mark.parametrize("secret", [{"a": HARM}, [HARM], HARM])
def test_what_is_called_encrypted_and_can_be_read_is_text(secret: Any) -> None:
    done = item(type="reasoning", id="rs_0", summary=[], encrypted_content=secret)
    assert spans(read(done, stream=response(keeps_encrypted=True))) == [("OTHER", HARM)]
    stream = response()
    assert HARM not in json.dumps(through(stream, read(done, stream=stream)))


@pytest.mark.parametrize("field", ["instructions", "metadata", "text", "reasoning", "prompt", "tools", "image"])
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"a": text}, lambda text: [{text: 1}]])
def test_what_seems_to_repeat_the_request_is_in_it(field: str, wrap: Any) -> None:
    created = {"type": "response.created", "sequence_number": 0, "response": {**HEAD, field: wrap(HARM), "output": []}}
    assert spans(read(created)) == [("OTHER", HARM)]
    assert spans(read(created, stream=response(asked=[HARM]))) == []
    stream = response()
    (found,) = through(stream, read(created, stream=stream), HARM)
    assert HARM not in json.dumps(found)
    assert found["response"]["id"] == "resp_1"


def test_a_cut_of_a_whole_reply_keeps_nothing_that_was_judged() -> None:
    stream = response()
    event = stream.completion(json.dumps(reply("", "fine").whole(metadata={"a": HARM}, vendor=HARM)).encode())
    found = stream.rewrite(event, {0: Cut("Stopped.", "content_filter")})
    assert HARM.encode() not in found
    assert json.loads(found)["output"][0]["content"][0]["text"] == "Stopped."


@pytest.mark.parametrize("label", ["a\nb", "a\tb", "\u5982\u4f55", "a\u00a0b", "x" * 129, "a\n"])
@pytest.mark.parametrize("where", ["type", "item_id"])
def test_labels_are_plain_ascii_words(label: str, where: str) -> None:
    event = {**delta("a"), "type": "response.x", where: label}
    assert ("OTHER", label) in spans(read(event))
    if where == "item_id":
        assert ("OTHER", label) in spans(read(delta("a", item_id=label)))


def test_an_event_whose_type_may_not_leave_is_dropped() -> None:
    stream = response()
    event = {**item(type="message", id="msg_0", content=[]), "type": HARM}
    assert through(stream, read(event, stream=stream), HARM) == []


@pytest.mark.parametrize("gone", ["a key", "a value"])
def test_a_key_and_its_value_have_fates_of_their_own(gone: str) -> None:
    stream = response()
    done = item(type="mcp_call", id="mcp_0", note={"a key": "a value"})
    first, again = read(done, done, stream=stream)
    assert gone.encode() not in stream.rewrite(first, fates_of(first, gone))
    assert not stream.passes(again)
    assert gone.encode() not in stream.rewrite(again, {0: Kept()})


@pytest.mark.parametrize("value", [None, True, 1, 1.5])
def test_a_field_whose_name_says_something_goes_with_it(value: Any) -> None:
    """Of the response, and of its counts."""
    for fields in ({HARM: value}, {"usage": {"input_tokens": 1, HARM: value, "details": {HARM: value}}}):
        stream = response()
        created = {"type": "response.created", "sequence_number": 0, "response": {**HEAD, "output": [], **fields}}
        (found,) = through(stream, read(created, stream=stream), HARM)
        assert HARM not in json.dumps(found)
        assert HARM.encode() not in stream.usage(fields.get("usage"), 1, expose=True)


def test_of_two_texts_that_say_the_same_each_has_its_own_fate() -> None:
    stream = response()
    writing = Writing(final_ids=False).begin().item("message", ["same"]).item("message", ["same"]).end()
    sent, said = b"", 0
    for event in read(*writing.events, stream=stream):
        said += bool(event.parts[0].spans)
        if event.parts[0].spans and said == 2:
            sent += stream.rewrite(event, {0: Kept(["[gone]"])})
        else:
            sent += event.raw if stream.passes(event) else stream.rewrite(event, {0: Kept()})
    output = content_of(sent)[-1]["response"]["output"]
    assert [each["content"][0]["text"] for each in output] == ["same", "[gone]"]


@pytest.mark.parametrize(
    "output",
    [
        [{"type": "message", "content": HARM}],
        [{"type": "reasoning", "content": [HARM], "summary": {"a": "b"}}],
        [{"type": "mcp_call", "output": HARM}],
        [{"type": "web_search_call", "action": {"query": HARM}}],
        [{"type": ["message"], "content": [{"type": "output_text", "text": HARM}]}],
        [{"type": "message", "content": [{"type": {"output_text": 1}, "text": HARM}]}],
        [{"type": "function_call", "arguments": {"a": HARM}}],
        [[HARM]],
        [HARM],
        {"a": HARM},
    ],
)
def test_items_that_nobody_knows_are_text_streamed_or_whole(output: Any) -> None:
    completed = {"type": "response.completed", "sequence_number": 1, "response": {**HEAD, "output": output}}
    assert HARM in [text for _, text in spans(read(completed))]
    if isinstance(output, list):
        event = response().completion(json.dumps({**HEAD, "output": output}).encode())
        assert HARM in [text for _, text in spans([event])]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    "field", ["id", "type", "item_id", "output_index", "content_index", "sequence_number", "content", "part", "usage"]
)
def test_no_value_of_a_field_keeps_a_cut_from_being_written(field: str, odd: Any) -> None:
    writing = Writing().begin().item("message", ["fine ", HARM]).end()
    for event in writing.events:
        response = event.get("response") or {}
        for fields in (event, event.get("item"), event.get("part"), response):
            if isinstance(fields, dict) and field in fields and not (field == "type" and fields is event):
                fields[field] = odd
    for many in range(len(writing.events) + 1):
        stream = response_to(writing.events[:many])
        found = content_of(
            stream.cut(0, Cut("Stopped.", "content_filter"))
            + stream.usage(None, 1, expose=True)
            + stream.error("Broken.", "upstream_error", None)
        )
        assert [event["type"] for event in found][-2:] == ["response.incomplete", "error"]
        numbers = [event["sequence_number"] for event in found]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert HARM not in json.dumps(found)


def response_to(events: list[dict[str, Any]]) -> ResponsesStream:
    """A reply in which every text with the harm in it was replaced, however often it was said."""
    stream = response()
    sent = b""
    for event in stream.feed(b"".join(map(frame, events))):
        texts = ["[gone]" if HARM in span.text else span.text for span in event.parts[0].spans]
        altered = "[gone]" in texts or not stream.passes(event)
        sent += stream.rewrite(event, {0: Kept(texts)}) if altered else event.raw
    assert HARM.encode() not in sent
    return stream


@pytest.mark.parametrize("numbers", [(5, 5, 5), (9, 3, 1), (0, 0, 0)])
def test_numbers_that_go_back_are_followed(numbers: tuple[int, ...]) -> None:
    stream = response()
    through(stream, read(*(delta("a", sequence_number=number) for number in numbers), stream=stream))
    assert content_of(stream.cut(0, Cut("Stopped.", "content_filter")))[0]["sequence_number"] == numbers[-1] + 1


def letters(*pieces: str) -> Writing:
    """A message a piece."""
    writing = Writing().begin()
    for piece in pieces:
        writing.item("message", [piece])
    return writing


def text_of(events: list[Any]) -> str:
    return "".join(text for _, text in spans(events))


def test_deltas_that_nobody_knows_say_each_piece_however_often_it_came() -> None:
    pieces = [*"aeghiklmn ot", *HARM]
    deltas = [{"type": "response.mcp_call_arguments.delta", "item_id": "mcp_0", "delta": each} for each in pieces]
    assert text_of(read(*deltas)).endswith(HARM)


def test_strings_of_a_whole_reply_that_nobody_knows_are_text_however_often_one_occurs() -> None:
    output = [{"type": "mcp_call", "id": "mcp_0", "output": [*"aeghiklmn ot", *HARM]}]
    assert text_of([response().completion(json.dumps({**HEAD, "output": output}).encode())]).endswith(HARM)


def test_a_string_that_changes_at_its_place_is_text_each_time() -> None:
    changes = [item(type="mcp_call", id="mcp_0", output=each) for each in HARM]
    assert text_of(read(*changes)) == HARM.replace("tt", "t")


def test_texts_put_together_anew_in_the_last_event_are_text() -> None:
    writing = letters(*sorted(set(HARM)))
    part = {"type": "output_text", "annotations": [], "logprobs": []}
    message = {"type": "message", "role": "assistant", "status": "completed"}
    output = [{**message, "id": "msg_x", "content": [{**part, "text": each}]} for each in HARM]
    writing.add("response.completed", response={**writing.whole(), "output": output})
    *_, last = read(*writing.events)
    assert text_of([last]) == HARM


@pytest.mark.parametrize("kind", ["output_text.done", "content_part.done", "output_item.done"])
def test_texts_said_again_out_of_their_order_are_text(kind: str) -> None:
    writing = letters("wait", "and", "mix")
    dones = [event for event in writing.events if event["type"] == f"response.{kind}"]
    said = [event for event in writing.events if event not in dones]
    assert text_of(read(*said, *dones)) == "waitandmix"
    assert text_of(read(*said, *reversed(dones))) == "waitandmix" + "mixandwait"
    assert text_of(read(*said, dones[0], dones[2])) == "waitandmix" + "mix"
    assert text_of(read(*said, *dones, dones[0])) == "waitandmix" + "wait"


@pytest.mark.parametrize("kind", ["output_text.done", "output_item.done", "completed"])
def test_what_is_judged_once_more_leaves_as_it_left_before(kind: str) -> None:
    writing = letters("one", HARM, "two").end()
    dones = [event for event in writing.events if event["type"] == f"response.{kind}"]
    if kind == "completed":
        dones = [{**dones[0], "response": writing.whole(output=writing.output[::-1])}]
    stream = response()
    said = [event for event in writing.events if event not in dones and event["type"] != "response.completed"]
    sent = through(stream, read(*said, stream=stream), HARM)
    events = stream.feed(b"".join(map(frame, reversed(dones))))
    assert HARM in text_of(events)
    sent += content_of(b"".join(stream.rewrite(event, {0: Kept()}) for event in events))
    assert HARM not in json.dumps(sent)


def test_a_response_says_its_texts_again_as_often_as_it_comes() -> None:
    writing = letters("one", "two")
    for _ in range(2):
        writing.add("response.in_progress", response=writing.whole(status="in_progress"))
    assert text_of(read(*writing.end().events)) == "onetwo"


@pytest.mark.parametrize("where", ["content", "output"])
def test_each_bare_string_of_a_list_has_its_own_fate(where: str) -> None:
    def done(*found: str) -> dict[str, Any]:
        if where == "content":
            return item(type="message", id="msg_0", content=list(found))
        return {"type": "response.completed", "sequence_number": 3, "response": {**HEAD, "output": list(found)}}

    stream = response()
    events = read(done("one", HARM, "three"), done("one", HARM, "three"), stream=stream)
    assert text_of(events) == "one" + HARM + "three"
    assert HARM not in json.dumps(through(stream, events, HARM))


def test_an_id_that_two_items_share_joins_no_texts() -> None:
    writing = Writing().begin().item("message", ["one"]).item("message", [HARM]).end()
    for event in writing.events:
        for fields in (event, event.get("item") or {}, *(event.get("response") or {}).get("output", ())):
            fields.update({key: "msg_same" for key in ("id", "item_id") if key in fields and "output" not in fields})
    stream = response()
    found = through(stream, read(*writing.events, stream=stream), HARM)
    output = found[-1]["response"]["output"]
    assert [each["content"][0]["text"] for each in output] == ["one", "[gone]"]


@pytest.mark.parametrize("kind", ["response.output_text.delta", "response.vendor.delta"])
def test_the_text_that_is_kept_is_counted_and_has_a_bound(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it leaves."""
    monkeypatch.setattr(responses_said, "MAX_KEPT_BYTES", 10_000)
    stream = response()
    kept = stream.kept_bytes
    for number in range(1_000):
        (event,) = stream.feed(frame({**delta(f"piece {number} "), "type": kind}))
        if event.kind is not EventKind.CHUNK:
            break
        assert stream.kept_bytes >= kept + len(f"piece {number} ")
        kept = stream.kept_bytes
    assert (event.kind, event.detail) == (EventKind.MALFORMED, "The upstream's reply is longer than may be kept.")
    assert 20 < number < 500


def test_what_says_a_text_again_is_not_counted_again() -> None:
    stream = response()
    writing = Writing().begin().item("message", ["a text ", "in pieces"]).end()
    *before, last = writing.frames
    stream.feed(b"".join(before))
    kept = stream.kept_bytes
    stream.feed(last)
    assert stream.kept_bytes == kept


def test_snapshots_of_a_long_text_that_say_something_else_are_read_in_no_time() -> None:
    events = [delta("a b c d " * 250_000)]
    events += [{**delta("x"), "type": "response.output_text.done", "text": "x"}] * 15_000
    data = b"".join(map(frame, events))
    began = time.process_time()
    response().feed(data)
    assert time.process_time() - began < 2
