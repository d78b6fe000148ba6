"""Replies as servers send them, streams cut at every byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from guardtrace_proxy.wire.events import Event, EventKind, SpanKind
from guardtrace_proxy.wire.sse import SSEDecoder
from tests.wire.cuts import cut, in_two, one_by_one, places
from tests.wire.recordings import ALL, BY_FILE, FOLDER, RECORDINGS, STARTS_OPEN, Recording, recordings, streams
from tests.wire.replies import LIMIT, read, segments, shown, tape


def test_every_recording_is_read_here_and_described() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.suffix in (".sse", ".json")}
    assert {recording.file for recording in ALL} == files
    described = re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(described) == sorted(files)


def test_every_recording_stands_in_the_table_of_servers() -> None:
    page = (FOLDER.parents[1] / "docs" / "chat-servers.md").read_text("utf-8")
    rows = [line.strip("|").split("|")[-1] for line in page.splitlines() if line.startswith("| ")]
    named = re.findall(r"`([^`]+)`", " ".join(rows))
    assert sorted(named) == sorted({recording.file.rpartition(".")[0] for recording in RECORDINGS})


@recordings
def test_a_recording_is_read_as_what_it_is(recording: Recording) -> None:
    events = recording.events()
    for index, (expected, finish) in recording.choices.items():
        assert shown(segments(events, index)) == expected
        finishes = [part.finish_reason for event in events for part in event.parts if part.index == index]
        assert [each for each in finishes if each] == [finish]
        assert "".join(segment.text for segment in segments(events, index)) == tape(events, index)
    assert {part.index for event in events for part in event.parts} == set(recording.choices)
    if recording.is_stream:
        last = EventKind.CHUNK if recording.dialect == "responses" else EventKind.DONE
        assert [event.kind for event in events] == [EventKind.CHUNK] * (len(events) - 1) + [last]
    usages = [event.usage for event in events if event.usage is not None]
    if recording.usage is None:
        assert usages == []
    else:
        assert {key: usages[-1][key] for key in recording.usage} == recording.usage


@recordings
def test_nothing_in_a_recording_is_taken_for_text_that_nobody_knows(recording: Recording) -> None:
    spans = [span for event in recording.events() for part in event.parts for span in part.spans]
    assert [span for span in spans if span.kind is SpanKind.OTHER] == []


@streams
def test_a_recording_is_the_same_however_it_is_cut(recording: Recording) -> None:
    stream = recording.data
    whole = recording.events()
    assert recording.events(*one_by_one(stream)) == whole
    for pieces in in_two(stream):
        assert recording.events(*pieces) == whole


@streams
def test_a_recording_is_the_same_in_many_pieces(recording: Recording) -> None:
    stream, whole = recording.data, recording.events()

    @settings(max_examples=30, deadline=None)
    @given(places)
    def check(at: list[int]) -> None:
        assert recording.events(*cut(stream, at)) == whole

    check()


@recordings
def test_a_recording_leaves_byte_for_byte_without_its_comments(recording: Recording) -> None:
    data = recording.data
    kept = re.sub(rb"^:.*\n\n", b"", data, flags=re.MULTILINE)
    assert b"".join(event.raw for event in recording.events()) == kept
    if recording.is_stream:
        decoder = SSEDecoder(LIMIT, named=True)
        assert b"".join(event.raw for event in decoder.feed(data) + decoder.end()) == kept


@streams
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
def test_other_line_ends_are_read_alike_and_kept(recording: Recording, line_end: bytes) -> None:
    stream = recording.data.replace(b"\n", line_end)
    kept = re.sub(rb"^:[^\n]*\n\n", b"", recording.data, flags=re.MULTILINE).replace(b"\n", line_end)
    events = recording.events(stream)
    assert [event.parts for event in events] == [event.parts for event in recording.events()]
    assert b"".join(event.raw for event in events) == kept


def test_without_a_word_of_it_in_the_config_text_before_a_bare_closing_tag_was_answer() -> None:
    recording = BY_FILE["opening-tag-missing.sse"]
    assert recording.style == STARTS_OPEN
    assert shown(segments(read(recording.data))).startswith("A:A red car.")


@pytest.mark.parametrize("file", ["usage-chunk.sse", "vllm-logprobs.sse", "llama-cpp.sse", "azure.sse", "ollama.sse"])
def test_usage_at_the_end_comes_with_no_choice_and_no_text(file: str) -> None:
    usages = [event for event in BY_FILE[file].events() if event.usage is not None]
    assert usages[-1].parts == []


def test_running_usage_stands_beside_every_chunk() -> None:
    chunks = BY_FILE["vllm-logprobs.sse"].chunks()
    assert [event.usage and event.usage["completion_tokens"] for event in chunks] == [0, 1, 2, 3, 5, 6, 6]


def test_tokens_are_counted_by_their_ids() -> None:
    def counted(events: list[Event]) -> list[int]:
        return [part.tokens for event in events for part in event.parts]

    # The closing tag and the end of the turn are tokens without text.
    assert counted(BY_FILE["vllm-logprobs.sse"].chunks()) == [0, 1, 1, 0, 2, 0]


@pytest.mark.parametrize("file", ["tool-calls.sse", "vllm-parallel-calls.sse", "ollama.sse", "function-call.sse"])
def test_a_call_is_arguments_to_the_last_character(file: str) -> None:
    spans = [span for event in BY_FILE[file].events() for part in event.parts for span in part.spans]
    arguments = "".join(span.text for span in spans if span.kind is SpanKind.ARGUMENTS)
    assert arguments.startswith("get_weather{")
    assert arguments.endswith("}")
    assert shown(segments(BY_FILE[file].events())).endswith(arguments)


def test_reasoning_that_stands_in_two_fields_has_one_fate() -> None:
    events = BY_FILE["openrouter.sse"].events()
    (first, *_) = [part.spans for event in events for part in event.parts if part.spans]
    assert [(span.path, span.copies) for span in first] == [
        (("delta", "reasoning"), (("delta", "reasoning_details", 0, "text"),))
    ]
