"""Streams as servers send them, cut at every byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai.types.chat import ChatCompletionChunk

from guardtrace_proxy.wire.chat import ThinkingStyle
from guardtrace_proxy.wire.events import EventKind, SpanKind
from tests.wire.cuts import in_two, one_by_one
from tests.wire.replies import read, segments, shown, tape

FOLDER = Path(__file__).parent.parent / "recordings"


class Recording(NamedTuple):
    """What stands in a file: of each choice its segments and its finish."""

    name: str
    choices: dict[int, tuple[str, str]]
    usage: dict[str, Any] | None = None
    style: ThinkingStyle = ThinkingStyle()

    @property
    def stream(self) -> bytes:
        return (FOLDER / f"{self.name}.sse").read_bytes()


RECORDINGS = [
    Recording("vllm-reasoning", {0: ("T:The sign says “Café”, so it is one.\n A:\n\nA café ☕.", "stop")}),
    Recording("vllm-reasoning-content", {0: ("T:9.80 against 9.11. A:9.8 is greater.", "stop")}),
    Recording("deepseek", {0: ("T:They greet me. A:Hello!", "stop")}, {"completion_tokens": 8, "total_tokens": 14}),
    Recording("think-tags", {0: ("[<think>] T:Is 1 < 2? Yes  [</think>] A:It is.", "stop")}),
    Recording(
        "opening-tag-missing",
        {0: ("T:A red car.\n [</think>] A:\n\nIt is red.", "stop")},
        style=ThinkingStyle(starts_open=True),
    ),
    Recording("tool-calls", {0: ('T:I need the weather. A:get_weather{"city": "Zürich"}', "tool_calls")}),
    Recording("usage-chunk", {0: ("A:Hello", "stop")}, {"completion_tokens": 1, "total_tokens": 10}),
    Recording(
        "two-choices",
        {0: ("T:Another way. A:Three.", "stop"), 1: ("T:One way or two. A:Two.", "length")},
    ),
]

BY_NAME = {recording.name: recording for recording in RECORDINGS}
recordings = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def test_every_recording_is_read_here() -> None:
    assert {recording.name for recording in RECORDINGS} == {path.stem for path in FOLDER.glob("*.sse")}


@recordings
def test_a_recording_is_read_as_what_it_is(recording: Recording) -> None:
    events = read(recording.stream)
    if recording.style.starts_open:
        # Without a word of it in the config, text before a bare closing tag was answer.
        assert shown(segments(events)).startswith("A:")
        events = read(recording.stream, style=recording.style)
    for index, (expected, finish) in recording.choices.items():
        assert shown(segments(events, index)) == expected
        assert [part.finish_reason for event in events for part in event.parts if part.index == index][-1] == finish
        assert "".join(segment.text for segment in segments(events, index)) == tape(events, index)
    assert {part.index for event in events for part in event.parts} == set(recording.choices)
    assert [event.kind for event in events[:-1]] == [EventKind.CHUNK] * (len(events) - 1)
    assert events[-1].kind is EventKind.DONE
    usage = [event.usage for event in events if event.usage is not None]
    if recording.usage is None:
        assert usage == []
    else:
        assert [{key: each[key] for key in recording.usage} for each in usage] == [recording.usage]


@recordings
def test_a_recording_is_the_same_however_it_is_cut(recording: Recording) -> None:
    stream = recording.stream
    whole = read(stream, style=recording.style)
    assert read(*one_by_one(stream), style=recording.style) == whole
    for pieces in in_two(stream):
        assert read(*pieces, style=recording.style) == whole


@recordings
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_other_line_ends_are_read_alike_and_kept(recording: Recording, line_end: bytes) -> None:
    stream = recording.stream.replace(b"\n", line_end)
    events, as_recorded = read(stream, style=recording.style), read(recording.stream, style=recording.style)
    assert [event.parts for event in events] == [event.parts for event in as_recorded]
    assert b"".join(event.raw for event in events) == stream[stream.index(b"data:") :]


@recordings
def test_the_official_client_accepts_every_chunk(recording: Recording) -> None:
    for event in read(recording.stream):
        if event.kind is EventKind.CHUNK:
            ChatCompletionChunk.model_validate_json(event.raw.removeprefix(b"data: "))


def test_usage_comes_with_no_choice_and_no_text() -> None:
    (usage,) = [event for event in read(BY_NAME["usage-chunk"].stream) if event.usage is not None]
    assert usage.parts == []


def test_a_tool_call_is_arguments_to_the_last_character() -> None:
    events = read(BY_NAME["tool-calls"].stream)
    kinds = [span.kind for event in events for part in event.parts for span in part.spans]
    assert kinds == [SpanKind.TEXT, SpanKind.ARGUMENTS, SpanKind.ARGUMENTS, SpanKind.ARGUMENTS]
