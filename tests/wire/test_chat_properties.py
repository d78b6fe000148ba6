"""Properties of reading chat completions, against the official client's types and against itself in other pieces."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.cuts import cut, one_by_one, places
from tests.wire.replies import DONE, HEAD, dialect, read, segments, sse, tape

texts = st.sampled_from(["", "a", "ä😀", "<th", "ink>", "</think>", "<", "two words", '"}\n\ndata: x'])
ids = st.sampled_from(["call_1", "x" * 65, "call me", None])


def in_order(*names: str) -> Any:
    """Servers write a call's fields in one order; the slow path keeps whatever order there is."""
    return lambda found: {name: found[name] for name in names if name in found}


functions = st.fixed_dictionaries({}, optional={"name": st.none() | texts, "arguments": st.none() | texts}).map(
    in_order("name", "arguments")
)
calls = st.fixed_dictionaries(
    {"index": st.integers(0, 3)},
    optional={"id": ids, "type": st.sampled_from(["function", None]), "function": functions},
).map(in_order("index", "id", "type", "function"))
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", None]),
        "content": st.none() | texts,
        "reasoning": st.none() | texts,
        "reasoning_content": st.none() | texts,
        "refusal": st.none() | texts,
        "tool_calls": st.none() | st.lists(calls, max_size=2),
    },
)
finishes = st.sampled_from([None, None, None, "stop", "length", "tool_calls"])


def choice(index: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"index": st.just(index), "delta": deltas, "finish_reason": finishes},
        optional={"logprobs": st.none(), "token_ids": st.lists(st.integers(0, 9), max_size=3)},
    )


usages = st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}])
chunks = st.builds(
    lambda first, second, usage: {**HEAD, "choices": first + second, "usage": usage},
    st.lists(choice(0), max_size=1),
    st.lists(choice(1), max_size=1),
    usages,
)
events_of_any_kind = st.one_of(
    chunks.map(sse),
    chunks.map(lambda each: sse({**each, "unknown": "text"})),
    st.sampled_from([DONE, b": ping\n\n", sse({"error": {"message": "m"}}), b"data: {\n\n", b"data: []\r\n\r\n"]),
)
streams = st.lists(events_of_any_kind, max_size=6).map(b"".join)
styles = st.sampled_from([ThinkingStyle(), ThinkingStyle("field"), ThinkingStyle("inline", True)])


@settings(max_examples=200, deadline=None)
@given(streams, styles, places)
def test_no_way_of_cutting_changes_the_events(stream: bytes, style: ThinkingStyle, at: list[int]) -> None:
    whole = read(stream, style=style)
    assert read(*cut(stream, at), style=style) == whole
    assert read(*one_by_one(stream), style=style) == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(chunks, max_size=6), styles)
def test_the_fast_path_reads_what_the_slow_path_reads(contents: list[dict[str, Any]], style: ThinkingStyle) -> None:
    slow = [{**content, "unknown": None} for content in contents]
    fast_events, slow_events = read(sse(*contents), style=style), read(sse(*slow), style=style)
    assert [event.parts for event in fast_events] == [event.parts for event in slow_events]
    assert [event.usage for event in fast_events] == [event.usage for event in slow_events]


@settings(max_examples=200, deadline=None)
@given(streams, styles)
def test_segments_cover_the_tape(stream: bytes, style: ThinkingStyle) -> None:
    events = read(stream, style=style)
    for count, event in enumerate(events, 1):
        for index in (0, 1):
            covered = "".join(segment.text for segment in segments(events[:count], index))
            arrived = tape(events[:count], index)
            assert arrived.startswith(covered)
            finished = any(part.index == index and part.finish_reason for part in event.parts)
            if finished or event.kind is not EventKind.CHUNK or count == len(events):
                assert covered == arrived, "text that waits for ever is held for ever"


@settings(max_examples=200, deadline=None)
@given(st.lists(chunks, max_size=4))
def test_chunks_keep_their_very_bytes(contents: list[dict[str, Any]]) -> None:
    stream = sse(*contents) + DONE
    assert b"".join(event.raw for event in read(stream)) == stream


def texts_for_the_client(found: Choice) -> dict[tuple[str | int, ...], str]:
    """What the official client hands to its user, by its place."""
    delta = found.delta
    fields = {"content": delta.content, "refusal": delta.refusal, **(delta.model_extra or {})}
    shown: dict[tuple[str | int, ...], Any] = {("delta", name): text for name, text in fields.items()}
    for position, call in enumerate(delta.tool_calls or []):
        path = ("delta", "tool_calls", position)
        # An id with more in it than a word is text too, wherever a model can write ids.
        shown[(*path, "id")] = call.id if call.id and (len(call.id) > 64 or " " in call.id) else None
        if call.function is not None:
            shown[(*path, "function", "name")] = call.function.name
            shown[(*path, "function", "arguments")] = call.function.arguments
    return {path: text for path, text in shown.items() if text}


@settings(max_examples=200, deadline=None)
@given(st.lists(chunks, max_size=4))
def test_the_official_client_shows_no_other_text(contents: list[dict[str, Any]]) -> None:
    events = read(sse(*contents))
    assert [event.kind for event in events if event.raw] == [EventKind.CHUNK] * len(contents)
    for content, event in zip(contents, events, strict=False):
        theirs = ChatCompletionChunk.model_validate(content)
        assert [part.index for part in event.parts] == [each.index for each in theirs.choices]
        for part, each in zip(event.parts, theirs.choices, strict=True):
            places = {path: span.text for span in part.spans for path in (span.path, *span.copies)}
            assert places == texts_for_the_client(each)
            assert part.finish_reason == each.finish_reason


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["a", 0, 1, 0.5, 1e300]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "choices delta message index content reasoning tool_calls error usage finish_reason".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, max_size=4), st.binary(max_size=20))
def test_no_event_however_odd_raises(contents: list[Any], rest: bytes) -> None:
    stream = dialect()
    events = stream.feed(sse(*contents) + b"data:" + rest) + stream.end()
    assert all(isinstance(event, Event) for event in events)
    assert all(event.detail for event in events if event.kind is EventKind.MALFORMED)
    for content in contents:
        body = json.dumps(content).encode()
        assert dialect().completion(body).kind in (EventKind.COMPLETION, EventKind.MALFORMED)
    assert dialect().completion(rest).kind in (EventKind.COMPLETION, EventKind.MALFORMED)
