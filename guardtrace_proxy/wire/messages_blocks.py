"""Where text stands in the events and blocks of the Messages API, and what is no text by its exact shape.

Sources: Anthropic's reference, the types of anthropic-python 2.14, vLLM 0.33 (``vllm/entrypoints/anthropic``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from guardtrace_proxy.wire.chat_schema import LABEL, Label, Name, Usage, is_of_type
from guardtrace_proxy.wire.events import Event, Phase, SpanKind
from guardtrace_proxy.wire.media import refuse_media
from guardtrace_proxy.wire.strings import PLAIN_KEY, Path, is_encrypted, strings_below


class Place(NamedTuple):
    """A string of an event. ``where`` leads to it in the event's JSON."""

    where: Path
    text: str
    phase: Phase
    kind: SpanKind


class TextOf(NamedTuple):
    """What a block or a delta says: the key of its text, whose phase it is, and what."""

    key: str
    phase: Phase
    kind: SpanKind = SpanKind.TEXT


TEXT = TextOf("text", Phase.ANSWERING)
THINKING = TextOf("thinking", Phase.THINKING)
BLOCKS = {"text": TEXT, "thinking": THINKING}
"""By a block's type."""
DELTAS = {
    "text_delta": TEXT,
    "thinking_delta": THINKING,
    "input_json_delta": TextOf("partial_json", Phase.ANSWERING, SpanKind.ARGUMENTS),
}
"""By a delta's type."""
CALL = "tool_use"
REDACTED = "redacted_thinking"
LABELS = frozenset({"type", "id", "tool_use_id", "role", "stop_reason"})
"""Keys whose short strings say what something is."""
OF_EVENT = {"message_delta": frozenset({"usage"})}
OF_DELTA = {"message_delta": frozenset({"stop_sequence", "stop_details"})}
OF_MESSAGE = frozenset({"model", "usage", "stop_sequence", "stop_details"})
"""Fields that hold no text where they have their own shape: beside a delta and in it, by the event's type; in a
message."""
NOWHERE: frozenset[str] = frozenset()
SIGNATURE = re.compile(r"[A-Za-z0-9+/=_-]{0,64}")


class StopDetails(Struct, forbid_unknown_fields=True, gc=False):
    """Why a provider refused, in words of its own choice; an explanation is text."""

    type: Label
    category: Annotated[str, Meta(max_length=32, pattern="^[a-z_]*$")] | None = None
    explanation: None = None


