"""Events that are told by their bytes alone say what they say when they are read as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.wire import choices
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Event, MoreText
from guardtrace_proxy.wire.tags import ThinkingStyle

PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='"\\'), min_size=1)
TEXTS = st.one_of(
    PLAIN, PLAIN, st.text(), st.sampled_from(["<think>", "</think>", "<", "[probe]", '"', "\n", "id", "gpt"])
)
FIELDS = st.sampled_from(["reasoning", "reasoning_content", "content", "content", "refusal"])
MORE: list[dict[str, Any]] = [{}, {}, {}, {"role": "assistant"}, {"content": None}]
SAMPLED = {"content": [{"token": "<th", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
EXTRAS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"token_ids": [1, 2]},
    {"finish_reason": "stop"},
    {"logprobs": SAMPLED},
    {"vendor_note": "a"},
]
CALL = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]}
OTHERS = (
    b": keep-alive\n\n",
    b'data: {"id":"id","object":"chat.completion.chunk","created":7,"model":"gpt","choices":[]}\n\n',
    b"data: [DONE]\n\n",
)


def frame(delta: dict[str, Any], index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    content = {"id": "id", "object": "chat.completion.chunk", "created": 7, "model": "gpt", "choices": [choice]}
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def reader(*, learns: bool = True, style: ThinkingStyle | None = None) -> ChatStream:
    stream = ChatStream(style or ThinkingStyle(), include_usage=False, max_event_bytes=1 << 20)
    if not learns:
        stream._learnings = 0
    return stream


def read(stream: ChatStream, pieces: Sequence[bytes]) -> list[Event]:
    found = [event for piece in pieces for event in stream.feed(piece)]
    return [event.whole() if isinstance(event, MoreText) else event for event in [*found, *stream.end()]]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Runs of frames that are alike, as models send them, with others in between."""
    frames = []
    for _ in range(draw(st.integers(1, 4))):
        field, index = draw(FIELDS), draw(st.sampled_from([0, 0, 0, 1]))
        more = draw(st.sampled_from(MORE))
        extra = draw(st.sampled_from(EXTRAS))
        for text in draw(st.lists(TEXTS, min_size=1, max_size=6)):
            frames.append(frame({**more, field: text}, index, **extra))
        frames += draw(st.sampled_from([[], [], [], [frame(CALL, index)], *([other] for other in OTHERS)]))
    return frames


STYLES = st.sampled_from(
    [ThinkingStyle(), ThinkingStyle("field"), ThinkingStyle("inline"), ThinkingStyle("auto", True)]
)


@given(streams(), STYLES)
def test_templates_change_nothing(frames: list[bytes], style: ThinkingStyle) -> None:
    assert read(reader(style=style), frames) == read(reader(learns=False, style=style), frames)


@given(streams(), st.data())
def test_nor_do_cuts_anywhere(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[first:last] for first, last in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(reader(), pieces) == read(reader(learns=False), frames)


def test_most_tokens_are_told_by_their_bytes() -> None:
    stream = reader()
    found = [
        event for text in ("The", " sun", " rises", " é", "日") for event in stream.feed(frame({"reasoning": text}))
    ]
    assert [type(event) for event in found] == [Event, MoreText, MoreText, MoreText, MoreText]
    assert [event.parts[0].tokens for event in found] == [1, 1, 2, 1, 1]


def kind_of_last(*frames: bytes, style: ThinkingStyle | None = None) -> type:
    stream = reader(style=style)
    return [type(event) for each in frames for event in stream.feed(each)][-1]


@pytest.mark.parametrize(
    "other",
    [
        frame({"reasoning": 'say "so"'}),
        frame({"reasoning": "a\\b"}),
        frame({"reasoning": "line\n"}),
        frame({"reasoning": ""}),
        frame({"reasoning": "x" * 2000}),
        frame({"reasoning": "x"}, finish_reason="stop"),
        frame({"reasoning": "x"}, token_ids=[1]),
        frame({"reasoning": "x", "content": "y"}),
        frame({"reasoning": "x"}, 1),
        frame({"content": "x"}),
        frame({"reasoning": "x"}).replace(b"gpt", b"new"),
        frame({"reasoning": "x"}).replace(b'"x"', b'"x","content":"y"'),
        frame({"reasoning": "x"}).replace(b'"x"', b'"x\xff"'),
    ],
)
def test_whatever_else_differs_is_read_as_a_whole(other: bytes) -> None:
    assert kind_of_last(frame({"reasoning": "one"}), frame({"reasoning": "two"})) is MoreText
    assert kind_of_last(frame({"reasoning": "one"}), other) is Event


def test_a_tag_is_read_and_what_follows_has_its_phase() -> None:
    texts = ["Well", " then", "<think>", "a", "b"]
    stream = reader()
    found = [event for text in texts for event in stream.feed(frame({"content": text}))]
    assert [type(event) for event in found] == [Event, MoreText, Event, Event, Event]
    assert [event.parts[0].segments[0].phase.value for event in found] == ["answering"] * 2 + ["thinking"] * 3


def test_what_stood_inside_a_tag_is_the_answer_once_a_field_brings_thinking() -> None:
    stream = reader()
    deltas = [{"content": "<think>"}, {"content": "a"}, {"content": "b"}, {"reasoning": "c"}, {"content": "d"}]
    found = [
        event
        for delta in deltas
        for event in stream.feed(frame(delta, token_ids=[1] if "reasoning" in delta else None))
    ]
    assert isinstance(found[2], MoreText)
    assert [event.parts[0].segments[0].phase.value for event in found] == ["thinking"] * 4 + ["answering"]


def test_a_text_that_stands_elsewhere_too() -> None:
    """The model's name is what it says first."""
    stream = reader()
    found = [event for text in ("gpt", "id", "7") for event in stream.feed(frame({"content": text}))]
    assert [event.parts[0].spans[0].text for event in found] == ["gpt", "id", "7"]
    assert isinstance(found[1], MoreText)


def test_where_no_two_events_are_alike_learning_ends() -> None:
    stream = reader()
    for number in range(20):
        stream.feed(frame({"content": "x"}).replace(b'"created":7', b'"created":%d' % number))
    assert stream._learnings == 0
    assert choices.LEARNINGS < 20
