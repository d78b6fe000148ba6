"""What holds for every reply whatsoever, checked without the reader's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.sse import BOM, SSEDecoder, SSEEvent
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.recordings import APRIEL, RECORDINGS, SEED, STARTS_OPEN

LIMIT = 1 << 20
STYLES = (ThinkingStyle(), STARTS_OPEN, ThinkingStyle("inline"), ThinkingStyle("field"), APRIEL, SEED)
HEADER = 3
"""Bytes of an input before the reply: which style, and two that say where the reply is cut."""


def seeds() -> Iterator[bytes]:
    """The recordings as inputs."""
    for recording in RECORDINGS:
        yield bytes([STYLES.index(recording.style), 7, 13]) + recording.data


def check(data: bytes) -> None:
    """Raise AssertionError where a property doesn't hold for this input."""
    style, reply = STYLES[data[0] % len(STYLES)] if data else STYLES[0], data[HEADER:]
    pieces = cut(reply, data[1:HEADER])
    check_events(reply, pieces)
    events = read([reply], style)
    assert read(pieces, style) == events, "pieces change what is read"
    check_raw(events, reply)
    check_segments(events)
    for event in events:
        check_strings(event, "delta")
    completion = stream(style).completion(reply)
    check_segments([completion])
    check_strings(completion, "message")


def stream(style: ThinkingStyle) -> ChatStream:
    return ChatStream(style, include_usage=True, max_event_bytes=LIMIT, model="m")


def read(pieces: list[bytes], style: ThinkingStyle) -> list[Event]:
    reader = stream(style)
    return [event for piece in pieces for event in reader.feed(piece)] + reader.end()


def cut(reply: bytes, widths: bytes) -> list[bytes]:
    """Pieces whose widths take turns."""
    pieces, at, turn = [], 0, 0
    while at < len(reply):
        width = 1 + widths[turn % len(widths)]
        pieces.append(reply[at : at + width])
        at, turn = at + width, turn + 1
    return pieces


# The standard's own steps over the whole stream


def blocks(reply: bytes) -> list[SSEEvent]:
    """The events with their very bytes; rebuilt from their data where they hold anything else."""
    found: list[SSEEvent] = []
    raw, data, plain = b"", [], True
    lines = re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", reply.removeprefix(BOM))
    end = b"\r" if lines and lines[-1].endswith(b"\r") else b"\n"
    # A stream may lack its last blank line, and the end of the line before.
    for line in [*lines[:-1], *(last if last[-1:] in b"\r\n" else last + end for last in lines[-1:]), end]:
        raw += line
        text = line.rstrip(b"\r\n")
        if not text:
            rebuilt = b"".join(b"data: " + value + b"\n" for value in data) + b"\n"
            if data:
                found.append(SSEEvent(raw if plain else rebuilt, b"\n".join(data)))
            raw, data, plain = b"", [], True
            continue
        name, _, value = text.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        else:
            plain = False
    return found


def check_events(reply: bytes, pieces: list[bytes]) -> None:
    decoder = SSEDecoder(LIMIT)
    found = [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()
    assert found == blocks(reply), "events aren't the standard's"


def check_raw(events: list[Event], reply: bytes) -> None:
    """Every event leaves as it came, in its order; an upstream's error is written anew."""
    ours = [event for event in events if event.raw]
    theirs = blocks(reply)
    assert len(ours) == len(theirs)
    for event, block in zip(ours, theirs, strict=True):
        assert event.raw == block.raw or event.kind is EventKind.ERROR, "an event's bytes changed"
        assert bool(event.detail) is (event.kind is EventKind.MALFORMED)


def check_segments(events: list[Event]) -> None:
    """Spans and segments are the same tape."""
    tapes: dict[int, list[str]] = {}
    for event in events:
        for part in event.parts:
            tape = tapes.setdefault(part.index, ["", ""])
            tape[0] += "".join(span.text for span in part.spans)
            tape[1] += "".join(segment.text for segment in part.segments)
            assert tape[0].startswith(tape[1]), "a segment is no part of the tape"
    assert all(spans == segments for spans, segments in tapes.values()), "text waits for ever"


# Every string that could be text is in a span

LABELS = ("type", "id", "index", "format")
NAMES = ("id", "object", "model", "system_fingerprint", "service_tier", "provider")
CHOICE_NAMES = ("finish_reason", "native_finish_reason", "stop_reason", "matched_stop")
ABOUT_THE_PROMPT = ("prompt_text", "prompt_logprobs", "kv_transfer_params")
WORDS = re.compile(
    r"safe|low|medium|high|userStopped|modelUnloaded|failed|eosFound|stopStringFound|toolCalls|"
    r"maxPredictedTokensReached|contextLengthReached"
)
WORD = re.compile(r"[^ ]{0,64}")
SHORT = re.compile(r".{0,16}", re.DOTALL)
NAME = re.compile(r".{0,256}", re.DOTALL)
PADDING = re.compile(r"[A-Za-z0-9]{0,4096}\n?")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}\n?")
METADATA = {
    **dict.fromkeys(NAMES, NAME),
    "obfuscation": PADDING,
    "usage": SHORT,
    "prompt_filter_results": WORDS,
    "stats": re.compile(f"{WORDS.pattern}|{WORD.pattern}"),
    "model_info": WORD,
    "runtime": WORD,
    "metadata": WORD,
}
CHOICE_METADATA = {
    **dict.fromkeys(CHOICE_NAMES, NAME),
    "content_filter_results": WORDS,
    "routed_experts": BASE64,
    "logprobs": NAME,
}
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:$-]{0,64}")


def check_strings(event: Event, body_key: str) -> None:
    if event.kind not in (EventKind.CHUNK, EventKind.COMPLETION) or not event.raw:
        return
    content = blocks(event.raw)[0].data if event.kind is EventKind.CHUNK else event.raw
    found = {span.text for part in event.parts for span in part.spans}
    for text in texts_of(json.loads(content), body_key):
        assert text in found, f"{text!r} is in no span"


def texts_of(event: dict[str, Any], body_key: str) -> Iterator[str]:
    for key, value in event.items():
        if key == "choices":
            for choice in value or []:
                yield from texts_of_choice(choice, body_key)
        elif key not in ABOUT_THE_PROMPT:
            yield from texts(value, METADATA.get(key))


def texts_of_choice(choice: dict[str, Any], body_key: str) -> Iterator[str]:
    for key, value in choice.items():
        if key != body_key or not isinstance(value, dict):
            yield from texts(value, CHOICE_METADATA.get(key))
            continue
        for name, inner in value.items():
            if not PLAIN_KEY.fullmatch(name):
                yield name
            yield from texts(inner, SHORT if name == "role" else None)


def texts(value: Any, metadata: re.Pattern[str] | None) -> Iterator[str]:
    """Strings below a value but those that such metadata may hold, and those that only say what a part is."""
    if isinstance(value, str):
        if value and not (metadata and metadata.fullmatch(value)):
            yield value
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, metadata)
    elif isinstance(value, dict):
        encrypted = {"reasoning.encrypted": "data", "reasoning.text": "signature"}.get(str(value.get("type")))
        for key, inner in value.items():
            if metadata is None and not PLAIN_KEY.fullmatch(key):
                yield key
            is_label = key in LABELS and isinstance(inner, str) and WORD.fullmatch(inner)
            is_secret = key == encrypted and isinstance(inner, str) and len(inner) >= 64 and BASE64.fullmatch(inner)
            if not (is_label or is_secret):
                yield from texts(inner, metadata)