class Piece(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What a delta of the usual shape says."""

    type: Literal["text_delta", "thinking_delta", "input_json_delta"]
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class Delta(Struct, forbid_unknown_fields=True, gc=False):
    """A delta of the usual shape."""

    type: Literal["content_block_delta"]
    index: int
    delta: Piece


decode_delta = msgspec.json.Decoder(Delta).decode


class MessagesEvent(Event, gc=False):
    """An event of this API. ``index`` is its block's, -1 where it has none; ``delta`` is one of the usual shape, of
    others there is ``content``. ``is_hidden``: it holds encrypted thinking, which doesn't pass. ``signs``: it has
    the signature of its block."""

    type: str = ""
    index: int = -1
    delta: Delta | None = None
    content: dict[str, Any] = msgspec.field(default_factory=dict)
    is_hidden: bool = False
    signs: bool = False


def is_signature(value: Any) -> bool:
    """Whether this is a provider's seal over a thinking block and no text: Anthropic's bytes in base64, or an id."""
    return isinstance(value, str) and (SIGNATURE.fullmatch(value) is not None or is_encrypted(value))


class Terms(NamedTuple):
    """What the request settles about its reply. ``keeps_encrypted``: encrypted thinking passes. ``stops``: what the
    reply may say that it stopped at."""

    keeps_encrypted: bool = False
    stops: frozenset[str] = frozenset()


# Where text stands


def places_of(event: Mapping[str, Any], terms: Terms) -> Iterator[Place]:
    """Every string of an event that could be text; raises TooDeep, and Media where it is none that can be judged."""
    kind = str(event.get("type"))
    for key, value in event.items():
        if (kind, key) == ("content_block_start", "content_block") and isinstance(value, dict):
            yield from _block(value, (key,), terms)
        elif key == "delta" and isinstance(value, dict):
            yield from _delta(value, (key,), OF_DELTA.get(kind, NOWHERE), terms)
        elif (kind, key) == ("message_start", "message") and isinstance(value, dict):
            yield from _announced(value, (key,), terms)
        elif not is_plain(key, value, OF_EVENT.get(kind, NOWHERE), terms):
            yield from _others(key, value, (), kind)


def places_of_message(message: Mapping[str, Any], terms: Terms) -> Iterator[Place]:
    """Every string of a whole reply that could be text; raises as ``places_of`` does."""
    content = message["content"]
    yield from _announced({key: value for key, value in message.items() if key != "content"}, (), terms)
    for index, block in enumerate(content):
        if isinstance(block, dict):
            yield from _block(block, ("content", index), terms)
        else:
            yield from _others("content", block, ())


def _announced(message: Mapping[str, Any], where: Path, terms: Terms) -> Iterator[Place]:
    """A reply without its blocks. What is announced has none: any that stand there are text, whatever their type."""
    for key, value in message.items():
        if not is_plain(key, value, OF_MESSAGE, terms):
            yield from _others(key, value, where)


def is_plain(key: str, value: Any, shaped: frozenset[str], terms: Terms) -> bool:
    """Whether a field beside the blocks holds no generated text. ``shaped`` are the fields with a shape of their own
    that belong there."""
    if value is None or isinstance(value, (bool, int, float)):
        return bool(PLAIN_KEY.fullmatch(key))
    if key not in shaped:
        return is_label(key, value)
    if key == "usage":
        return is_of_type(value, Usage)
    if key == "stop_details":
        return is_of_type(value, StopDetails)
    return isinstance(value, str) and (is_of_type(value, Name) if key == "model" else value in terms.stops)


def hides_encrypted(blocks: Any, terms: Terms) -> bool:
    """Whether there is encrypted thinking among these blocks, which doesn't pass."""
    if terms.keeps_encrypted or not isinstance(blocks, list):
        return False
    return any(isinstance(block, dict) and block.get("type") == REDACTED for block in blocks)


def is_label(key: str, value: Any) -> bool:
    """Whether this only says what something is."""
    return key in LABELS and isinstance(value, str) and LABEL.fullmatch(value) is not None


def _block(block: Mapping[str, Any], where: Path, terms: Terms) -> Iterator[Place]:
    kind = block.get("type")
    text = BLOCKS.get(str(kind))
    for key, value in block.items():
        here = (*where, key)
        if text is not None and key == text.key and isinstance(value, str):
            yield Place(here, value, text.phase, text.kind)
        elif kind == CALL and key in ("name", "input"):
            yield Place(here, said_by(value, here), Phase.ANSWERING, SpanKind.ARGUMENTS)
        elif kind == REDACTED and key == "data":
            if terms.keeps_encrypted and not (isinstance(value, str) and is_encrypted(value)):
                yield from _others(key, value, where)
        elif not (is_label(key, value) or (kind == "thinking" and key == "signature" and is_signature(value))):
            yield from _others(key, value, where, kind)


def said_by(value: Any, where: Path) -> str:
    """A call's name or input as text, since an object's keys are the model's own words as well; raises TooDeep."""
    if isinstance(value, str):
        return value
    list(strings_below(value, where))
    return json.dumps(value, ensure_ascii=False) if value else ""


def _delta(delta: Mapping[str, Any], where: Path, shaped: frozenset[str], terms: Terms) -> Iterator[Place]:
    kind = delta.get("type")
    text = DELTAS.get(str(kind))
    for key, value in delta.items():
        if text is not None and key == text.key and isinstance(value, str):
            yield Place((*where, key), value, text.phase, text.kind)
        elif kind == "signature_delta" and key == "signature" and is_signature(value):
            continue
        elif (text is not None and key == text.key) or not is_plain(key, value, shaped, terms):
            yield from _others(key, value, where, kind)


def _others(key: str, value: Any, where: Path, kind: Any = None) -> Iterator[Place]:
    """A field that nobody knows; ``kind`` is the type of what has it."""
    here = (*where, key)
    refuse_media(here, value, kind)
    if not PLAIN_KEY.fullmatch(key):
        yield Place(here, key, Phase.ANSWERING, SpanKind.OTHER)
    for inner, text in strings_below(value, here):
        yield Place(inner, text, Phase.ANSWERING, SpanKind.OTHER)
