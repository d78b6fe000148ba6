"""Chat completions as bytes, and what a reader made of them in a form that is easily compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from guardtrace_proxy.wire import messages_blocks
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.completion import CompletionStream
from guardtrace_proxy.wire.events import Event, Phase, Segment
from guardtrace_proxy.wire.messages import MessagesStream
from guardtrace_proxy.wire.responses import ResponsesStream
from guardtrace_proxy.wire.responses_places import Terms
from guardtrace_proxy.wire.tags import ThinkingStyle

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1750000000, "model": "m"}
LIMIT = 1 << 20
DONE = b"data: [DONE]\n\n"


def chunk(delta: Any, index: int = 0, finish: str | None = None, **beside: Any) -> dict[str, Any]:
    """A chunk with one choice; ``beside`` stands at its top."""
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **beside}


def sse(*contents: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n" for content in contents)


def dialect(style: ThinkingStyle | None = None, *, include_usage: bool = True, limit: int = LIMIT) -> ChatStream:
    return ChatStream(style or ThinkingStyle(), include_usage=include_usage, max_event_bytes=limit, model="asked-for")


def completion(style: ThinkingStyle | None = None, *, prompts: int = 1, n: int = 1) -> CompletionStream:
    """The reply to a completion's request, each of whose prompts leaves thinking as ``style`` says."""
    styles = [style or ThinkingStyle()] * prompts
    return CompletionStream(styles, n, include_usage=True, max_event_bytes=LIMIT, model="asked-for")


def response(
    style: ThinkingStyle | None = None, *, keeps_encrypted: bool = False, asked: Iterable[str] = ()
) -> ResponsesStream:
    """``asked`` are strings of the request that the reply may repeat."""
    terms = Terms(keeps_encrypted, frozenset(asked))
    return ResponsesStream(style or ThinkingStyle(), max_event_bytes=LIMIT, model="asked-for", terms=terms)


def message(
    style: ThinkingStyle | None = None, *, keeps_encrypted: bool = False, stops: Iterable[str] = ()
) -> MessagesStream:
    """``stops`` are the stop sequences of the request."""
    return MessagesStream(
        style or ThinkingStyle(),
        max_event_bytes=LIMIT,
        model="asked-for",
        request_id="req-1",
        terms=messages_blocks.Terms(keeps_encrypted, frozenset(stops)),
    )


def read(*pieces: bytes, style: ThinkingStyle | None = None, limit: int = LIMIT) -> list[Event]:
    stream = dialect(style, limit=limit)
    return [event for piece in pieces for event in stream.feed(piece)] + stream.end()


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours of one kind as one, since it is no matter in how many pieces a text came."""
    runs = groupby(segments, key=lambda each: (each.phase, each.tag, each.close, each.tag and id(each)))
    return [Segment(kind[0], "".join(each.text for each in run), kind[1], kind[2]) for kind, run in runs]


def segments(events: Iterable[Event], index: int = 0) -> list[Segment]:
    """All segments of a choice."""
    parts = [part for event in events for part in event.parts if part.index == index]
    return joined([segment for part in parts for segment in part.segments])


def tape(events: Iterable[Event], index: int = 0) -> str:
    """All spans of a choice, one after another."""
    parts = [part for event in events for part in event.parts if part.index == index]
    return "".join(span.text for part in parts for span in part.spans)


def shown(found: Iterable[Segment]) -> str:
    """``T:`` and ``A:`` before what is thinking and what is answer; tags in brackets."""
    return " ".join(f"[{each.text}]" if each.tag else f"{each.phase.name[0]}:{each.text}" for each in found)


def text_of(events: Iterable[Event], phase: Phase, index: int = 0) -> str:
    """What a choice says in one phase, without tags."""
    return "".join(each.text for each in segments(events, index) if each.phase is phase and not each.tag)
