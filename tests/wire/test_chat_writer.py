"""What the proxy writes itself, as the official client reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.fates import Cut, Kept
from tests.wire.replies import DONE, HEAD, chunk, dialect, sse

MESSAGE = "Stopped by policy."
COUNTS = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
COMPLETION = {**HEAD, "object": "chat.completion", "service_tier": "default", "vendor": 7}


def frames(data: bytes) -> list[dict[str, Any]]:
    """The chunks in what was written, each of which the client's own types accept."""
    assert data.endswith(b"\n\n")
    found = [json.loads(frame.removeprefix(b"data: ")) for frame in data.removesuffix(b"\n\n").split(b"\n\n")]
    for frame in found:
        ChatCompletionChunk.model_validate(frame)
    return found


def started(*contents: Any, include_usage: bool = True) -> ChatStream:
    stream = dialect(include_usage=include_usage)
    stream.feed(sse(*(contents or [chunk({"role": "assistant"})])))
    return stream


def choice(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


@pytest.mark.parametrize(
    ("cut", "delta"),
    [
        (Cut(MESSAGE, "content_filter"), {"role": "assistant", "content": MESSAGE}),
        (Cut(MESSAGE, "content_filter", role=False), {"content": MESSAGE}),
        (Cut(MESSAGE, "content_filter", False, "</think>"), {"content": f"</think>\n\n{MESSAGE}"}),
        (Cut(MESSAGE, "refusal"), {"role": "assistant", "refusal": MESSAGE}),
        (Cut(MESSAGE, "refusal", False, "◁/think▷"), {"content": "◁/think▷\n\n", "refusal": MESSAGE}),
    ],
)
def test_a_cut_is_a_message_and_an_empty_delta_that_finishes(cut: Cut, delta: dict[str, Any]) -> None:
    first, last = frames(started().cut(1, cut))
    assert first == {**HEAD, "choices": [choice(delta, index=1)]}
    assert last == {**HEAD, "choices": [choice({}, "content_filter", index=1)]}


def test_a_note_stands_beside_the_choices_of_the_last_frame() -> None:
    note = {"action": "cut", "phase": "thinking", "level": 1}
    first, last = frames(started().cut(0, Cut(MESSAGE, "content_filter", note=note)))
    assert "guardtrace" not in first
    assert last["guardtrace"] == note
    (frame,) = frames(started().note(2, note))
    assert frame == {**HEAD, "choices": [choice({}, index=2)], "guardtrace": note}


def test_an_error_is_a_frame_or_a_body() -> None:
    body = {"error": {"message": MESSAGE, "type": "content_filter", "param": None, "code": "content_filter"}}
    stream = started()
    frame = stream.cut(0, Cut(MESSAGE, "error"))
    assert (frame[:6], json.loads(frame[6:-2]), frame[-2:]) == (b"data: ", body, b"\n\n")
    assert stream.done() == DONE
    stream.completion(json.dumps({**COMPLETION, "choices": []}).encode())
    assert json.loads(stream.error(MESSAGE, "content_filter", "content_filter")) == body


def test_frames_carry_the_streams_own_head() -> None:
    head = {**HEAD, "id": "x", "created": 7, "model": "theirs", "system_fingerprint": "fp"}
    for beside in ({}, {"unknown": None}):
        stream = started({**head, **beside, "choices": []}, chunk({"content": "a"}))
        assert frames(stream.note(0, {}))[0] == {**head, "choices": [choice({})], "guardtrace": {}}


def test_before_anything_came_the_requests_model_stands_in() -> None:
    (frame,) = frames(dialect().note(0, {}))
    assert (frame["model"], frame["created"], frame["object"]) == ("asked-for", 0, "chat.completion.chunk")
    assert frame["id"].startswith("chatcmpl-")


@pytest.mark.parametrize("beside", [{}, {"prompt_filter_results": []}])
def test_a_chunk_without_an_id_names_no_stream(beside: dict[str, Any]) -> None:
    # Azure begins with one: https://github.com/Azure/azure-sdk-for-go/issues/21086
    empty = {"id": "", "object": "", "created": 0, "model": "", "choices": [], **beside}
    (frame,) = frames(started(empty).note(0, {}))
    assert (frame["id"], frame["model"]) == ("chatcmpl-guardtrace", "asked-for")
    (frame,) = frames(started(empty, {**chunk({"content": "a"}), **beside}, {**chunk({}), "id": "other"}).note(0, {}))
    assert frame == {**HEAD, "choices": [choice({})], "guardtrace": {}}


def test_usage_after_a_cut_is_the_last_one_seen_and_holds_nothing_but_counts() -> None:
    usage = {**COUNTS, "details": {"text": "t", "n": 4}, "cost": 0.5, "note": "t", "ok": True, "none": None}
    (frame,) = frames(started().usage(usage, 9, expose=True))
    assert frame == {**HEAD, "choices": [], "usage": {**COUNTS, "details": {"n": 4}, "cost": 0.5}}


def test_usage_that_was_never_sent_is_estimated_and_says_so() -> None:
    (frame,) = frames(started().usage(None, 9, expose=True))
    assert frame["usage"] == {"prompt_tokens": 0, "completion_tokens": 9, "total_tokens": 9}
    assert (frame["choices"], frame["guardtrace"]) == ([], {"usage_estimated": True})
    assert "guardtrace" not in frames(started().usage(None, 9, expose=False))[0]


def test_usage_is_not_written_where_nobody_asked() -> None:
    assert started(include_usage=False).usage({"completion_tokens": 1}, 9, expose=True) == b""


# Rewritten events


def rewritten(content: dict[str, Any], fates: dict[int, Any]) -> list[dict[str, Any]]:
    stream = dialect()
    (event,) = stream.feed(sse(content))
    data = stream.rewrite(event, fates)
    return frames(data) if data else []


def test_a_redacted_choice_is_built_anew_from_what_is_known() -> None:
    delta = {"role": "assistant", "reasoning": "bad", "reasoning_content": "bad", "content": "good"}
    content = chunk(delta, vendor="v", service_tier="default", usage={**COUNTS, "note": "n"})
    content["choices"][0].update(logprobs={"content": []}, token_ids=[1], stop_reason=7, other="o")
    (frame,) = rewritten(content, {0: Kept(["[…]", "good", "", ""])})
    redacted = {"role": "assistant", "reasoning": "[…]", "reasoning_content": "[…]", "content": "good"}
    choices = [{**choice(redacted), "stop_reason": 7}]
    assert frame == {**HEAD, "service_tier": "default", "choices": choices, "usage": COUNTS}


def test_choices_that_were_cut_are_left_out_and_others_stay_as_they_are() -> None:
    kept = {"index": 1, "delta": {"content": "b"}, "logprobs": {"content": []}, "vendor": "v"}
    both = {**HEAD, "choices": [{"index": 0, "delta": {"content": "a"}}, kept]}
    assert rewritten(both, {1: Kept()}) == [{**HEAD, "choices": [kept]}]
    assert rewritten(both, {}) == []


@pytest.mark.parametrize(
    ("delta", "finish", "left"),
    [
        ({"content": "bad"}, None, None),
        ({"role": "assistant", "content": "bad"}, None, choice({"role": "assistant"})),
        ({"role": {"odd": 1}, "content": "bad"}, None, None),
        ({"content": "bad"}, "stop", choice({}, "stop")),
        ({"content": "bad"}, "", None),
    ],
)
def test_a_choice_of_which_nothing_is_left_is_not_sent(delta: Any, finish: Any, left: dict[str, Any] | None) -> None:
    texts = ["" for _ in dialect().feed(sse(chunk(delta)))[0].parts[0].spans]
    shown = rewritten(chunk(delta, finish=finish), {0: Kept(texts)})
    assert shown == ([] if left is None else [{**HEAD, "choices": [left]}])


def test_tool_calls_stay_whole_or_go() -> None:
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    delta = {"reasoning": "bad", "tool_calls": calls}
    assert rewritten(chunk(delta), {0: Kept(["", "f", "{}"])})[0]["choices"] == [choice({"tool_calls": calls})]
    assert rewritten(chunk(delta), {0: Kept(["ok", "f", ""])})[0]["choices"] == [choice({"reasoning": "ok"})]


def test_lists_of_parts_keep_their_labels_and_nothing_else() -> None:
    details = [
        {"type": "reasoning.text", "index": 0, "id": "rs_1", "format": "x-v1", "text": "bad", "signature": "s"},
        {"type": "reasoning.encrypted", "data": "d"},
        {"type": "bad words", "id": {"hidden": "bad"}, "index": ["bad"], "text": "bad"},
    ]
    stream = dialect()
    (event,) = stream.feed(sse(chunk({"reasoning_details": details})))
    texts = ["[…]" if span.path[-1] == "text" else "" for span in event.parts[0].spans]
    (frame,) = frames(stream.rewrite(event, {0: Kept(texts)}))
    first = {"type": "reasoning.text", "index": 0, "id": "rs_1", "format": "x-v1", "text": "[…]"}
    assert frame["choices"][0]["delta"] == {"reasoning_details": [first, {"text": "[…]"}]}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_in_several_lines_is_rewritten_all_the_same(end: bytes) -> None:
    lines = [b'data: {"id": "x", "created": 1, "model": "m",', b'data:"object": "chat.completion.chunk",']
    lines.append(b'data: "choices": [{"index": 0, "delta": {"content": "bad"}}]}')
    stream = dialect()
    (event,) = stream.feed(end.join([*lines, b"", b"data: x"]))
    (frame,) = frames(stream.rewrite(event, {0: Kept(["ok"])}))
    assert (frame["id"], frame["choices"]) == ("x", [choice({"content": "ok"})])
