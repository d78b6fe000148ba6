"""What holds for every reply whatsoever, checked without the reader's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from guardtrace_proxy.wire.events import Event, EventKind
from guardtrace_proxy.wire.fates import Cut, Kept
from guardtrace_proxy.wire.reply import Reply
from guardtrace_proxy.wire.sse import BOM, SSEDecoder, SSEEvent
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.fuzz import messages_texts, responses_texts
from tests.fuzz.choices_texts import Within, texts_of
from tests.wire.recordings import ALL, APRIEL, SEED, STARTS_OPEN
from tests.wire.replies import LIMIT, completion, dialect, message, response

STYLES = (ThinkingStyle(), STARTS_OPEN, ThinkingStyle("inline"), ThinkingStyle("field"), APRIEL, SEED)
LEFT = (EventKind.CHUNK, EventKind.COMPLETION, EventKind.DONE)
"""Kinds of events that leave as they came."""
ENDS = (b"data: [DONE]\n\n", b'event: message_stop\ndata: {"type":"message_stop"}\n\n', b"")
HEADER = 3
"""Bytes of an input before the reply: which dialect and style, and two that say where the reply is cut."""


class Dialect(NamedTuple):
    """``texts`` and ``texts_of_whole`` are the strings of an event, and of a whole reply, that could be text. ``cut``
    checks one behind these frames."""

    name: str
    reply: Callable[[ThinkingStyle], Reply]
    texts: Callable[[dict[str, Any]], Iterable[str]]
    texts_of_whole: Callable[[dict[str, Any]], Iterable[str]]
    named: bool = False
    """Whether its events have names."""
    repeats: bool = False
    """Whether its events say again what others said."""
    cut: Callable[[bytes, Reply], None] | None = None


def cut_response(sent: bytes, reply: Reply) -> None:
    """Its numbers go up."""
    frames = reply.cut(0, CUT) + reply.usage(None, 1, expose=True) + reply.error("Broken.", "upstream_error", None)
    found = contents(frames)
    assert [each["type"] for each in found][-2:] == ["response.incomplete", "error"]
    numbers = [each["sequence_number"] for each in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "numbers go up one by one"


def cut_message(sent: bytes, reply: Reply) -> None:
    """Its message is a block of its own."""
    found = contents(reply.cut(0, CUT) + reply.usage(None, 1, expose=True) + reply.done())
    kinds = [each["type"] for each in found if each["type"] != "message_stop"]
    assert kinds[-4:] == ["content_block_start", "content_block_delta", "content_block_stop", "message_delta"]
    taken = [each["index"] for each in contents(sent) if each["type"] == "content_block_start"]
    own = [each["index"] for each in found if each["type"] == "content_block_start"]
    assert len(own) == 1
    assert own[0] > max(taken, default=-1), "its index is taken"


CUT = Cut("Stopped.", "content_filter")
DIALECTS = (
    Dialect("chat", dialect, lambda chunk: texts_of(chunk, "delta"), lambda whole: texts_of(whole, "message")),
    Dialect("completions", completion, lambda chunk: texts_of(chunk, ""), lambda whole: texts_of(whole, "")),
    Dialect(
        "responses",
        response,
        responses_texts.texts_of_event,
        responses_texts.texts_of_response,
        named=True,
        repeats=True,
        cut=cut_response,
    ),
    Dialect(
        "messages",
        message,
        messages_texts.texts_of_event,
        messages_texts.texts_of_message,
        named=True,
        cut=cut_message,
    ),
)
NAMES = [each.name for each in DIALECTS]


def header(dialect: str, style: ThinkingStyle, widths: bytes = b"\x07\x0d") -> bytes:
    """What stands before a reply."""
    return bytes([NAMES.index(dialect) * len(STYLES) + STYLES.index(style), *widths])


def seeds() -> Iterator[bytes]:
    """The recordings as inputs."""
    for recording in ALL:
        yield header(recording.dialect, recording.style) + recording.data


def check(data: bytes) -> None:
    """Raise AssertionError where a property doesn't hold for this input."""
    number, reply = data[0] if data else 0, data[HEADER:]
    style, dialect = STYLES[number % len(STYLES)], DIALECTS[number // len(STYLES) % len(DIALECTS)]
    pieces = cut(reply, data[1:HEADER])
    check_events(reply, pieces, dialect)
    events = read([reply], dialect.reply(style))
    assert read(pieces, dialect.reply(style)) == events, "pieces change what is read"
    check_raw(events, reply, dialect)
    check_segments(events)
    check_strings(events, dialect)
    whole = dialect.reply(style).completion(reply)
    check_segments([whole])
    check_strings([whole], dialect)
    if dialect.cut is not None:
        check_nothing_is_left([*events, whole], dialect)
        reply = dialect.reply(style)
        dialect.cut(b"".join(leaves(reply, event, None) for event in events), reply)


def read(pieces: list[bytes], reader: Reply) -> list[Event]:
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


def blocks(reply: bytes, named: bool) -> list[SSEEvent]:
    """The events with their very bytes; rebuilt from their data, and name, where they hold anything else."""
    found: list[SSEEvent] = []
    raw, data, called, plain = b"", [], b"", True
    lines = re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", reply.removeprefix(BOM))
    end = b"\r" if lines and lines[-1].endswith(b"\r") else b"\n"
    # A stream may lack its last blank line, and the end of the line before.
    for line in [*lines[:-1], *(last if last[-1:] in b"\r\n" else last + end for last in lines[-1:]), end]:
        raw += line
        text = line.rstrip(b"\r\n")
        if not text:
            rebuilt = (b"event: " + called + b"\n" if called else b"") + b"".join(
                b"data: " + value + b"\n" for value in data
            )
            if data:
                found.append(SSEEvent(raw if plain else rebuilt + b"\n", b"\n".join(data), called))
            raw, data, called, plain = b"", [], b"", True
            continue
        name, _, value = text.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event" and named and not called and not data:
            called = value.removeprefix(b" ")
        else:
            plain = False
    return found


def check_events(reply: bytes, pieces: list[bytes], dialect: Dialect) -> None:
    decoder = SSEDecoder(LIMIT, named=dialect.named)
    found = [event for piece in pieces for event in decoder.feed(piece)] + decoder.end()
    assert found == blocks(reply, dialect.named), "events aren't the standard's"


def check_raw(events: list[Event], reply: bytes, dialect: Dialect) -> None:
    """Every event leaves as it came, in its order, but for a wrong name; an upstream's error is written anew."""
    ours = [event for event in events if event.raw or event.kind is EventKind.DONE]
    theirs = blocks(reply, dialect.named)
    assert len(ours) == len(theirs)
    for event, block in zip(ours, theirs, strict=True):
        if is_done(block):
            assert event.raw in ENDS or event.raw == block.raw, "it is no end"
        elif event.kind in LEFT and block.name and block.name != type_of(block):
            assert blocks(event.raw, named=True) == [SSEEvent(event.raw, block.data, type_of(block))], (
                "its name is wrong"
            )
        else:
            assert event.raw == block.raw or event.kind is EventKind.ERROR, "an event's bytes changed"
        assert bool(event.detail) is (event.kind is EventKind.MALFORMED)


def is_done(block: SSEEvent) -> bool:
    """Whether it is OpenAI's end of a stream."""
    return block.data.strip() == b"[DONE]"


def type_of(block: SSEEvent) -> bytes:
    """What an event says that it is, as it stands in JSON without escapes."""
    kind: str = json.loads(block.data)["type"]
    return json.dumps(kind, ensure_ascii=False)[1:-1].encode()


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


def check_strings(events: list[Event], dialect: Dialect) -> None:
    """Every string that could be text is in a span of its event; or, where events repeat each other, said before it
    leaves, with what the event itself adds to it or without."""
    said: dict[Any, str] = {}
    for event in events:
        before = list(said.values())
        found = {span.text for part in event.parts for span in part.spans}
        for span in (span for part in event.parts for span in part.spans):
            said[span.path] = said.get(span.path, "") + span.text
        if event.kind not in LEFT or not event.raw or event.raw in ENDS:
            continue
        is_whole = event.kind is EventKind.COMPLETION
        if not is_whole and is_done(blocks(event.raw, dialect.named)[0]):
            continue
        content = once(event.raw if is_whole else blocks(event.raw, dialect.named)[0].data)
        for text in (dialect.texts_of_whole if is_whole else dialect.texts)(content):
            repeated = dialect.repeats and is_said(text, [*before, *said.values()])
            assert repeated or is_said(text, found), f"{text!r} is in no span"


def once(data: bytes) -> Any:
    """What JSON says in which no key occurs twice: else one of its values might be nobody's."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key occurs twice"
        return dict(pairs)

    return json.loads(data, object_pairs_hook=checked)


def is_said(text: str, said: Collection[str]) -> bool:
    return any(text in each for each in said) if isinstance(text, Within) else text in said


GONE = "\u25a1"


def check_nothing_is_left(events: list[Event], dialect: Dialect) -> None:
    """Where every text is replaced, no other leaves, in whatever shape it was repeated."""
    writer = dialect.reply(ThinkingStyle())
    for event in events:
        if event.kind is EventKind.COMPLETION:
            writer = dialect.reply(ThinkingStyle())
        sent = leaves(writer, event, GONE)
        if event.kind is EventKind.COMPLETION:
            left = list(dialect.texts_of_whole(json.loads(sent)))
        elif event.kind is EventKind.CHUNK:
            left = [text for content in contents(sent) for text in dialect.texts(content)]
        else:
            continue
        assert all(set(text) <= {GONE} for text in left), f"{left!r} left"


def contents(sent: bytes) -> list[dict[str, Any]]:
    """What frames say."""
    return [json.loads(block.data) for block in blocks(sent, named=True)]


def leaves(writer: Reply, event: Event, gone: str | None) -> bytes:
    """An event as it came, or with all its texts replaced."""
    if event.kind not in (EventKind.CHUNK, EventKind.COMPLETION) or not event.raw:
        return b""
    spans = [span.text if gone is None else gone for part in event.parts for span in part.spans]
    if (spans and gone is not None) or not writer.passes(event):
        return writer.rewrite(event, {0: Kept(spans)})
    return event.raw
